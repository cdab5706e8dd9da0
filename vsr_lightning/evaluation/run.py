"""`sweep` and `evaluate`: from a grid of conditions to a folder of results, on any devices, in any number of goes."""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsr_lightning import processes, runs, wandb_logger
from vsr_lightning.conditions import CONDITION
from vsr_lightning.data.clips import to_video
from vsr_lightning.errors import NothingRestored, UserError
from vsr_lightning.evaluation import results, videos, wandb_run
from vsr_lightning.evaluation.clock import Clock, tell
from vsr_lightning.evaluation.grid import first_look
from vsr_lightning.evaluation.inventory import take_inventory
from vsr_lightning.evaluation.job import Job, prepare
from vsr_lightning.evaluation.restoring import restore_missing
from vsr_lightning.evaluation.results import Row
from vsr_lightning.experiment import Experiment
from vsr_lightning.metrics import scores
from vsr_lightning.targets import build

Instances = list[tuple[Row, np.ndarray]]  # of a video under a condition: rows, and what was restored, (F, H, W, C)

MEANS_AT_ONCE = 8  # what their scores take stays in the caches of a CPU; 32 take twice as long


def sweep(experiment: Experiment, limit: int | None = None) -> Path:
    """Restore every item of the grid that the run folder lacks, then write its tables, figures and W&B run.

    With a `limit`, restore no more items than that: a first look at every condition.
    """
    processes.end_with_parent()
    started = time.time()
    job = prepare(experiment)
    folder = job.find_folder()  # refuses rows of another prior before the folder is said to be of this one
    runs.keep_precision(experiment)
    wandb_logger.logging_mode(experiment)  # told before anything is written
    with results.RowWriter(folder, processes.rank()) as rows:  # before all else: another process may be at work here
        runs.open_run(experiment, "sweep", job.inputs)
        held = take_inventory(folder)
        missing = first_look(job.missing(held), limit)
        if held.damaged and processes.rank() == 0:
            print(*held.damaged, sep="\n", file=sys.stderr)
        logger = _make_logger(job, folder) if missing else None
        clock = Clock()
        # Others may find something missing where this process does not, and would wait for it for ever.
        if missing or processes.has_fellows(experiment):
            clock = restore_missing(job, missing, held, folder, rows)
        if processes.rank() == 0:
            videos.remove_unfinished(folder, since=started)
            _conclude(job, folder, logger, clock)
            tell(folder, clock.seconds)
    return folder


def _conclude(job: Job, folder: Path, logger: Any, clock: Clock) -> None:
    rows = results.read_rows(folder)
    print(f"{folder}: {_progress(rows, len(job.items))}")
    if not rows:
        return
    clock.end("tables")
    device = "cuda" if processes.uses_gpu(job.experiment) else "cpu"
    results.write_means(folder, measure_means(folder, rows, job.clips, device))
    clock.end("means")
    results.write_tables(folder, rows)
    videos.merge_clips(folder)
    clock.end("tables")
    figures = make_figures(job.experiment, folder)
    clock.end("figures")
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
    clock.end("wandb")


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


def measure_means(folder: Path, rows: list[Row], clips: Dataset[Tensor], device: str = "cpu") -> list[Row]:
    """Scores of the mean over a video's noise instances, an estimate of the posterior mean, by video and condition."""
    restored = videos.load_restored(folder)
    groups: dict[tuple, Instances] = {}
    for row in rows:
        if row["status"] == "ok" and (key := results.item_key(row)) in restored:
            groups.setdefault(results.video_key(row), []).append((row, restored[key]))
    samples = [*groups.values()]
    truth = {video: clips[video] for video in {group[0][0]["video"] for group in samples}}
    chunks = [samples[start : start + MEANS_AT_ONCE] for start in range(0, len(samples), MEANS_AT_ONCE)]
    return [mean for chunk in chunks for mean in _score_means(chunk, truth, device)]


@torch.no_grad()
def _score_means(groups: list[Instances], truth: dict[int, Tensor], device: str) -> list[Row]:
    rows = [group[0][0] for group in groups]
    means = np.stack([np.mean([video for _, video in group], axis=0, dtype=np.float32) for group in groups])
    x_hat, x = torch.from_numpy(means), torch.stack([truth[row["video"]] for row in rows])
    measured = scores(to_video(x_hat.to(device)), to_video(x.to(device)))
    columns = {f"{name}_of_mean": values.tolist() for name, values in measured.items()}
    return [
        {column: row[column] for column in (*CONDITION, "video")}
        | {name: values[index] for name, values in columns.items()}
        | {"n_samples": len(group)}
        for index, (row, group) in enumerate(zip(rows, groups, strict=True))
    ]
