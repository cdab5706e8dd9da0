"""`sweep` and `evaluate`: from a grid of conditions to a folder of results, on any devices, in any number of goes."""

import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from vsr_lightning import runs
from vsr_lightning.config import Experiment, UserError, build
from vsr_lightning.data.clips import ClipDataModule, to_uint8, to_video
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.grid import (
    GridDataset,
    Item,
    batches_of_rank,
    degradations,
    frames_of,
    grid_items,
    row_maker,
    widths,
)
from vsr_lightning.inference.lit_vsr import LitVSR, ObservationBatch, Restoration, check_frames
from vsr_lightning.metrics import scores
from vsr_lightning.models.prior import Prior, fingerprint, load_prior

COMPILE_FROM_STEPS = 1000  # sampler steps of a job: compilation takes about a minute

Row = dict[str, Any]


def sweep(experiment: Experiment) -> Path:
    """Restore every item of the grid that the run folder lacks, then write its tables, figures and W&B run."""
    runs.check_devices(experiment)
    prior = load_prior(experiment.prior)
    check_frames(prior, experiment.grid.num_frames)
    degradation = build(experiment.degradation, "degradation", Downsample)
    datamodule = build({"seed": experiment.seed, "batch_size": 1, **experiment.data}, "data", ClipDataModule)
    clips = _clips(datamodule, experiment, prior)
    items = grid_items(experiment.grid, experiment.sampler, degradation)
    sampler = _sampler(experiment)
    for steps in {item.steps for item in items}:
        prior.schedule.respaced(steps, **_time_grid(sampler))  # bad numbers are told before anything is written
    for variant in degradations(experiment.grid, degradation):
        variant.operator(widths(experiment.grid, variant), *prior.video_shape[-2:])
    fixed = _fixed_columns(experiment, datamodule, prior)
    to_row = row_maker(fixed)

    folder = runs.open_run(experiment, "sweep", {key: fixed[key] for key in ("prior", "dataset")})
    done = {results.item_key(row) for row in results.read_rows(folder) if row["status"] == "ok"}
    missing = [item for item in items if results.item_key(to_row(item)) not in done]
    logger = runs.make_logger(experiment, folder)
    if missing:
        _restore(experiment, LitVSR(prior, degradation, sampler), clips, missing, to_row, folder)
    if runs.rank() == 0:
        _conclude(experiment, folder, items, clips, logger)
    return folder


def _sampler(experiment: Experiment) -> Callable[..., Tensor]:
    """The sampler, its own parameters bound; `steps` and `zeta` come with each item."""
    section = {key: value for key, value in experiment.sampler.items() if key not in ("steps", "zeta")}
    if given := {"prior", "observation", "noise", "on_step"} & section.keys():
        raise UserError(f"sampler.{min(given)}: is given by the sweep; leave it out")
    return build(section, "sampler")


def _time_grid(sampler: Callable[..., Tensor]) -> dict[str, Any]:
    """How the sampler respaces the schedule, from its parameters or their defaults."""
    parameters = inspect.signature(sampler).parameters
    return {name: parameters[name].default for name in ("spacing", "start") if name in parameters}


def _restore(
    experiment: Experiment,
    module: LitVSR,
    clips: Dataset[Tensor],
    items: list[Item],
    to_row: Callable[[Item], Row],
    folder: Path,
) -> None:
    """Restore `items`, or as many as the time allows, each row on disk as soon as its batch is done."""
    options = experiment.trainer
    module.allow_zero_length_dataloader_with_multiple_devices = True  # few items, many devices
    batches_of = lambda rank: batches_of_rank(items, options.batch_size, rank, options.devices)  # noqa: E731
    steps = sum(items[batch[0]].steps for batch in batches_of(0))
    if options.compile == "always" or (
        options.compile == "auto" and runs.uses_gpu(experiment) and steps >= COMPILE_FROM_STEPS
    ):
        module.compile_networks()
    callbacks: list[Callback] = [
        RowSink(folder, items, batches_of, to_row, experiment.seed, experiment.grid.keep_videos)
    ]
    if options.progress:
        callbacks.append(SamplingProgress(steps))
    trainer = L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=runs.strategy(experiment),
        precision=runs.precision(experiment),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        use_distributed_sampler=False,  # it repeats samples to even out the ranks
        inference_mode=False,  # guidance takes gradients
    )
    pad_to = options.batch_size if runs.uses_gpu(experiment) else None  # one shape, one set of kernels
    dataset = GridDataset(items, batches_of(trainer.global_rank), clips, experiment.seed, pad_to)
    order = UntilTimeIsUp(len(dataset), options.max_minutes)
    trainer.predict(module, DataLoader(dataset, batch_size=None, sampler=order), return_predictions=False)
    trainer.strategy.barrier()


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
    """Writes what comes of each batch, and only then lets the next one begin."""

    def __init__(
        self,
        folder: Path,
        items: list[Item],
        batches_of: Callable[[int], list[list[int]]],
        to_row: Callable[[Item], Row],
        seed: int,
        keep_videos: int,
    ) -> None:
        self.folder, self.items, self.to_row, self.seed, self.keep_videos = folder, items, to_row, seed, keep_videos
        self._batches_of = batches_of

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank = trainer.global_rank
        self.batches = self._batches_of(rank)
        self.rows = results.RowWriter(self.folder, rank)
        self.clips = results.ClipWriter(self.folder, rank)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Restoration,
        batch: ObservationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        items = [self.items[i] for i in self.batches[batch_idx]]
        rows = [
            {**self.to_row(item), **measured, "status": status}
            for item, measured, status in zip(items, outputs.measured, outputs.status, strict=True)
        ]
        restored = to_uint8(outputs.x_hat.nan_to_num()).numpy()
        for index, item in enumerate(items):
            if item.video < self.keep_videos and item.noise == 0 and rows[index]["status"] == "ok":
                observed, truth, bicubic = (
                    to_uint8(video[index]).cpu().numpy() for video in (outputs.y, batch.x, outputs.bicubic)
                )
                frames = frames_of(item, len(truth), self.seed)
                self.clips.append(rows[index], observed, restored[index], truth, frames, bicubic)
        # Not the failed ones: what a later try restores must not have a rival.
        ok = [index for index, row in enumerate(rows) if row["status"] == "ok"]
        if ok:
            results.save_restored(self.folder, [rows[index] for index in ok], restored[ok])
        self.rows.append(rows)


