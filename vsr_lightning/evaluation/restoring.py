"""The restorations that a sweep lacks, by `Trainer.predict`: which device makes which, and how they reach the disk."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from vsr_lightning import processes
from vsr_lightning.conditions import Item
from vsr_lightning.data.clips import to_uint8
from vsr_lightning.evaluation import results, videos
from vsr_lightning.evaluation.clock import Clock
from vsr_lightning.evaluation.grid import GridDataset, batches_of_rank, frames_of
from vsr_lightning.evaluation.inventory import Inventory
from vsr_lightning.evaluation.job import Job
from vsr_lightning.evaluation.results import Row
from vsr_lightning.experiment import Experiment
from vsr_lightning.inference.lit_vsr import LitVSR, ObservationBatch, Restoration

RESTORED_AGAIN = "restored again, its first row stands"
COMPILE_FROM_STEPS = 1000  # sampler steps of a job: compilation takes about a minute
WRITE_AFTER_STEPS = 5  # of the next batch


def restore_missing(job: Job, missing: list[Item], held: Inventory, folder: Path, rows: results.RowWriter) -> Clock:
    """Restore items, or as many as the time allows; rows reach the disk while the batch after theirs is sampled."""
    experiment, options = job.experiment, job.experiment.trainer
    from_reconstruction = experiment.grid.observe == "reconstruction"
    module = LitVSR(job.prior, job.degradation, job.samplers, from_reconstruction)
    module.allow_zero_length_dataloader_with_multiple_devices = True  # few items, many devices
    precision = processes.precision(experiment, "sweep")
    if _pays_to_compile(experiment, missing):
        module.compile_networks(torch.bfloat16 if precision == "bf16-mixed" else None)
    sink, clock = RowSink(job, held, folder, rows), Clock()
    callbacks: list[Callback] = [sink]
    if options.progress:
        callbacks.append(SamplingProgress(folder))
    callbacks.append(clock)
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=processes.strategy(experiment),
        precision=precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,  # it repeats samples to even out the ranks
        inference_mode=False,  # guidance takes gradients
        deterministic=options.deterministic,
        benchmark=not options.deterministic,  # batches have one shape
    )
    _end_when_told(trainer)
    processes.announce_to_children(experiment)
    with processes.interruptible(), contextlib.closing(sink):
        trainer.predict(module, datamodule=MissingItems(job, missing), return_predictions=False)
    clock.end("rows")
    trainer.strategy.barrier()
    if trainer.world_size > 1:
        clock.end("waiting")
    return clock


def _pays_to_compile(experiment: Experiment, items: list[Item]) -> bool:
    options = experiment.trainer
    if options.compile != "auto":
        return options.compile == "always"
    batches = batches_of_rank(items, options.batch_size, 0, processes.world_size(experiment))
    steps = sum(items[batch[0]].steps for batch in batches)
    return processes.uses_gpu(experiment) and steps >= COMPILE_FROM_STEPS


class MissingItems(L.LightningDataModule):
    """The batches of each rank, of the items that rank 0 found missing."""

    def __init__(self, job: Job, items: list[Item]) -> None:
        super().__init__()
        self.job, self.items = job, items

    def setup(self, stage: str) -> None:
        """Agree on the items: the file system of another machine may show the rows of an earlier go late."""
        assert self.trainer is not None
        self.items = self.trainer.strategy.broadcast(self.items)

    def predict_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        experiment, options = self.job.experiment, self.job.experiment.trainer
        batches = batches_of_rank(self.items, options.batch_size, self.trainer.global_rank, self.trainer.world_size)
        pad_to = options.batch_size if processes.uses_gpu(experiment) else None  # one shape, one set of kernels
        dataset = GridDataset(self.items, batches, self.job.clips, experiment.seed, pad_to)
        return DataLoader(dataset, batch_size=None, sampler=UntilTimeIsUp(len(dataset), options.max_minutes))


class UntilTimeIsUp(Sampler[int]):
    """Indices 0 … count-1 in turn, at least one, but none after so many minutes (0: no limit).

    Lightning's prediction loop does not look at `trainer.should_stop`. Ranks do not wait for each other, so each
    stops by itself.
    """

    def __init__(self, count: int, max_minutes: float) -> None:
        self.count = count
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else math.inf

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        for index in range(self.count):
            if index > 0 and time.monotonic() > self._deadline:
                return
            yield index


class RowSink(Callback):
    """Writes what comes of each batch, in a thread of its own: compression and disk need not keep the device waiting.

    It begins when the next batch's first steps are on their way: by then a GPU has work for a while, and no longer
    waits for this process, of whose threads one runs at a time. A batch is on disk before the second one after it
    begins, so a kill costs a device at most two. Of an item that was measured before, only what the folder lacks: its
    row stands, although on a GPU the restoration made again is not quite the one that it measures.
    """

    def __init__(self, job: Job, held: Inventory, folder: Path, rows: results.RowWriter) -> None:
        self.job, self.held, self.folder, self.rows = job, held, folder, rows
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._latest: Callable[[], None] | None = None  # writes the latest batch, until that has begun
        self._written: Future[None] | None = None  # what has begun, until it has been waited for
        self._steps = 0  # of this batch

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning's barriers before and after: every rank has read the folder, and none has written to it yet.
        if trainer.is_global_zero:
            videos.drop_unmeasured(self.folder, self.held.measured, self.held.clips)

    def on_predict_start(self, trainer: L.Trainer, pl_module: LitVSR) -> None:  # type: ignore[override]
        self.clips = videos.ClipWriter(self.folder, trainer.global_rank)
        pl_module.step_listeners.append(self._on_step)
        _end_when_told(trainer)  # again: Lightning has set handlers of its own

    def on_predict_batch_start(self, *_: Any) -> None:
        self._steps = 0

    def _on_step(self) -> None:
        self._steps += 1
        if self._steps == WRITE_AFTER_STEPS:
            self._begin()

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Restoration,
        batch: ObservationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._wait()
        items = _dataset(trainer).items_of(batch_idx)
        rows = [
            {**self.job.to_row(item), **measured, "status": status}
            for item, measured, status in zip(items, outputs.measured, outputs.status, strict=True)
        ]
        restored = to_uint8(outputs.x_hat.nan_to_num()).cpu().numpy()
        # Not the failed ones: what a later try restores must not have a rival.
        ok = [index for index, row in enumerate(rows) if row["status"] == "ok"]
        to_keep = [index for index in ok if self._lacks_clip(items[index], rows[index])]
        to_show = outputs.y[to_keep], batch.clips[batch.clip_of[to_keep]], outputs.bicubic[to_keep]
        pictures = [to_uint8(each).cpu().numpy() for each in to_show]
        clips = []
        for index, observed, truth, bicubic in zip(to_keep, *pictures, strict=True):
            frames = frames_of(items[index], len(truth), self.job.experiment.seed)
            clips.append(videos.Clip(rows[index], observed, restored[index], truth, frames, bicubic))
        lacking = [index for index in ok if results.item_key(rows[index]) not in self.held.restored]
        self._latest = partial(self._write, rows, clips, lacking, restored[lacking])

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()  # before Lightning ends the process: whoever catches the exception closes the files
        if self._written is not None and (error := self._written.exception()) not in (None, exception):
            print(f"error: {error}", file=sys.stderr)

    def close(self) -> None:
        """Wait until all is written; for however the run ends."""
        self._begin()
        self._writer.shutdown(wait=True)

    def _begin(self) -> None:
        """Begin to write the latest batch, unless that has begun."""
        write, self._latest = self._latest, None  # in this order: an interruption must not write it twice
        if write is not None:
            self._written = self._writer.submit(write)

    def _wait(self) -> None:
        """Until the latest batch is on disk. Raises what went wrong with it."""
        self._begin()
        if self._written is not None:
            self._written.result()
        self._written = None  # only now: an interruption while it waits must not lose sight of what is being written

    def _write(self, rows: list[Row], clips: list[videos.Clip], lacking: list[int], restored: np.ndarray) -> None:
        """Clips and restorations (of the rows `lacking`), then the rows."""
        self.clips.append(clips)
        if lacking:
            videos.save_restored(self.folder, [rows[index] for index in lacking], restored)
        self.rows.append([self._to_log(row) for row in rows])

    def _lacks_clip(self, item: Item, row: Row) -> bool:
        return self.job.keeps_clip(item) and results.video_key(row) not in self.held.clips

    def _to_log(self, row: Row) -> Row:
        """The row to write: for an item that has one, no rival to it."""
        again = row["status"] == "ok" and results.item_key(row) in self.held.measured
        return row | {"status": RESTORED_AGAIN} if again else row


def _end_when_told(trainer: L.Trainer) -> None:
    """On SIGTERM, end this process, and those that the trainer has started, at once: what is on disk is whole.

    Lightning only takes note of SIGTERM, and its prediction loop never looks.
    """

    def end(signum: int, _: Any) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signum)
        signal.signal(signum, signal.SIG_DFL)
        signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


class SamplingProgress(Callback):
    """A bar over the sampler steps of the first device, whose share takes about as long as every other's.

    Beside it, the restorations of all devices: their rows on disk since the bar began.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_predict_start(self, trainer: L.Trainer, pl_module: LitVSR) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            dataset = _dataset(trainer)
            self._rows = results.NewRows(self.folder)
            self.bar = tqdm(
                total=sum(dataset.items_of(index)[0].steps for index in range(len(dataset))),
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix[0]} restorations [{elapsed}<{remaining}]",
                postfix=[f"0/{len(dataset.items)}"],
                desc="sampling",
                mininterval=0.1 if sys.stderr.isatty() else 20.0,
                smoothing=0,  # batches differ: the mean over all of them foretells best
                dynamic_ncols=True,
            )
            pl_module.step_listeners.append(lambda: self.bar.update())

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._count(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            self.bar.postfix[0] = f"{self._rows.count()}/{len(_dataset(trainer).items)}"

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count(trainer)  # other devices may have written more
        if trainer.is_global_zero:
            self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if bar := getattr(self, "bar", None):
            bar.close()  # so that what is told begins a line


def _dataset(trainer: L.Trainer) -> GridDataset:
    """What this rank restores."""
    return trainer.predict_dataloaders.dataset  # type: ignore[union-attr]
