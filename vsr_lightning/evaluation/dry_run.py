"""What a sweep would do, told without doing it: its grid, what is done and missing, and what that takes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from itertools import chain
from pathlib import Path
from statistics import median

import yaml

from vsr_lightning import files, processes, provenance, runs
from vsr_lightning.conditions import CONDITION, Item
from vsr_lightning.errors import UserError
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.grid import batches_of_rank, first_look
from vsr_lightning.evaluation.inventory import take_inventory
from vsr_lightning.evaluation.job import Job, prepare
from vsr_lightning.evaluation.results import Row
from vsr_lightning.experiment import Experiment

SHIPPED = Path("experiments/results")  # of the repository, where commands are given
ROW_BYTES = 1500  # of an item in its row file and in results.csv


def dry_run(experiment: Experiment, limit: int | None = None) -> str:
    """The plan of a sweep as text; nothing is written. Raises UserError, as the sweep itself would.

    One process plans for all, so that several machines need no launcher here.
    """
    job = prepare(experiment, launched=False)
    folder = job.find_folder()
    runs.keep_precision(experiment)
    held = take_inventory(folder)
    missing = job.missing(held)
    now = first_look(missing, limit)
    lines = [
        f"{folder}: {len(job.items)} restorations, {len(job.items) - len(missing)} done, {len(missing)} missing",
        _table(job, missing),
        f"now: {len(now)} restorations" + (f" (--limit {limit})" if limit is not None else ""),
        f"batches of at most {experiment.trainer.batch_size}, by device: {_batches(experiment, now)}",
        f"time: {_time(job, now)}",
        f"disk: at most {files.size_in_words(_disk_bytes(job, now))}",
        *held.damaged,
    ]
    return "\n".join(lines)


def _table(job: Job, missing: list[Item]) -> str:
    """One line a condition: what varies, and how many of its items are done and missing."""
    total = Counter(results.condition_key(job.to_row(item)) for item in job.items)
    left = Counter(results.condition_key(job.to_row(item)) for item in missing)
    conditions = [dict(zip(CONDITION, key, strict=True)) for key in total]
    varying = results.varying_columns(conditions)
    lines = [[*varying, "done", "missing"]]
    for key, condition in zip(total, conditions, strict=True):
        lines.append([str(condition[column]) for column in varying] + [str(total[key] - left[key]), str(left[key])])
    return results.align(lines)


def _batches(experiment: Experiment, items: list[Item]) -> str:
    size, world = experiment.trainer.batch_size, processes.world_size(experiment)
    return ", ".join(str(len(batches_of_rank(items, size, rank, world))) for rank in range(world))


def _time(job: Job, items: list[Item]) -> str:
    """An estimate from sampler steps measured with this prior on this hardware, compilation and loading left out.

    A sampler that was not measured is taken to be as fast as the others.
    """
    if not items:
        return "none, nothing is missing"
    samplers = {item.sampler for item in items}
    measured = _measured(job, samplers)
    if not measured:
        where = f"with {job.fixed['prior']} on this hardware ({provenance.hardware()})"
        return f"unknown, nothing was measured yet {where}; a first look does, as --limit {_first_look(job)}"
    # The median: start-up, and a last batch that is not full, weigh on a few.
    rates = dict.fromkeys(samplers, median(chain.from_iterable(measured.values())))
    rates |= {sampler: median(seconds) for sampler, seconds in measured.items()}
    world = processes.world_size(job.experiment)
    shares = [batches_of_rank(items, job.experiment.trainer.batch_size, rank, world) for rank in range(world)]

    def seconds_of(batch: list[int]) -> float:
        item = items[batch[0]]  # a batch has one sampler and number of steps
        return rates[item.sampler] * item.steps * _computed_size(job.experiment, len(batch))

    longest = max(sum(map(seconds_of, share)) for share in shares)
    count = sum(map(len, measured.values()))
    others = ", ".join(sorted(samplers - measured.keys()))
    note = f"; none of {others}, taken to be as fast" if others else ""
    return f"about {_duration(longest)}, by {count} restorations measured on this hardware{note}"


def _measured(job: Job, samplers: Set[str]) -> dict[str, list[float]]:
    """Seconds of a step by sampler: of those of `samplers` that were measured, or of others if none was."""
    measured: dict[str, list[float]] = defaultdict(list)
    for folder in (Path(job.experiment.runs_dir), SHIPPED):
        if not samplers <= measured.keys():  # thousands of rows are not read for nothing
            for sampler, seconds in _seconds_per_step(job, folder):
                measured[sampler].append(seconds)
    return {sampler: measured[sampler] for sampler in measured.keys() & samplers} or measured


def _first_look(job: Job) -> int:
    """Restorations that fill a batch on each device."""
    return job.experiment.trainer.batch_size * processes.world_size(job.experiment)


def _computed_size(experiment: Experiment, size: int) -> int:
    """The items that a batch of so many takes the time of: on a GPU it is padded to one shape."""
    return experiment.trainer.batch_size if processes.uses_gpu(experiment) else size


def _seconds_per_step(job: Job, folder: Path) -> Iterator[tuple[str, float]]:
    """Sampler, and seconds of its step for one item of a full batch, of every run that is somewhere in a folder."""
    precision = processes.precision(job.experiment, "sweep")
    for meta_path in sorted(folder.glob("**/meta.json")):
        if _machines(meta_path) != {(provenance.hardware(), precision)}:
            continue
        rows = [row for row in _readable_rows(meta_path.parent) if _is_alike(row, job)]
        shares = _shares_of_full_batch(rows, meta_path.parent, job.experiment)
        yield from (
            (row["sampler"], row["seconds"] / row["steps"] * share) for row, share in zip(rows, shares, strict=True)
        )


def _shares_of_full_batch(rows: list[Row], folder: Path, experiment: Experiment) -> list[float]:
    """How full each row's batch was, of what it took the time of; 1 on a CPU, which pads none."""
    full = _stored_batch_size(folder) if processes.uses_gpu(experiment) else None
    if full is None:
        return [1.0] * len(rows)
    together = Counter(row["seconds"] for row in rows)  # the rows of a batch, which share its time equally
    return [min(1.0, together[row["seconds"]] / full) for row in rows]


