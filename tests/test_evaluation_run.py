"""A tiny sweep end to end: the files of the contract, resuming, failures, and the means over noise instances."""

import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from tiny_sweep import SWEEP, TINY

from vsr_lightning.config import UserError, load_config
from vsr_lightning.data.clip_store import write_store
from vsr_lightning.data.clips import to_uint8, to_video
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.dry_run import dry_run
from vsr_lightning.evaluation.run import UntilTimeIsUp, sweep
from vsr_lightning.inference.lit_vsr import LitVSR
from vsr_lightning.metrics import psnr, ssim, temporal_error
from vsr_lightning.models.prior import fingerprint, load_prior, load_vae, read_card, save_prior
from vsr_lightning.training.run import make_datamodule

POLYAK = "vsr_lightning.inference.dps_polyak.dps_polyak_sample"
ITEMS = 8
CONTRACT = {
    *("video", "noise", "factor", "num_frames", "order", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seed", "seconds", "kernel", "prior"),
    *("dataset", "status"),
}


def experiment(prior, runs_dir, *overrides):
    return load_config(SWEEP, [*TINY, f"prior={prior}", f"runs_dir={runs_dir}", *overrides])


@pytest.fixture
def colour_clips(monkeypatch):
    """Moving MNIST's test clips, each colour delayed by another number of frames, instead of the grey ones."""
    grey = MovingMNIST.test_clips

    def coloured(self):
        clips = grey(self)
        return [torch.cat([clip.roll(delay, dims=0) for delay in range(3)], dim=-1) for clip in clips]

    monkeypatch.setattr(MovingMNIST, "test_clips", coloured)


@pytest.fixture
def restored_sizes(monkeypatch):
    """The number of items in every batch that is restored from here on."""
    sizes = []
    predict_step = LitVSR.predict_step

    def spy(self, batch, batch_idx):
        sizes.append(batch.size)
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(LitVSR, "predict_step", spy)
    return sizes


def rows_by_item(folder):
    return {results.item_key(row): row for row in results.read_table(folder / "results.csv")}


def lines(folder):
    return [json.loads(line) for path in folder.glob("rows/*.jsonl") for line in path.read_text().splitlines()]


def assert_same_rows(found, expected, tolerance=0.05):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key]["status"] == row["status"] == "ok"
        for column in ("psnr_first", "psnr_mean", "psnr_first_vae", "psnr_first_bicubic"):
            assert found[key][column] == pytest.approx(row[column], abs=tolerance), (key, column)
        assert found[key]["ssim_mean"] == pytest.approx(row["ssim_mean"], abs=1e-3)


