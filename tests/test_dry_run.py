"""A dry run tells what is missing and what it takes, and writes nothing; a limited sweep looks at every condition."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from folders import snapshot
from tiny_sweep import SWEEP, TINY

from vsr_lightning.__main__ import main
from vsr_lightning.config import load_config
from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.dry_run import dry_run
from vsr_lightning.evaluation.job import prepare
from vsr_lightning.evaluation.run import sweep


@pytest.fixture
def overrides(tiny_prior, tmp_path):
    return [*TINY, "full=true", f"prior={tiny_prior}", f"runs_dir={tmp_path / 'runs'}"]


def test_nothing_is_written_and_nothing_pretended(overrides, tmp_path, capsys):
    before = snapshot(tmp_path)
    assert main(["sweep", str(SWEEP), *overrides, "--dry-run"]) == 0
    assert snapshot(tmp_path) == before
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("frame_count: 8 restorations, 0 done, 8 missing")
    assert [line.split() for line in told[1:4]] == [["num_frames", "done", "missing"], ["1", "0", "4"], ["3", "0", "4"]]
    assert told[5] == "batches of at most 3, by device: 3"
    assert told[6].startswith("time: unknown, nothing was measured yet with tiny_prior@")
    assert told[6].endswith("; a first look does, as --limit 3")
    # 8 videos of 40,960 bytes, twice two clips of three and a bit.
    assert told[7] == "disk: at most 0.8 MB"


def test_by_device(overrides):
    told = dry_run(load_config(SWEEP, [*overrides, "trainer.devices=4"]))
    assert "by device: 1, 1, 1, 0" in told


def test_time_from_rows_of_this_prior_on_this_hardware(overrides, tmp_path):
    folder = sweep(load_config(SWEEP, [*overrides, "grid.num_frames=[1]", "name=earlier"]))
    path = folder / "rows" / "rank-0.jsonl"
    rows = [{**json.loads(line), "seconds": 30.0} for line in path.read_text().splitlines()]
    rows[0] |= {"prior": "another", "seconds": 1e6}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # 10 s a step: 8 items of 3 steps on one device, 5 and 3 of them on two.
    assert "time: about 4.0 minutes, by 3 restorations" in dry_run(load_config(SWEEP, overrides))
    assert "time: about 2.5 minutes" in dry_run(load_config(SWEEP, [*overrides, "trainer.devices=2"]))
    assert "time: about 60 seconds" in dry_run(load_config(SWEEP, overrides), limit=2)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "hardware": "another"}))
    assert "time: unknown" in dry_run(load_config(SWEEP, overrides))


def test_nothing_missing_takes_no_time(overrides):
    experiment = load_config(SWEEP, [*overrides, "grid.num_frames=[1]"])
    sweep(experiment)
    assert "time: none, nothing is missing" in dry_run(experiment)


def test_samplers_without_rows_are_taken_to_be_as_fast(overrides, tmp_path):
    folder = sweep(load_config(SWEEP, [*overrides, "grid.num_frames=[1]", "name=earlier"]))
    path = folder / "rows" / "rank-0.jsonl"
    rows = [{**json.loads(line), "seconds": 30.0} for line in path.read_text().splitlines()]
    slower = [{**row, "sampler": "slower", "seconds": 90.0, "noise": 7} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, *slower[:1])))
    target = "{target: vsr_lightning.inference.dps.dps_sample, steps: 3, zeta: 1.0}"
    samplers = [f"samplers={{dps_restart: {target}, slower: {target}, new: {target}}}"]
    several = [*overrides, *samplers, "grid.sampler=[dps_restart,slower,new]"]
    told = dry_run(load_config(SWEEP, several))
    # 8 items each: 240, 720 and, by the median of 30 and 90 s, 240 s
    assert "time: about 20.0 minutes, by 5 restorations measured on this hardware; none of new, taken" in told
    told = dry_run(load_config(SWEEP, [*several, "grid.sampler=[new]"]))
    assert "time: about 4.0 minutes, by 5 restorations measured on this hardware; none of new, taken" in told


def test_time_from_the_shipped_results(overrides, tmp_path, monkeypatch):
    folder = sweep(load_config(SWEEP, [*overrides, "grid.num_frames=[1]", "name=earlier"]))
    shipped = tmp_path / "results"
    folder.rename(shipped)
    shutil.rmtree(shipped / "rows")
    rows = results.read_table(shipped / "results.csv")
    results.write_csv(shipped / "results.csv", [row | {"seconds": 30.0} for row in rows], list(rows[0]))
    monkeypatch.setattr("vsr_lightning.evaluation.dry_run.SHIPPED", shipped)
    assert "time: about 4.0 minutes, by 4 restorations" in dry_run(load_config(SWEEP, overrides))


@pytest.fixture
def on_a_gpu(overrides, monkeypatch):
    """Overrides of a sweep that would be on two GPUs, in bf16 and with batches of 3."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("vsr_lightning.provenance.hardware", lambda: "a GPU")
    return [*overrides, "trainer.accelerator=gpu", "trainer.precision=auto"]