class SamplingProgress(Callback):
    """A bar over the sampler steps of this device."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_predict_start(self, trainer: L.Trainer, pl_module: LitVSR) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            interval = 0.1 if sys.stderr.isatty() else 20.0
            self.bar = tqdm(total=self.steps, desc="sampling", unit="step", mininterval=interval, dynamic_ncols=True)
            pl_module.on_step = lambda: self.bar.update()

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self.bar.close()


def _conclude(
    experiment: Experiment,
    folder: Path,
    items: list[Item],
    clips: Dataset[Tensor],
    logger: Any,
) -> None:
    rows = results.read_rows(folder)
    goes_on = "" if len(rows) >= len(items) else "; the same command goes on"
    print(f"{folder}: {len(rows)} of {len(items)} restorations{goes_on}")
    if not rows:
        return
    results.write_means(folder, measure_means(folder, rows, clips))
    results.write_tables(folder)
    results.merge_clips(folder)
    figures = make_figures(experiment, folder)
    print(results.format_summary(results.read_table(folder / "summary.csv")))
    for path in [folder / "summary.csv", *figures]:
        print(path)
    if logger is not None:
        pictures = [path for path in figures if path.suffix == ".png"]
        results.log_results(logger.experiment, folder, pictures)
        runs.close_logger(logger)


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
    restored = results.load_restored(folder)
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["status"] == "ok" and results.item_key(row) in restored:
            groups.setdefault((results.condition_key(row), row["video"]), []).append(row)
    means = []
    for (_, video), members in groups.items():
        samples = np.stack([restored[results.item_key(row)] for row in members]).astype(np.float32)
        mean = to_video(torch.from_numpy(samples.mean(axis=0)))[None]
        measured = scores(mean, to_video(clips[video])[None])
        condition = {column: members[0][column] for column in results.CONDITION}
        of_mean = {f"{name}_of_mean": value.item() for name, value in measured.items()}
        means.append({**condition, "video": video, **of_mean, "n_samples": len(members)})
    return means


def _clips(datamodule: ClipDataModule, experiment: Experiment, prior: Prior) -> Dataset[Tensor]:
    clips = datamodule.val_clips() if experiment.grid.split == "val" else datamodule.test_clips()
    available = len(clips)  # type: ignore[arg-type]
    if experiment.grid.videos > available:
        raise UserError(
            f"grid.videos: {experiment.grid.videos} asked for, the {experiment.grid.split} split has {available}"
        )
    frames, height, width, channels = clips[0].shape
    if (frames, channels, height, width) != prior.video_shape:
        raise UserError(
            f"prior: {experiment.prior} makes videos {prior.video_shape} (F, C, H, W), "
            f"the data has {(frames, channels, height, width)}"
        )
    return clips


def _fixed_columns(experiment: Experiment, datamodule: ClipDataModule, prior: Prior) -> Row:
    return {
        "sampler": experiment.sampler["target"].rpartition(".")[2].removesuffix("_sample"),
        "seed": experiment.seed,
        "prior": f"{prior.card.get('name', 'prior')}@{fingerprint(experiment.prior)}",
        "dataset": datamodule.clips_name(experiment.grid.split),
    }
