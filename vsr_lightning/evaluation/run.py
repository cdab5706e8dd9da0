"""`sweep` and `evaluate`: from a grid of conditions to a folder of results, on any devices, in any number of goes."""

import math
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from vsr_lightning import processes, runs, wandb_logger
from vsr_lightning.conditions import CONDITION, Item
from vsr_lightning.data.clips import to_uint8, to_video
from vsr_lightning.errors import NothingRestored, UserError
from vsr_lightning.evaluation import results, videos, wandb_run
from vsr_lightning.evaluation.grid import GridDataset, batches_of_rank, first_look, frames_of
from vsr_lightning.evaluation.inventory import Inventory, take_inventory
from vsr_lightning.evaluation.job import Job, prepare
from vsr_lightning.experiment import Experiment
from vsr_lightning.inference.lit_vsr import LitVSR, ObservationBatch, Restoration
from vsr_lightning.metrics import scores
from vsr_lightning.targets import build

RESTORED_AGAIN = "restored again, its first row stands"
COMPILE_FROM_STEPS = 1000  # sampler steps of a job: compilation takes about a minute

Row = dict[str, Any]


def sweep(experiment: Experiment, limit: int | None = None) -> Path:
    """Restore every item of the grid that the run folder lacks, then write its tables, figures and W&B run.

    With a `limit`, restore no more items than that: a first look at every condition.
    """
    processes.end_with_parent()
    started = time.time()
    job = prepare(experiment)
    job.find_folder()  # refuses rows of another prior before the folder is said to be of this one
    folder = runs.open_run(experiment, "sweep", job.inputs)
    with results.RowWriter(folder, processes.rank()) as rows:  # before reading: another process may be at work here
        held = take_inventory(folder)
        missing = first_look(job.missing(held), limit)
        if held.damaged and processes.rank() == 0:
            print(*held.damaged, sep="\n", file=sys.stderr)
        logger = _make_logger(job, folder) if missing else None
        # Others may find something missing where this process does not, and would wait for it for ever.
        if missing or processes.has_fellows(experiment):
            _restore(job, missing, held, folder, rows)
        if processes.rank() == 0:
            videos.remove_unfinished(folder, since=started)
            _conclude(job, folder, logger)
    return folder


