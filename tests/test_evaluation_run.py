"""A tiny sweep end to end: the files of the contract, batches that mix conditions, and means over noise instances."""

import errno
import itertools
import json
import os
import signal
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import yaml
from tiny_sweep import ITEMS, assert_same_rows, experiment, rows_by_item, written_rows

from vsr_lightning.data.clips import to_uint8, to_video
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample, upsample_bicubic
from vsr_lightning.evaluation import restoring, results, run, videos
from vsr_lightning.evaluation.clock import Clock, tell
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.inference.lit_vsr import FailureLog, LitVSR
from vsr_lightning.metrics import psnr, ssim, temporal_error
from vsr_lightning.models.prior import fingerprint
from vsr_lightning.training.run import make_datamodule

CONTRACT = {
    *("video", "noise", "factor", "num_frames", "order", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seed", "seconds", "kernel", "prior"),
    *("dataset", "status"),
}


@dataclass
class Restored:
    """Of a `Restoration`, what the clock asks."""

    seconds: float
    seconds_of_scores: float


@pytest.fixture
def colour_clips(monkeypatch):
    """Moving MNIST's test clips, each colour delayed by another number of frames, instead of the grey ones."""
    grey = MovingMNIST.test_clips

    def coloured(self):
        clips = grey(self)
        return [torch.cat([clip.roll(delay, dims=0) for delay in range(3)], dim=-1) for clip in clips]

    monkeypatch.setattr(MovingMNIST, "test_clips", coloured)


def test_files_of_the_contract_and_a_second_run_that_changes_nothing(tiny_prior, tmp_path, restored_sizes):
    folder = sweep(experiment(tiny_prior, tmp_path))
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


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        (0.0, "20 s after the first batch, 45.0% were sampling, 20.0% grid, scores and rows, 35.0%"),
        (
            5.0,
            "25 s after the first batch, 36.0% were sampling, 16.0% grid, scores and rows, "
            "20.0% waiting for other processes, 28.0%",
        ),
    ],
)
def test_what_the_time_was_spent_on_is_told_and_kept(waiting, told, tmp_path, monkeypatch, capsys):
    """Of four batches the first takes 60 s of sampling, each other 3 of its 4 s, and half a second of scores."""
    times = iter([100.0, 104.0, 108.0, 112.0, 113.0, *(end + waiting for end in (113.0, 116.0, 120.0))])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    (tmp_path / "meta.json").write_text('{"seconds": {}, "resumed": [{"git": "b"}, {"git": "c"}]}')
    clock = Clock()
    clock.end("tables")  # nothing was restored: nothing counts
    for seconds in (60.0, 3.0, 3.0, 3.0):
        clock.on_predict_batch_end(None, None, Restored(seconds, 0.5), None, 0)
    for part in ("rows", "waiting", "means", "wandb"):
        clock.end(part)
    tell(tmp_path, clock.seconds)
    assert capsys.readouterr().out == f"of the {told} means, tables, figures and W&B\n"
    seconds = {"sampling": 9.0, "scores": 1.5, "rows": 2.5, "waiting": waiting}
    seconds |= {"means": 3.0, "tables": 0.0, "figures": 0.0, "wandb": 4.0}
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta == {"seconds": {}, "resumed": [{"git": "b"}, {"git": "c", "seconds": seconds}]}


def test_the_clock_is_read_where_a_part_ends(tiny_prior, tmp_path, monkeypatch):
    """Nothing waits in a single process."""
    end, parts = Clock.end, []
    monkeypatch.setattr(Clock, "end", lambda self, part: (parts.append(part), end(self, part))[1])
    sweep(experiment(tiny_prior, tmp_path))
    batches = ["rows"] * 2  # the first of three begins the count
    assert parts == [*batches, "rows", "tables", "means", "tables", "figures", "wandb"]


def test_each_go_keeps_what_it_spent_its_time_on(tiny_prior, tmp_path, capsys):
    """From the end of its first batch; a go of one batch, or of none, has nothing to tell."""
    command = experiment(tiny_prior, tmp_path)
    for limit in (3, None, None):
        started = time.perf_counter()
        folder = sweep(command, limit)
        elapsed = time.perf_counter() - started
        meta = json.loads((folder / "meta.json").read_text())
        told = "after the first batch" in capsys.readouterr().out
        goes = [meta, *meta.get("resumed", [])]
        assert told == ("seconds" in goes[-1]) == (len(goes) == 2)
        if told:
            seconds = goes[-1]["seconds"]
            assert seconds["sampling"] == pytest.approx(sum(r["seconds"] for r in written_rows(folder)[6:]), abs=1e-3)
            assert seconds.pop("waiting") == 0
            assert min(seconds.values()) > 0
            assert sum(seconds.values()) < elapsed
    assert ["seconds" in go for go in goes] == [False, True, False]


