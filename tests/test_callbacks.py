"""The weight average against hand computation, when checkpoints are written, and what is counted and drawn."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from vsr_lightning import files
from vsr_lightning.experiment import Training
from vsr_lightning.training import callbacks
from vsr_lightning.training.callbacks import EMA, LastCheckpoint, LossLog, Pictures, Throughput, film_strip
from vsr_lightning.training.optimisation import LitNetwork


class Counting(L.LightningModule):
    """One weight, which is 1 after the first step, 2 after the second, and so on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, 1))
        self.seen_in_validation = []

    def training_step(self, x, batch_idx):
        return -self.weight.sum()

    def validation_step(self, x, batch_idx):
        self.seen_in_validation.append(self.weight.item())

    def on_validation_epoch_end(self):
        self.seen_in_validation.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(module, steps, *used, val_every=None, ckpt_path=None):
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=val_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=list(used),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(torch.zeros(1000, 1, 1), batch_size=2)
    validation = DataLoader(torch.zeros(1, 1), batch_size=1) if val_every else None
    trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
    return trainer


def average_by_hand(steps, decay):
    average = 1.0  # the first step's weight is copied
    for n in range(1, steps):
        d = min(decay, (1 + n) / (10 + n))
        average = d * average + (1 - d) * (n + 1)
    return average


@pytest.mark.parametrize("decay", [0.999, 0.25])
def test_ema_ramp(decay):
    module = Counting()
    fit(module, 6, EMA(decay))
    assert module.weight.item() == pytest.approx(average_by_hand(6, decay), rel=1e-6)


def test_all_of_validation_sees_the_average_and_training_goes_on_with_its_own():
    module = Counting()
    weights = []
    trained = SimpleTracker(weights)
    fit(module, 4, EMA(0.999), trained, val_every=2)
    expected = [average_by_hand(2, 0.999)] * 2 + [average_by_hand(4, 0.999)] * 2
    assert module.seen_in_validation == pytest.approx(expected, rel=1e-6)
    assert weights == [1, 2, 3, 4]


class SimpleTracker(L.Callback):
    def __init__(self, weights):
        self.weights = weights

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append(pl_module.weight.item())


def test_ema_is_made_on_the_training_device_and_counts_on_the_cpu(monkeypatch):
    class Average:
        def __init__(self, model, device, **_):
            self.device = device
            self.n_averaged = SimpleNamespace(cpu=lambda: "on the CPU")

    monkeypatch.setattr("lightning.pytorch.callbacks.weight_averaging.AveragedModel", Average)
    ema = EMA(0.9)
    root_device = torch.device("cuda", 3)
    ema.setup(SimpleNamespace(strategy=SimpleNamespace(root_device=root_device)), Counting(), "fit")
    assert ema._average_model.device == root_device
    assert ema._average_model.n_averaged == "on the CPU"


def saved_steps(monkeypatch):
    """Steps at which the checkpoint is renamed to its final name, and what was there under the temporary one."""
    steps = []
    replace = files.os.replace

    def spy(source, target):
        assert source.suffix == ".tmp"
        steps.append(torch.load(source, weights_only=True)["global_step"])
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", spy)
    return steps


