"""A tiny sweep end to end: the files of the contract, batches that mix conditions, and means over noise instances."""

import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from tiny_sweep import FIGURES, ITEMS, assert_same_rows, experiment, rows_by_item, written_rows

from vsr_lightning.data.clips import to_uint8, to_video
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.evaluation import results, run, videos
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.inference.lit_vsr import LitVSR
from vsr_lightning.metrics import psnr, ssim, temporal_error
from vsr_lightning.models.prior import fingerprint
from vsr_lightning.training.run import make_datamodule

CONTRACT = {
    *("video", "noise", "factor", "num_frames", "order", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seed", "seconds", "kernel", "prior"),
    *("dataset", "status"),
}


@pytest.fixture
def colour_clips(monkeypatch):
    """Moving MNIST's test clips, each colour delayed by another number of frames, instead of the grey ones."""
    grey = MovingMNIST.test_clips

    def coloured(self):
        clips = grey(self)
        return [torch.cat([clip.roll(delay, dims=0) for delay in range(3)], dim=-1) for clip in clips]

    monkeypatch.setattr(MovingMNIST, "test_clips", coloured)


def test_files_of_the_contract_and_a_second_run_that_changes_nothing(tiny_prior, tmp_path, restored_sizes):
    folder = sweep(experiment(tiny_prior, tmp_path, FIGURES))
    assert folder == tmp_path / "frame_count"
    names = ["config.yaml", "results.csv", "summary.csv", "means.csv", "clips.h5", "fig2.png", "fig3.png"]
    assert {*names, "meta.json", "rows"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.rglob("*.tmp"))
    meta = json.loads((folder / "meta.json").read_text())
    assert {"command", "git", "versions", "hardware"} <= meta.keys()
    assert meta["precision"] == "32-true"
    assert yaml.safe_load((folder / "config.yaml").read_text())["grid"]["num_frames"] == [1, 3]

    rows = results.read_table(folder / "results.csv")
    assert len(rows) == len(rows_by_item(folder)) == ITEMS
    assert set(rows[0]) >= CONTRACT
    assert {row["dataset"] for row in rows} == {"moving_mnist embedded test"}
    assert {(row["sampler"], row["kernel"], row["factor"], row["prior"]) for row in rows} == {
        ("dps_restart", "gaussian", 8, f"tiny_prior@{fingerprint(tiny_prior)}")
    }
    assert len(written_rows(folder)) == ITEMS
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


def test_means_over_noise_instances_by_hand(tiny_prior, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "MEANS_AT_ONCE", 2)
    command = experiment(tiny_prior, tmp_path, "grid.num_frames=[1,3]", "grid.videos=3", "data.test_videos=3")
    folder = sweep(command)
    restored = videos.load_restored(folder)
    truth = make_datamodule(command).test_clips()
    means = results.read_table(folder / "means.csv")
    assert [(row["num_frames"], row["video"]) for row in means] == [(n, video) for n in (1, 3) for video in (0, 1, 2)]
    for row in means:
        alike = [
            key
            for key, item in rows_by_item(folder).items()
            if all(item[column] == row[column] for column in ("num_frames", "video"))
        ]
        samples = [restored[key] for key in alike]
        mean = torch.from_numpy(np.mean(np.stack(samples).astype(np.float64), axis=0))
        pair = to_video(mean)[None], to_video(truth[row["video"]])[None]
        quality = psnr(*pair)[0]
        assert row["ssim_mean_of_mean"] == pytest.approx(ssim(*pair).mean().item(), abs=1e-4)
        assert row["temporal_error_of_mean"] == pytest.approx(temporal_error(*pair).item(), abs=1e-5)
        assert row["psnr_first_of_mean"] == pytest.approx(quality[0].item(), abs=1e-4)
        assert row["psnr_mean_of_mean"] == pytest.approx(quality.mean().item(), abs=1e-4)
        assert row["n_samples"] == 2


def test_deterministic_is_asked_of_torch_while_sampling_and_changes_nothing_on_a_cpu(tiny_prior, tmp_path, monkeypatch):
    asked = []
    predict_step = LitVSR.predict_step

    def watched(self, batch, batch_idx):
        asked.append(torch.are_deterministic_algorithms_enabled())
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(LitVSR, "predict_step", watched)
    folder = sweep(experiment(tiny_prior, tmp_path, "trainer.deterministic=true"))
    again = sweep(experiment(tiny_prior, tmp_path, "name=again"))
    batches = len(asked) // 2
    assert asked == [True] * batches + [False] * batches
    assert_same_rows(rows_by_item(folder), rows_by_item(again), tolerance=0)