def write_run(folder, job, batches, **meta):
    """A run folder of batches of so many restorations on a GPU, each batch in 30 seconds, padded to 3."""
    (folder / "rows").mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"hardware": "a GPU", **meta}))
    (folder / "config.yaml").write_text("trainer: {batch_size: 3}")
    lines = []
    for number, size in enumerate(batches):
        seconds = (30 + 1e-6 * number) / size  # no two batches take equally long
        lines += [{**job.to_row(job.items[0]), "noise": len(lines) + i, "seconds": seconds} for i in range(size)]
    text = "".join(json.dumps(row | {"status": "ok"}) + "\n" for row in lines)
    (folder / "rows/rank-0.jsonl").write_text(text)


@pytest.mark.parametrize("batches", [[3, 3], [1], [2]], ids=str)
def test_on_a_gpu_batches_take_the_time_of_full_ones(on_a_gpu, tmp_path, batches):
    experiment = load_config(SWEEP, on_a_gpu)
    write_run(tmp_path / "runs/earlier", prepare(experiment), batches)
    # 8 items are 3 batches, of 2 steps as the one measured: 30 s each.
    assert "time: about 90 seconds" in dry_run(experiment)
    assert "time: about 30 seconds" in dry_run(experiment, limit=1)
    assert "time: about 60 seconds" in dry_run(load_config(SWEEP, [*on_a_gpu, "trainer.devices=2"]))
    # The same for each item of a batch that is twice as large.
    assert "time: about 2.0 minutes" in dry_run(load_config(SWEEP, [*on_a_gpu, "trainer.batch_size=6"]))


def test_a_run_that_went_on_elsewhere_says_nothing_of_this_hardware(on_a_gpu, tmp_path):
    experiment = load_config(SWEEP, on_a_gpu)
    write_run(tmp_path / "runs/earlier", prepare(experiment), [3], resumed=[{"hardware": "another"}])
    assert "time: unknown" in dry_run(experiment)
    write_run(tmp_path / "runs/later", prepare(experiment), [3], resumed=[{"hardware": "a GPU"}])
    assert "time: about 90 seconds, by 3 restorations" in dry_run(experiment)


def test_a_run_in_another_precision_says_nothing_of_this_one(on_a_gpu, tmp_path):
    experiment = load_config(SWEEP, on_a_gpu)
    write_run(tmp_path / "runs/slow", prepare(experiment), [3], precision="32-true")
    assert "time: unknown" in dry_run(experiment)  # bf16-mixed, on a GPU
    write_run(tmp_path / "runs/fast", prepare(experiment), [3], precision="bf16-mixed")
    assert "time: about 90 seconds, by 3 restorations" in dry_run(experiment)


def test_damage_in_other_folders_does_not_matter(on_a_gpu, tmp_path):
    experiment = load_config(SWEEP, on_a_gpu)
    write_run(tmp_path / "runs/good", prepare(experiment), [3])
    for name in ("rows", "no-number", "meta", "config"):
        write_run(tmp_path / "runs" / name, prepare(experiment), [3])
    (tmp_path / "runs/rows/rows/rank-0.jsonl").write_text("garbage\n")
    row = json.loads((tmp_path / "runs/no-number/rows/rank-0.jsonl").read_text().splitlines()[0])
    changes = ({"steps": 0}, {"steps": None}, {"seconds": "30"}, {"sampler": []}, {"prior": []}, {"status": {}})
    rows = [row | change for change in changes]
    (tmp_path / "runs/no-number/rows/rank-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "runs/meta/meta.json").write_text('{"resumed": [1]}')
    (tmp_path / "runs/config/config.yaml").write_text("trainer: [")
    assert "time: about 90 seconds, by 6 restorations" in dry_run(experiment)


@pytest.mark.parametrize("environment", [{}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_several_machines_need_no_launcher(overrides, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert "by device: 1, 1, 1, 0" in dry_run(load_config(SWEEP, [*overrides, "trainer.num_nodes=4"]))


def test_a_first_look_and_then_the_rest(overrides, capsys):
    command = ["sweep", str(SWEEP), *overrides]
    assert main([*command, "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 of 8 restorations; the same command goes on" in out
    folder = Path(overrides[-1].removeprefix("runs_dir=")) / "frame_count"
    assert [(row["n"], row["num_frames"]) for row in results.read_table(folder / "summary.csv")] == [(1, 1), (1, 3)]
    assert [clip["num_frames"] for clip in videos.read_clips(folder)] == [1, 3]
    first = {results.item_key(row): row for row in results.read_rows(folder)}
    assert {(row["video"], row["noise"]) for row in first.values()} == {(0, 0)}

    assert main([*command, "--dry-run", "--limit", "3"]) == 0
    out = capsys.readouterr().out
    assert "8 restorations, 2 done, 6 missing" in out
    assert "now: 3 restorations (--limit 3)" in out
    assert main(command) == 0
    rows = {results.item_key(row): row for row in results.read_rows(folder)}
    assert len(rows) == 8
    assert first.items() <= rows.items()


@pytest.mark.parametrize(
    ("command", "option", "named"),
    [
        ("sweep", ["--limit", "0"], "argument --limit: '0' is not a whole number of at least 1"),
        ("sweep", ["--limit", "1.5"], "argument --limit: '1.5' is not a whole number of at least 1"),
        ("train", ["--limit", "1"], "--limit is for sweep and evaluate, not for train"),
        ("figures", ["--dry-run"], "--dry-run is for sweep and evaluate, not for figures"),
    ],
)
def test_options_out_of_place(command, option, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, str(SWEEP), *option])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