def _restore(job: Job, missing: list[Item], held: Inventory, folder: Path, rows: results.RowWriter) -> None:
    """Restore items, or as many as the time allows, each row on disk as soon as its batch is done."""
    experiment, options = job.experiment, job.experiment.trainer
    from_reconstruction = experiment.grid.observe == "reconstruction"
    module = LitVSR(job.prior, job.degradation, job.samplers, from_reconstruction)
    module.allow_zero_length_dataloader_with_multiple_devices = True  # few items, many devices
    if _pays_to_compile(experiment, missing):
        module.compile_networks()
    callbacks: list[Callback] = [RowSink(job, held, folder, rows)]
    if options.progress:
        callbacks.append(SamplingProgress(folder))
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=processes.strategy(experiment),
        precision=processes.precision(experiment),
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
    with processes.interruptible():
        trainer.predict(module, datamodule=MissingItems(job, missing), return_predictions=False)
    trainer.strategy.barrier()


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
    """Writes what comes of each batch, and only then lets the next one begin.

    Of an item that was measured before, only what the folder lacks: its row stands, although on a GPU the restoration
    made again is not quite the one that it measures.
    """

    def __init__(self, job: Job, held: Inventory, folder: Path, rows: results.RowWriter) -> None:
        self.job, self.held, self.folder, self.rows = job, held, folder, rows

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Lightning's barriers before and after: every rank has read the folder, and none has written to it yet.
        if trainer.is_global_zero:
            videos.drop_unmeasured(self.folder, self.held.measured, self.held.clips)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clips = videos.ClipWriter(self.folder, trainer.global_rank)
        _end_when_told(trainer)  # again: Lightning has set handlers of its own

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Restoration,
        batch: ObservationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        items = _dataset(trainer).items_of(batch_idx)
        rows = [
            {**self.job.to_row(item), **measured, "status": status}
            for item, measured, status in zip(items, outputs.measured, outputs.status, strict=True)
        ]
        restored = to_uint8(outputs.x_hat.nan_to_num()).cpu().numpy()
        # Not the failed ones: what a later try restores must not have a rival.
        ok = [index for index, row in enumerate(rows) if row["status"] == "ok"]
        to_keep = [index for index in ok if self._lacks_clip(items[index], rows[index])]
        pictures = [to_uint8(video[to_keep]).cpu().numpy() for video in (outputs.y, batch.x, outputs.bicubic)]
        clips = []
        for index, observed, truth, bicubic in zip(to_keep, *pictures, strict=True):
            frames = frames_of(items[index], len(truth), self.job.experiment.seed)
            clips.append(videos.Clip(rows[index], observed, restored[index], truth, frames, bicubic))
        self.clips.append(clips)
        lacking = [index for index in ok if results.item_key(rows[index]) not in self.held.restored]
        if lacking:
            videos.save_restored(self.folder, [rows[index] for index in lacking], restored[lacking])
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
            self._before = results.count_rows(self.folder)
            self.bar = tqdm(
                total=sum(dataset.items_of(index)[0].steps for index in range(len(dataset))),
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {postfix[0]} restorations [{elapsed}<{remaining}]",
                postfix=[f"0/{len(dataset.items)}"],
                desc="sampling",
                mininterval=0.1 if sys.stderr.isatty() else 20.0,
                smoothing=0,  # batches differ: the mean over all of them foretells best
                dynamic_ncols=True,
            )
            pl_module.on_step = lambda: self.bar.update()

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._count(trainer)

    def _count(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            done = results.count_rows(self.folder) - self._before
            self.bar.postfix[0] = f"{done}/{len(_dataset(trainer).items)}"

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


def _conclude(job: Job, folder: Path, logger: Any) -> None:
    rows = results.read_rows(folder)
    print(f"{folder}: {_progress(rows, len(job.items))}")
    if not rows:
        return
    results.write_means(folder, measure_means(folder, rows, job.clips))
    results.write_tables(folder)
    videos.merge_clips(folder)
    figures = make_figures(job.experiment, folder)
    print(results.format_summary(results.read_table(folder / "summary.csv")))
    for path in [folder / "summary.csv", *figures]:
        print(path)
    pictures = [path for path in figures if path.suffix == ".png"]
    log = wandb_run.ResultsLog(job.experiment, folder, pictures, complete=len(rows) >= len(job.items))
    if log.has_news:
        logger = logger or _make_logger(job, folder)  # an earlier go may have ended before it logged
    if logger is not None:
        log.write_to(logger.experiment)
        wandb_logger.close_logger(logger)
        log.remember()


def _make_logger(job: Job, folder: Path) -> Any:
    return wandb_logger.make_logger(job.experiment, folder, "sweep", [*job.inputs.values()], job.prior.card)


def _progress(rows: list[Row], total: int) -> str:
    """How much of a sweep is done, what failed, and what the same command would do."""
    failed = [row for row in rows if row["status"] != "ok"]
    told, does = f"{len(rows) - len(failed)} of {total} restorations", []
    if len(rows) < total:
        does.append("goes on")
    if failed:
        told += f", {len(failed)} failed ({_reason(failed)})"
        does.append("tries them again")
    return f"{told}; the same command {' and '.join(does)}" if does else told


def _reason(failed: list[Row]) -> str:
    """Why restorations failed; of several reasons the most frequent one, and how often."""
    (reason, count), *others = Counter(row["status"] for row in failed).most_common()
    return f"{count} of them: {reason}" if others else reason


def check_restored(folder: Path) -> None:
    """Raise NothingRestored if every restoration in a run folder failed.

    Only in the first process: the others leave it to tell, and it would be stopped when one of them ends in an error.
    """
    if processes.rank() != 0:
        return
    rows = results.read_rows(folder)
    if rows and all(row["status"] != "ok" for row in rows):
        raise NothingRestored(f"{folder}: all restorations failed ({_reason(rows)}); the same command tries them again")


def make_figures(experiment: Experiment, folder: Path) -> list[Path]:
    """Draw the experiment's figures from the run folder's files."""
    if not (folder / "results.csv").exists():
        raise UserError(f"{folder}: has no results.csv; run `sweep` or `evaluate` first")
    paths: list[Path] = []
    for target in experiment.figures:
        paths += build({"target": target}, "figures", run_dir=folder)()
    return paths


@torch.no_grad()
def measure_means(folder: Path, rows: list[Row], clips: Dataset[Tensor]) -> list[Row]:
    """Scores of the mean over a video's noise instances, an estimate of the posterior mean, by video and condition."""
    restored = videos.load_restored(folder)
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok" and results.item_key(row) in restored:
            groups.setdefault((results.condition_key(row), row["video"]), []).append(row)
    means = []
    for (_, video), members in groups.items():
        samples = np.stack([restored[results.item_key(row)] for row in members]).astype(np.float32)
        mean = to_video(torch.from_numpy(samples.mean(axis=0)))[None]
        measured = scores(mean, to_video(clips[video])[None])
        condition = {column: members[0][column] for column in CONDITION}
        of_mean = {f"{name}_of_mean": value.item() for name, value in measured.items()}
        means.append({**condition, "video": video, **of_mean, "n_samples": len(members)})
    return means
