"""A run folder is of one configuration, prior and data set: another's results are refused, and nothing is changed."""

import json

import numpy as np
import pytest
import torch
import yaml
from folders import snapshot
from tiny_sweep import ITEMS, SWEEP, experiment, written_rows

from vsr_lightning import runs
from vsr_lightning.config import load_config
from vsr_lightning.data.clip_store import write_store
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation.dry_run import dry_run
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.models.prior import load_prior, load_vae, read_card, save_prior


def test_a_run_folder_of_another_configuration_is_refused(tiny_prior, tmp_path):
    folder = sweep(experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.noises=1", "grid.videos=1"))
    before = snapshot(folder)
    with pytest.raises(
        UserError, match=r"holds a run with another grid.noises; start a new one with name=frame_count-2"
    ):
        sweep(experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.videos=1"))
    assert snapshot(folder) == before


def test_rows_without_their_configuration_are_not_gone_on_with(tiny_prior, tmp_path):
    command = experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.noises=1", "grid.videos=1")
    folder = sweep(command)
    (folder / "config.yaml").unlink()
    before = snapshot(folder)
    with pytest.raises(UserError, match=r"config.yaml: is missing, and rows .* name=frame_count-2"):
        sweep(command)
    assert snapshot(folder) == before


def test_going_on_with_other_code_is_told(tiny_prior, tmp_path, capsys):
    command = experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.noises=1", "grid.videos=1")
    path = sweep(command) / "meta.json"
    sweep(command)
    assert "other code" not in capsys.readouterr().err
    meta = json.loads(path.read_text())
    meta["resumed"][-1]["git"] = "abc123"
    path.write_text(json.dumps(meta))
    sweep(command)
    assert f"frame_count: so far made by other code (abc123); now by {meta['git']}" in capsys.readouterr().err


def test_going_on_in_another_precision_is_told(tiny_prior, tmp_path, capsys):
    one = ("grid.num_frames=[1]", "grid.noises=1", "grid.videos=1")
    sweep(experiment(tiny_prior, tmp_path, *one))
    sweep(experiment(tiny_prior, tmp_path, *one))
    assert "so far made in" not in capsys.readouterr().err
    sweep(experiment(tiny_prior, tmp_path, *one, "trainer.precision=bf16-mixed"))
    told = capsys.readouterr().err
    assert "frame_count: so far made in 32-true; now in bf16-mixed (as before with trainer.precision=32-true)" in told


def test_a_command_that_waits_for_another_takes_no_part_in_its_record(tiny_prior, tmp_path, monkeypatch):
    """Its go is written down once the other one has ended, whose seconds would else be taken for its own."""
    open_run, had_rows = runs.open_run, []

    def spy(command, *arguments):
        had_rows.append((command.folder / "rows/rank-0.jsonl").exists())  # opened, hence locked
        return open_run(command, *arguments)

    monkeypatch.setattr(runs, "open_run", spy)
    sweep(experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.noises=1", "grid.videos=1"))
    assert had_rows == [True]


def test_a_folder_from_before_a_key_goes_on(tiny_prior, tmp_path, restored_sizes):
    command = experiment(tiny_prior, tmp_path)
    path = sweep(command) / "config.yaml"
    content = yaml.safe_load(path.read_text())
    for key in ("factor", "kernel", "sigma_h_per_factor", "keep_videos", "sampler", "observe"):
        del content["grid"][key]
    del content["samplers"]
    path.write_text(yaml.safe_dump(content))
    restored_sizes.clear()
    sweep(command)
    assert restored_sizes == []
    with pytest.raises(UserError, match="another grid.factor"):
        sweep(experiment(tiny_prior, tmp_path, "grid.factor=[4]"))


def test_what_the_grid_stands_over_may_change(tiny_prior, tmp_path, restored_sizes):
    """The section `sampler` where others are named, samplers that are not, and what the grid lists for all."""
    sections = ["samplers.a={target: vsr_lightning.inference.dps.dps_sample, steps: 2, zeta: 1}"]
    command = [*sections, "grid.sampler=[a]", "grid.zeta=[2]", "grid.num_frames=[1]", "grid.videos=1", "grid.noises=1"]
    sweep(experiment(tiny_prior, tmp_path, *command))
    restored_sizes.clear()
    idle = ["sampler.steps=9", "samplers.a.zeta=9", "samplers.b={target: vsr_lightning.inference.dps.dps_sample}"]
    sweep(experiment(tiny_prior, tmp_path, *command, *idle))
    assert restored_sizes == []
    with pytest.raises(UserError, match=r"another samplers\.a\.steps;"):
        sweep(experiment(tiny_prior, tmp_path, *command, "samplers.a.steps=3"))
    with pytest.raises(UserError, match=r"another grid\.sampler;"):
        sweep(experiment(tiny_prior, tmp_path, *command, "grid.sampler=[]"))
    with pytest.raises(UserError, match=r"another grid\.steps;"):
        sweep(experiment(tiny_prior, tmp_path, *command, "grid.steps=[2]"))


def test_a_prior_that_was_trained_again_is_refused(tiny_prior, tmp_path):
    """Its rows must not mix with those of the prior that had this folder before."""
    sweep(experiment(tiny_prior, tmp_path))
    vae, dit = load_vae(tiny_prior), load_prior(tiny_prior).dit
    torch.nn.init.ones_(dit.final.bias)
    save_prior(tiny_prior, read_card(tiny_prior), vae, dit)
    with pytest.raises(UserError, match=r"another prior.*name=frame_count-2"):
        sweep(experiment(tiny_prior, tmp_path))


@pytest.mark.parametrize("damage", ["torn", "lost"])
def test_so_is_one_whose_record_says_nothing(tiny_prior, tmp_path, damage):
    """Then the rows tell of which prior they are, and the folder is left as it was."""
    command = experiment(tiny_prior, tmp_path)
    folder = sweep(command)
    meta = folder / "meta.json"
    whole = meta.read_bytes()
    meta.write_bytes(whole[:100]) if damage == "torn" else meta.unlink()
    before = snapshot(folder)
    prior = load_prior(tiny_prior)
    save_prior(tmp_path / "other", read_card(tiny_prior) | {"name": "other"}, prior.vae, prior.dit)
    message = r"meta.json: cannot be read" if damage == "torn" else r"rows of another prior \(tiny_prior@.*not other@"
    for run in (sweep, dry_run):
        with pytest.raises(UserError, match=message):
            run(experiment(tmp_path / "other", tmp_path))
    assert snapshot(folder) == before
    meta.unlink(missing_ok=True)  # the way out
    sweep(command)
    assert json.loads(meta.read_text())["inputs"] == json.loads(whole)["inputs"]
    assert len(written_rows(folder)) == ITEMS


def test_other_clips_under_the_same_name_are_refused(tiny_rgb_prior, tmp_path):
    """Made anew from another archive, a store has the name and the settings of the old one."""

    def make_store(seed):
        clips = np.random.default_rng(seed).integers(0, 256, (2, 30, 64, 64, 3), np.uint8)
        write_store(
            tmp_path / "bair-test.h5",
            [clips],
            name="bair-test",
            source="archive.tar, validation every 42",
            camera="image_aux1",
        )

    overrides = [
        *("trainer.accelerator=cpu", "trainer.progress=false", "sampler.steps=2", "sampler.restarts=[]"),
        *("grid.videos=1", "grid.noises=1", "grid.factor=[8]", "grid.kernel=[bicubic]"),
        *(f"data.dir={tmp_path}", f"prior={tiny_rgb_prior}", f"runs_dir={tmp_path / 'runs'}"),
    ]
    bair = load_config(SWEEP.parents[1] / "bair" / "eval.yaml", overrides)
    make_store(seed=0)
    folder = sweep(bair)
    before = (folder / "results.csv").read_bytes()
    make_store(seed=1)
    with pytest.raises(UserError, match=r"another store; start a new one"):
        sweep(bair)
    assert (folder / "results.csv").read_bytes() == before
    make_store(seed=0)
    sweep(bair)