def test_files_of_the_contract_and_a_second_run_that_changes_nothing(tiny_prior, tmp_path, restored_sizes):
    folder = sweep(experiment(tiny_prior, tmp_path))
    assert folder == tmp_path / "frame_count"
    names = ["config.yaml", "results.csv", "summary.csv", "means.csv", "clips.h5", "fig2.png", "fig3.png"]
    assert {*names, "meta.json", "rows"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.tmp"))
    meta = json.loads((folder / "meta.json").read_text())
    assert {"command", "git", "versions", "hardware"} <= meta.keys()
    assert yaml.safe_load((folder / "config.yaml").read_text())["grid"]["num_frames"] == [1, 3]

    rows = results.read_table(folder / "results.csv")
    assert len(rows) == len(rows_by_item(folder)) == ITEMS
    assert set(rows[0]) >= CONTRACT
    assert {row["dataset"] for row in rows} == {"moving_mnist embedded test"}
    assert {(row["sampler"], row["kernel"], row["factor"], row["prior"]) for row in rows} == {
        ("dps_restart", "gaussian", 8, f"tiny_prior@{fingerprint(tiny_prior)}")
    }
    assert len(lines(folder)) == ITEMS
    assert [(line["num_frames"], line["n"]) for line in results.read_table(folder / "summary.csv")] == [(1, 4), (3, 4)]
    clips = videos.read_clips(folder)
    assert [len(clip["frames"]) for clip in clips] == [1, 3]
    assert clips[0]["observed"].shape == (10, 8, 8, 1)
    truth = make_datamodule(experiment(tiny_prior, tmp_path)).test_clips()[0]
    assert np.array_equal(clips[0]["truth"], truth.numpy())

    before = {name: (folder / name).read_bytes() for name in names if not name.endswith(("h5", "png"))}
    restored_sizes.clear()
    sweep(experiment(tiny_prior, tmp_path, "trainer.batch_size=5"))  # how it computes is no part of its identity
    assert restored_sizes == []
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_batch_size_does_not_matter(tiny_prior, tmp_path):
    strong = ("sampler.steps=6", "sampler.zeta=100")
    alone = sweep(experiment(tiny_prior, tmp_path, "name=alone", "trainer.batch_size=1", *strong))
    together = sweep(experiment(tiny_prior, tmp_path, "name=together", "trainer.batch_size=16", *strong))
    assert_same_rows(rows_by_item(together), rows_by_item(alone))
    one, many = videos.load_restored(alone), videos.load_restored(together)
    assert one.keys() == many.keys()
    restored = [many[key].astype(int) for key in one]
    for key, video in zip(one, restored, strict=True):
        assert abs(one[key] - video).max() <= 1  # level of 255: rounding
    for a, b in itertools.combinations(restored, 2):
        assert abs(a - b).max() > 5  # every item is a restoration of its own: none took another's place


def test_mixed_factors_and_kernels_equal_each_alone(tiny_rgb_prior, colour_clips, tmp_path):
    common = ["grid.noises=1", "sampler.steps=4", "sampler.zeta=50"]
    mixed = ["grid.factor=[4,8]", "grid.kernel=[bicubic,gaussian]", "grid.sigma_h_per_factor=[0.5]", *common]
    together = sweep(experiment(tiny_rgb_prior, tmp_path, "name=together", *mixed))
    rows, restored = {}, {}
    for factor, kernel, sigma_h in [(4, "bicubic", 0), (4, "gaussian", 2), (8, "bicubic", 0), (8, "gaussian", 4)]:
        operator = [f"degradation.factor={factor}", f"degradation.kernel={kernel}", f"grid.sigma_h=[{sigma_h}]"]
        folder = sweep(experiment(tiny_rgb_prior, tmp_path, f"name={factor}{kernel}", *operator, *common))
        rows |= rows_by_item(folder)
        restored |= videos.load_restored(folder)
    assert len(rows) == 16
    assert_same_rows(rows_by_item(together), rows)
    for key, video in videos.load_restored(together).items():
        assert abs(video.astype(int) - restored[key]).max() <= 1  # level of 255: rounding
    assert len({video.tobytes() for video in restored.values()}) == 16


def test_clips_to_look_at_of_several_videos_in_colour(tiny_rgb_prior, colour_clips, tmp_path):
    command = experiment(tiny_rgb_prior, tmp_path, "grid.keep_videos=2", "grid.factor=[4,8]", "grid.num_frames=[3]")
    clips = videos.read_clips(sweep(command))
    assert [(clip["factor"], clip["video"]) for clip in clips] == [(4, 0), (4, 1), (8, 0), (8, 1)]
    truth = make_datamodule(command).test_clips()
    for clip in clips:
        degradation = Downsample(clip["factor"])
        assert clip["observed"].shape == (10, 64 // clip["factor"], 64 // clip["factor"], 3)
        assert np.array_equal(clip["truth"], truth[clip["video"]].numpy())
        observed = to_video(torch.from_numpy(clip["observed"]))[None]
        baseline = to_uint8(upsample_bicubic(observed, degradation))[0].numpy()
        # Sensor noise reaches past the ends of what eight bits hold, and cubic interpolation can double that.
        assert np.abs(clip["bicubic"].astype(int) - baseline)[clip["frames"]].mean() < 2
        assert clip["restored"].shape == clip["bicubic"].shape == (10, 64, 64, 3)


def test_two_samplers_and_observations_from_reconstructions(tiny_prior, tmp_path, restored_sizes):
    samplers = [
        "samplers.a={target: vsr_lightning.inference.dps.dps_sample, steps: 2, zeta: 1.0}",
        "samplers.b={target: vsr_lightning.inference.dps_particles.dps_particles_sample, steps: 3, zeta: 0.5}",
        *("grid.sampler=[a,b]", "grid.num_frames=[10]", "figures=[vsr_lightning.figures.samplers.make_figures]"),
    ]
    command = experiment(tiny_prior, tmp_path, *samplers, "grid.observe=reconstruction")
    folder = sweep(command)
    rows = results.read_table(folder / "results.csv")
    assert sorted({(row["sampler"], row["steps"], row["zeta"]) for row in rows}) == [("a", 2, 1), ("b", 3, 0.5)]
    assert len(rows) == len(rows_by_item(folder)) == 8
    assert {row["dataset"] for row in rows} == {"moving_mnist embedded test, observed as reconstructed"}
    means = results.read_table(folder / "means.csv")
    assert sorted((mean["sampler"], mean["video"], mean["n_samples"]) for mean in means) == [
        ("a", 0, 2), ("a", 1, 2), ("b", 0, 2), ("b", 1, 2),
    ]  # fmt: skip
    assert (folder / "samplers.png").exists()

    alone = sweep(experiment(tiny_prior, tmp_path / "alone", *samplers, "grid.sampler=[b]"))
    of_truth = {(row["video"], row["noise"]): row for row in results.read_table(alone / "results.csv")}
    assert {row["dataset"] for row in of_truth.values()} == {"moving_mnist embedded test"}
    of_b = [row for row in rows if row["sampler"] == "b"]
    assert any(abs(row["psnr_mean"] - of_truth[row["video"], row["noise"]]["psnr_mean"]) > 1e-4 for row in of_b)

    restored_sizes.clear()
    sweep(command)
    assert restored_sizes == []


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


def test_a_killed_sweep_is_finished_by_the_same_command(tiny_prior, tmp_path, monkeypatch, restored_sizes):
    predict_step = LitVSR.predict_step

    def die(self, batch, batch_idx):
        if batch_idx == 1:
            raise RuntimeError("killed")
        return predict_step(self, batch, batch_idx)

    killed = experiment(tiny_prior, tmp_path, "name=killed")
    with monkeypatch.context() as patch:
        patch.setattr(LitVSR, "predict_step", die)
        with pytest.raises(RuntimeError, match="killed"):
            sweep(killed)
    (path,) = (tmp_path / "killed" / "rows").glob("*.jsonl")
    path.write_text(path.read_text() + '{"video": 1, "noi')  # a torn last line
    assert restored_sizes == [3]

    sweep(killed)
    assert sum(restored_sizes) == ITEMS == len(lines(tmp_path / "killed"))
    straight = sweep(experiment(tiny_prior, tmp_path, "name=straight"))
    assert_same_rows(rows_by_item(tmp_path / "killed"), rows_by_item(straight))


def test_a_sweep_out_of_time_is_finished_by_the_same_command(tiny_prior, tmp_path, capsys, restored_sizes):
    folder = sweep(experiment(tiny_prior, tmp_path, "trainer.max_minutes=1e-9"))
    assert restored_sizes == [3]
    assert f"3 of {ITEMS} restorations; the same command goes on" in capsys.readouterr().out
    assert len(results.read_table(folder / "results.csv")) == 3
    sweep(experiment(tiny_prior, tmp_path))
    assert f"{ITEMS} of {ITEMS} restorations\n" in capsys.readouterr().out
    assert len(rows_by_item(folder)) == ITEMS == sum(restored_sizes)


def test_the_time_limit_lets_one_batch_through():
    assert list(UntilTimeIsUp(3, max_minutes=0)) == [0, 1, 2]
    assert list(UntilTimeIsUp(3, max_minutes=1e-9)) == [0]
    assert list(UntilTimeIsUp(0, max_minutes=1e-9)) == []


def test_failed_items_are_kept_marked_and_tried_again(tiny_prior, tmp_path, restored_sizes, capsys):
    # The square of so much noise overflows float32.
    overrides = ["grid.sigma_y=[0.02,3e18]", "grid.num_frames=[2]", "grid.noises=1", "trainer.batch_size=4"]
    folder = sweep(experiment(tiny_prior, tmp_path, *overrides))
    first, header, *_ = capsys.readouterr().out.splitlines()
    failed = "2 failed (non-finite at step 0 with zeta 0.5)"
    assert first == f"{folder}: 2 of 4 restorations, {failed}; the same command tries them again"
    assert header.split()[:3] == ["sigma_y", "n", "failed"]
    rows = results.read_table(folder / "results.csv")
    assert [(row["sigma_y"], row["status"]) for row in rows[:2]] == [(0.02, "ok")] * 2
    assert len(rows) == 4
    assert [row["status"] for row in rows[2:]] == ["non-finite at step 0 with zeta 0.5"] * 2
    assert {(line["n"], line["failed"]) for line in results.read_table(folder / "summary.csv")} == {(2, 0), (0, 2)}
    assert len(results.read_table(folder / "means.csv")) == 2
    sweep(experiment(tiny_prior, tmp_path, *overrides))
    assert restored_sizes == [4, 2]  # only the failed ones
    assert len(results.read_table(folder / "results.csv")) == 4


def test_a_sweep_in_which_everything_failed_says_so(tiny_prior, tmp_path, capsys):
    overrides = ["grid.sigma_y=[3e18]", "grid.noises=1"]
    sweep(experiment(tiny_prior, tmp_path, *overrides, "trainer.max_minutes=1e-9"))
    failed = "failed (non-finite at step 0 with zeta 0.5)"
    printed = capsys.readouterr().out
    assert f": 0 of 4 restorations, 3 {failed}; the same command goes on and tries them again\n" in printed
    sweep(experiment(tiny_prior, tmp_path, *overrides))
    printed = capsys.readouterr().out
    assert f": 0 of 4 restorations, 4 {failed}; the same command tries them again\n" in printed


def test_a_later_success_replaces_a_failure(tiny_prior, tmp_path, monkeypatch):
    predict_step = LitVSR.predict_step

    def fail_last(self, batch, batch_idx):
        restoration = predict_step(self, batch, batch_idx)
        restoration.x_hat[-1] = torch.nan
        restoration.status[-1] = "non-finite at the last step with zeta 0.5"
        return restoration

    command = experiment(tiny_prior, tmp_path, "name=again", "grid.num_frames=[2]")
    with monkeypatch.context() as patch:
        patch.setattr(LitVSR, "predict_step", fail_last)
        folder = sweep(command)
    failed = [row["status"] for row in results.read_table(folder / "results.csv") if row["status"] != "ok"]
    assert len(failed) == 2
    sweep(command)
    straight = sweep(experiment(tiny_prior, tmp_path, "name=straight", "grid.num_frames=[2]"))
    assert_same_rows(rows_by_item(folder), rows_by_item(straight))
    for found, expected in zip(*(results.read_table(f / "means.csv") for f in (folder, straight)), strict=True):
        assert found["n_samples"] == expected["n_samples"] == 2
        assert found["psnr_first_of_mean"] == pytest.approx(expected["psnr_first_of_mean"], abs=0.05)


def test_means_over_noise_instances_by_hand(tiny_prior, tmp_path):
    command = experiment(tiny_prior, tmp_path, "grid.num_frames=[2]")
    folder = sweep(command)
    restored = videos.load_restored(folder)
    truth = make_datamodule(command).test_clips()
    means = results.read_table(folder / "means.csv")
    assert [row["video"] for row in means] == [0, 1]
    for row in means:
        samples = [restored[key] for key, item in rows_by_item(folder).items() if item["video"] == row["video"]]
        mean = torch.from_numpy(np.mean(np.stack(samples).astype(np.float64), axis=0))
        pair = to_video(mean)[None], to_video(truth[row["video"]])[None]
        quality = psnr(*pair)[0]
        assert row["ssim_mean_of_mean"] == pytest.approx(ssim(*pair).mean().item(), abs=1e-4)
        assert row["temporal_error_of_mean"] == pytest.approx(temporal_error(*pair).item(), abs=1e-5)
        assert row["psnr_first_of_mean"] == pytest.approx(quality[0].item(), abs=1e-4)
        assert row["psnr_mean_of_mean"] == pytest.approx(quality.mean().item(), abs=1e-4)
        assert row["n_samples"] == 2


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
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    prior = load_prior(tiny_prior)
    save_prior(tmp_path / "other", read_card(tiny_prior) | {"name": "other"}, prior.vae, prior.dit)
    message = r"meta.json: cannot be read" if damage == "torn" else r"rows of another prior \(tiny_prior@.*not other@"
    for run in (sweep, dry_run):
        with pytest.raises(UserError, match=message):
            run(experiment(tmp_path / "other", tmp_path))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    meta.unlink(missing_ok=True)  # the way out
    sweep(command)
    assert json.loads(meta.read_text())["inputs"] == json.loads(whole)["inputs"]
    assert len(lines(folder)) == ITEMS


def test_a_run_folder_of_another_configuration_is_refused(tiny_prior, tmp_path):
    folder = sweep(experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.noises=1", "grid.videos=1"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"holds a run with another grid.noises; start a new one with name=frame_count-2"
    ):
        sweep(experiment(tiny_prior, tmp_path, "grid.num_frames=[1]", "grid.videos=1"))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grid.num_frames=[0]", r"grid.num_frames: 0 is not between 1 and 10"),
        ("grid.num_frames=[11]", r"grid.num_frames: 11 is not between 1 and 10"),
        ("grid.order=[backwards]", r"grid.order.*backwards"),
        ("grid.videos=3", r"grid.videos: 3 asked for, the test split has 2"),
        ("grid.steps=[2000]", r"sampler.steps: 2000 are more than the 1249 timesteps"),
        ("sampler={target: vsr_lightning.inference.dps.dps_sample}", r"sampler.steps: missing for dps"),
        ("sampler.max_move=-1", r"dps_restart: sampler.max_move: -1 is not at least 0"),
        ("sampler.restarts=2", r"sampler.restarts: 2 is not of type list of float"),
        ("degradation.factor=7", r"factor"),
        ("grid.factor=[8,7]", r"degradation.factor=7, or grid.factor: must divide"),
        ("grid.kernel=[gaussian,cubic]", r"degradation.kernel=cubic, or grid.kernel: unknown; choose"),
        ("data.num_frames=5", r"prior: .* makes videos \(10, 1, 64, 64\)"),
        ("prior=nowhere", r"nowhere/card.yaml: no such file"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(override, message, tiny_prior, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep(experiment(tiny_prior, tmp_path / "runs", override))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("eta: 2", r"sampler.eta: 2 is not from 0"), ("spacing: even", r"sampler.spacing: 'even' is none of")],
)
def test_bad_settings_of_a_sampler_are_told_before_anything_is_written(setting, message, tiny_prior, tmp_path):
    sampler = f"{{target: {POLYAK}, steps: 3, zeta: 0.5, {setting}}}"
    with pytest.raises(UserError, match=message):
        sweep(experiment(tiny_prior, tmp_path / "runs", f"sampler={sampler}"))
    assert not (tmp_path / "runs").exists()


def test_what_is_no_sampler_is_told(tiny_prior, tmp_path):
    unguided = "sampler={target: vsr_lightning.inference.ancestral.ancestral_sample}"
    with pytest.raises(UserError, match="ancestral: target: cannot be called as a sampler"):
        sweep(experiment(tiny_prior, tmp_path / "runs", unguided, "grid.steps=[2]", "grid.zeta=[1]"))
    assert not (tmp_path / "runs").exists()


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
