"""What training does beside the loss: weight average, checkpoint to resume from, pictures, throughput, progress."""

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from einops import rearrange
from lightning.pytorch.callbacks import Callback, TQDMProgressBar, WeightAveraging
from torch import Tensor

from vsr_lightning import files, wandb_logger
from vsr_lightning.data.clips import to_uint8
from vsr_lightning.training.optimisation import LitNetwork


class EMA(WeightAveraging):
    """Exponential moving average whose decay grows as (1 + n) / (10 + n) up to `decay`: short runs forget their start.

    Lives on the training device: set up before the model is moved, it would otherwise stay on the CPU.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
            assert self._average_model is not None
            n = float(self._average_model.n_averaged)  # not the argument, which has been moved to the device
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(use_buffers=False, multi_avg_fn=torch.no_grad()(average))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:  # the counter stays on the CPU: reading it must not wait for the GPU
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the average in place: the posterior check and the pictures come after this hook."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)  # the trained weights again


class LastCheckpoint(Callback):
    """Saves `checkpoints/last.ckpt` regularly, at the end, and when the time is up: all that an exact resume needs.

    Written before Lightning puts the averaged weights in place of the trained ones, which happens when training
    ends for whatever reason.
    """

    def __init__(self, path: Path, every: int, experiment: dict[str, Any], max_minutes: float = 0.0) -> None:
        self.path, self.every, self.experiment = path, every, experiment
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        out_of_time = self._out_of_time(trainer, step)
        if out_of_time:
            trainer.should_stop = True
        if step % self.every == 0 or step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == trainer.max_steps or trainer.should_stop:
            self._save(trainer)  # again, with the final scores

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # For the card: how good the network is, and what it took. For resuming: whose checkpoint this is.
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        checkpoint |= {"metrics": scores, "devices": trainer.world_size, "experiment": self.experiment}

    def _out_of_time(self, trainer: L.Trainer, step: int) -> bool:
        if self._deadline is None or step % 10:
            return False
        # Clocks differ: rank 0 decides for all.
        return trainer.strategy.broadcast(time.monotonic() > self._deadline)

    def _save(self, trainer: L.Trainer) -> None:
        writing = files.replacing(self.path) if trainer.is_global_zero else nullcontext(self.path)
        with writing as path:
            trainer.save_checkpoint(path)  # every rank takes part, the first one writes


class LossLog(Callback):
    """Logs what the module kept of every so many steps, without a gap where a training is killed and resumed.

    The last step before a checkpoint is logged after it, so the checkpoint keeps its metrics, and the resumed run logs
    them (perhaps again). Those of earlier steps are on disk before the checkpoint is.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._last: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: LitNetwork, *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step % self.every == 0:
            self._last = {name: float(value) for name, value in pl_module.step_metrics.items()}
            pl_module.step_metrics = {}
            self._log(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["last_log"] = self._last if trainer.global_step % self.every == 0 else {}
        wandb_logger.wait_for_log(trainer.logger)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last = checkpoint.get("last_log", {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer)

    def _log(self, trainer: L.Trainer) -> None:
        if self._last and trainer.logger is not None:
            trainer.logger.log_metrics(self._last, step=trainer.global_step - 1)


class Throughput(Callback):
    """Measures videos/s, and counts the seconds of training over all resumed parts; ends it when `max_seconds` are up.

    The first step of each part compiles the networks, and does not count. To come before `LossLog`.
    """

    def __init__(self, every: int, max_seconds: float = 0.0) -> None:
        self.every, self.max_seconds = every, max_seconds
        self.seconds = 0.0
        self._videos = 0
        self._since = 0.0  # `seconds` when the counting of `_videos` began
        self._mark: float | None = None  # when the last step ended

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark, self._videos, self._since = None, 0, self.seconds

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: LitNetwork, outputs: Any, batch: Tensor, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._mark is not None:
            self.seconds += now - self._mark
            self._videos += len(batch) * trainer.world_size
        self._mark = now
        if trainer.global_step % self.every == 0 and self._videos:
            rate = self._videos / (self.seconds - self._since)
            pl_module.log("train/videos_per_s", rate, prog_bar=True, logger=False, rank_zero_only=True)
            pl_module.step_metrics["train/videos_per_s"] = rate
            self._videos, self._since = 0, self.seconds
        if self.max_seconds and (trainer.world_size == 1 or trainer.global_step % 10 == 0):
            # Clocks differ: rank 0 decides for all.
            trainer.should_stop |= trainer.strategy.broadcast(self.seconds >= self.max_seconds)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.monotonic()  # validation is no training time

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class Pictures(Callback):
    """After each validation, logs the module's `pictures(x)` of a few validation clips: one row of frames a clip."""

    def __init__(self, videos: int = 4) -> None:
        self.videos = videos

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = trainer.logger
        if trainer.sanity_checking or logger is None or not hasattr(logger, "log_image") or not trainer.is_global_zero:
            return
        clips = trainer.datamodule.validation_clips(self.videos).to(pl_module.device)  # type: ignore[attr-defined]
        for name, videos in pl_module.pictures(clips).items():  # type: ignore[operator]
            sheets = [film_strip(video) for video in videos]
            logger.log_image(f"pictures/{name}", sheets, step=trainer.global_step)


def film_strip(video: Tensor) -> Any:
    """Frames side by side: (F, C, H, W) in [-1, 1] -> uint8 array (H, F W, C), which W&B shows as it is."""
    return rearrange(to_uint8(video), "f h w c -> h (f w) c").cpu().numpy()


class Progress(TQDMProgressBar):
    """A bar over all steps of the run, which a resumed run enters where it left off."""

    def __init__(self, every: int) -> None:
        super().__init__(refresh_rate=1 if sys.stderr.isatty() else every)  # a log file is no terminal

    @property
    def total_train_batches(self) -> int:
        return self.trainer.max_steps

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description("train")

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}