def _stored_batch_size(folder: Path) -> int | None:
    try:
        return int(yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["batch_size"]) or None
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return None


def _readable_rows(folder: Path) -> list[Row]:
    """The rows of a folder, none if they cannot be read: what is damaged in another run does not matter here."""
    try:
        return results.read_rows(folder) or results.read_table(folder / "results.csv")
    except (OSError, UserError):
        return []


def _is_alike(row: Row, job: Job) -> bool:
    same = row.get("prior") == job.fixed["prior"] and isinstance(row.get("sampler"), str)
    numbers = isinstance(row.get("seconds"), int | float) and isinstance(row.get("steps"), int) and row["steps"] > 0
    return same and numbers and row.get("status") == "ok"


def _machines(meta_path: Path) -> set[tuple[str, str]]:
    """Hardware and precision of all goes of a run, as its rows do not say which go they are of."""
    try:
        meta = json.loads(meta_path.read_text())
        goes = (meta, *meta.get("resumed", []))
        return {(go.get("hardware", ""), runs.precision_of(go)) for go in goes}
    except (OSError, ValueError, AttributeError, TypeError):
        return set()


def _disk_bytes(job: Job, items: list[Item]) -> int:
    """Bytes of the files to come, as if videos could not be compressed: every restoration, and the clips to look at."""
    video = math.prod(job.prior.video_shape)
    clips = sum(3 * video + video // item.factor**2 for item in items if job.keeps_clip(item))
    return len(items) * (video + ROW_BYTES) + 2 * clips  # kept by each rank, and gathered


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
