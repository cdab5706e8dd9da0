"""How restorations are sampled and reach the disk: while the next ones are made, whole, and once."""

import errno
import os
import signal
import threading
import time

import pytest
import torch
from tiny_sweep import ITEMS, experiment, written_rows

from vsr_lightning.evaluation import restoring, videos
from vsr_lightning.evaluation.run import sweep
from vsr_lightning.inference.lit_vsr import FailureLog, LitVSR


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