def test_a_batch_is_written_while_the_next_one_is_sampled(tiny_prior, tmp_path, monkeypatch):
    """From its fifth step on; the sampler's sixth waits here until the batch before is written."""
    heard, written, steps_at_writing = [], threading.Event(), []
    record, save_restored = FailureLog.record, videos.save_restored

    def step(self, index, residual):
        heard.append(index)
        if len(heard) == 8 + 6:
            assert written.wait(timeout=60)
        record(self, index, residual)

    def save(*arguments):
        steps_at_writing.append(len(heard))
        save_restored(*arguments)
        written.set()

    monkeypatch.setattr(FailureLog, "record", step)
    monkeypatch.setattr(videos, "save_restored", save)
    folder = sweep(experiment(tiny_prior, tmp_path, "sampler.steps=8"))
    assert steps_at_writing[0] in (8 + 5, 8 + 6)  # the sixth step is on its way while another thread begins
    assert steps_at_writing[-1] == len(heard) == 3 * 8
    assert len(written_rows(folder)) == ITEMS


@pytest.mark.parametrize("step", [1, restoring.WRITE_AFTER_STEPS, restoring.WRITE_AFTER_STEPS + 1])
def test_a_sampler_that_fails_costs_its_own_batch_alone(step, tiny_prior, tmp_path, monkeypatch):
    """In the second of three batches; whether or not the first one's writing has begun, it is written once."""
    heard, record = [], FailureLog.record

    def fail(self, index, residual):
        heard.append(index)
        if len(heard) == 8 + step:
            raise RuntimeError("out of memory")
        record(self, index, residual)

    monkeypatch.setattr(FailureLog, "record", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sweep(experiment(tiny_prior, tmp_path, "sampler.steps=8"))
    assert len(written_rows(tmp_path / "frame_count")) == 3


@pytest.mark.parametrize("steps", [restoring.WRITE_AFTER_STEPS - 1, restoring.WRITE_AFTER_STEPS])
def test_a_batch_is_written_before_the_second_one_after_it(steps, tiny_prior, tmp_path, monkeypatch):
    """Also where batches are over before their fifth step."""
    begun, predict_step = [], LitVSR.predict_step

    def sample(self, batch, batch_idx):
        begun.append(len(written_rows(tmp_path / "frame_count")))
        return predict_step(self, batch, batch_idx)

    monkeypatch.setattr(LitVSR, "predict_step", sample)
    sweep(experiment(tiny_prior, tmp_path, f"sampler.steps={steps}"))
    assert begun == [0, 0, 3]


@pytest.mark.parametrize(("precision", "autocast"), [("bf16-mixed", torch.bfloat16), ("32-true", None)])
def test_weights_are_converted_only_for_autocast_to_bf16(precision, autocast, tiny_prior, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(LitVSR, "compile_networks", lambda self, autocast=None: asked.append(autocast))
    sweep(experiment(tiny_prior, tmp_path, "trainer.compile=always", f"trainer.precision={precision}"))
    assert asked == [autocast]


@pytest.mark.parametrize("batch", [0, 2])  # of three
def test_what_goes_wrong_in_writing_ends_the_sweep(batch, tiny_prior, tmp_path, monkeypatch):
    """In whichever batch, the last one too; what was written stands, and the same command finishes the rest."""
    save_restored, saved = videos.save_restored, []

    def save(*arguments):
        saved.append(arguments)
        if len(saved) == batch + 1:
            raise OSError(errno.EIO, "Input/output error")
        save_restored(*arguments)

    monkeypatch.setattr(videos, "save_restored", save)
    with pytest.raises(OSError, match="Input/output"):
        sweep(experiment(tiny_prior, tmp_path))
    assert len(written_rows(tmp_path / "frame_count")) == 3 * batch
    assert len(written_rows(sweep(experiment(tiny_prior, tmp_path)))) == ITEMS


@pytest.fixture
def heeds_ctrl_c():
    """As in a terminal: what a shell runs in the background ignores SIGINT, and so would the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("batch", [0, 2])  # of three; for the last one the run is waiting
def test_ctrl_c_while_a_batch_is_written_loses_none_that_was_sampled(batch, tiny_prior, tmp_path, monkeypatch):
    save_restored, saved = videos.save_restored, []

    def save(*arguments):
        saved.append(arguments)
        if len(saved) == batch + 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        save_restored(*arguments)

    monkeypatch.setattr(videos, "save_restored", save)
    with pytest.raises(KeyboardInterrupt):
        sweep(experiment(tiny_prior, tmp_path))
    rows = written_rows(tmp_path / "frame_count")
    assert len(rows) == min(ITEMS, 3 * (batch + 1))
    assert len(list((tmp_path / "frame_count" / "rows" / "restored").glob("*"))) == batch + 1


def test_rows_are_written_before_the_clock_is_read(tiny_prior, tmp_path, monkeypatch):
    callbacks = []
    trainer = restoring.L.Trainer

    def watched(**options):
        callbacks.extend(options["callbacks"])
        return trainer(**options)

    monkeypatch.setattr(restoring.L, "Trainer", watched)
    sweep(experiment(tiny_prior, tmp_path, "trainer.progress=true"))
    assert [type(callback).__name__ for callback in callbacks] == ["RowSink", "SamplingProgress", "Clock"]