def test_checkpoint_is_saved_at_every_and_at_the_end(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    path = tmp_path / "last.ckpt"
    fit(Counting(), 7, LastCheckpoint(path, every=3, experiment={}))
    assert steps == [3, 6, 7]
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_checkpoint_holds_the_trained_and_the_averaged_weights(tmp_path):
    path = tmp_path / "last.ckpt"
    fit(Counting(), 5, EMA(0.999), LastCheckpoint(path, every=100, experiment={}))
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["current_model_state"]["weight"].item() == 5
    assert checkpoint["state_dict"]["weight"].item() == pytest.approx(average_by_hand(5, 0.999))
    assert checkpoint["devices"] == 1


def test_checkpoint_and_stop_when_the_time_is_up(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    trainer = fit(Counting(), 100, LastCheckpoint(tmp_path / "last.ckpt", every=1000, experiment={}, max_minutes=1e-9))
    assert trainer.global_step < 100
    assert steps == [trainer.global_step]


def test_a_crash_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    path.write_text("the one before")

    def crash(self, filepath, **_):
        filepath.write_text("half of")
        raise OSError("no space left")

    monkeypatch.setattr(L.Trainer, "save_checkpoint", crash)
    with pytest.raises(OSError, match="no space left"):
        fit(Counting(), 1, LastCheckpoint(path, every=1, experiment={}))
    assert path.read_text() == "the one before"


def test_throughput_counts_training_over_resumed_parts_and_no_validation(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: clock.now)
    logged = []
    module = SimpleNamespace(log=lambda name, value, **_: logged.append((name, value)), step_metrics={})
    trainer = SimpleNamespace(world_size=2, global_step=0)

    def train(throughput, steps):
        throughput.on_train_start(trainer, module)
        for _ in range(steps):
            clock.now += 2.0
            trainer.global_step += 1
            throughput.on_train_batch_end(trainer, module, None, torch.zeros(3), 0)

    first = Throughput(every=2)
    train(first, 4)
    clock.now += 1000  # a validation
    first.on_validation_end(trainer, module)
    assert first.seconds == 6  # from the second step, for the first compiles
    clock.now += 5000  # stopped, and started again
    second = Throughput(every=2)
    second.load_state_dict(first.state_dict())
    train(second, 4)
    assert second.seconds == 12
    # Steps 2, 4, 6 and 8: 3 clips on 2 devices every 2 seconds.
    assert logged == [("train/videos_per_s", 3.0)] * 4
    assert module.step_metrics == {"train/videos_per_s": 3.0}, "what LossLog takes to the logger"


class Recorder(DummyLogger):
    def __init__(self):
        super().__init__()
        self.losses = {}

    def log_metrics(self, metrics, step=None):
        assert metrics["train/grad_norm"] > 0
        self.losses.setdefault(step, []).append(metrics["train/loss"])


class Losing(LitNetwork):
    """Its loss at each step, counted from 0, is a little more than the step."""

    def __init__(self):
        super().__init__(Training(log_every=3, warmup_steps=1), seed=0)
        self.layer = torch.nn.Linear(1, 1)
        self.kept = []

    def training_step(self, x, batch_idx):
        loss = self.global_step + 0.01 * self.layer(x).square().mean()
        self.keep_for_log(lambda: self.kept.append(self.global_step) or {"train/loss": loss})
        return loss


def train_losing(steps, *used, ckpt_path=None):
    """The losses logged by step, and the steps of which any were kept. An epoch has 7 steps."""
    module, logger = Losing(), Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        callbacks=[LossLog(every=3), *used],
        logger=logger,
        log_every_n_steps=3,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(torch.ones(7, 1)), ckpt_path=ckpt_path)
    logged = {step: [int(loss) for loss in losses] for step, losses in logger.losses.items()}
    return logged, module.kept


def test_only_every_third_step_is_kept_and_logged_and_each_as_itself():
    assert train_losing(13) == ({2: [2], 5: [5], 8: [8], 11: [11]}, [2, 5, 8, 11])


def test_a_step_at_which_training_is_stopped_is_not_logged_with_the_losses_of_another():
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 8

    assert train_losing(100, Stop()) == ({2: [2], 5: [5]}, [2, 5])


@pytest.mark.parametrize(("saved_at", "logged"), [(5, {5: [5], 8: [8]}), (6, {5: [5], 8: [8]}), (9, {8: [8]})])
def test_a_resumed_training_logs_what_the_checkpoint_may_have_been_too_late_for(tmp_path, saved_at, logged):
    path = tmp_path / "last.ckpt"
    train_losing(saved_at, LastCheckpoint(path, every=100, experiment={}))
    assert train_losing(10, ckpt_path=path)[0] == logged


def test_film_strip_puts_frames_side_by_side():
    video = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 4, 5)
    strip = film_strip(video)
    assert strip.shape == (4, 15, 1)
    assert strip.dtype == np.uint8
    assert strip[0, :, 0].tolist() == [0] * 5 + [128] * 5 + [255] * 5


def test_pictures_are_logged_one_strip_a_clip():
    logged = {}
    logger = SimpleNamespace(log_image=lambda name, sheets, step: logged.update({name: (sheets, step)}))
    trainer = SimpleNamespace(
        sanity_checking=False,
        is_global_zero=True,
        logger=logger,
        global_step=12,
        datamodule=SimpleNamespace(validation_clips=lambda count: torch.zeros(count, 2, 1, 8, 8)),
    )
    module = SimpleNamespace(device="cpu", pictures=lambda x: {"sample": x})
    Pictures(videos=3).on_validation_epoch_end(trainer, module)
    ((name, (sheets, step)),) = logged.items()
    assert (name, step, [sheet.shape for sheet in sheets]) == ("pictures/sample", 12, [(8, 16, 1)] * 3)
