"""What a sweep would do, told without doing it: its grid, what is done and missing, and what that takes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from vsr_lightning import runs
from vsr_lightning.config import Experiment
from vsr_lightning.evaluation import results
from vsr_lightning.evaluation.grid import Item, batches_of_rank, first_look
from vsr_lightning.evaluation.inventory import take_inventory
from vsr_lightning.evaluation.job import Job, Row, prepare

ROW_BYTES = 1500  # of an item in its row file and in results.csv


def dry_run(experiment: Experiment, limit: int | None = None) -> str:
    """The plan of a sweep as text; nothing is written. Raises UserError, as the sweep itself would."""
    job = prepare(experiment)
    folder = runs.find_run(experiment, "sweep", job.inputs)
    held = take_inventory(folder)
    missing = job.missing(held)
    now = first_look(missing, limit)
    lines = [
        f"{folder}: {len(job.items)} restorations, {len(job.items) - len(missing)} done, {len(missing)} missing",
        _table(job, missing),
        f"now: {len(now)} restorations" + (f" (--limit {limit})" if limit is not None else ""),
        f"batches of at most {experiment.trainer.batch_size}, by device: {_batches(experiment, now)}",
        f"time: {_time(job, now)}",
        f"disk: at most {_size(_disk_bytes(job, now))}",
        *held.damaged,
    ]
    return "\n".join(lines)


def _table(job: Job, missing: list[Item]) -> str:
    """One line a condition: what varies, and how many of its items are done and missing."""
    total = Counter(results.condition_key(job.to_row(item)) for item in job.items)
    left = Counter(results.condition_key(job.to_row(item)) for item in missing)
    conditions = [dict(zip(results.CONDITION, key, strict=True)) for key in total]
    varying = results.varying_columns(conditions)
    lines = [[*varying, "done", "missing"]]
    for key, condition in zip(total, conditions, strict=True):
        lines.append([str(condition[column]) for column in varying] + [str(total[key] - left[key]), str(left[key])])
    return results.align(lines)


def _batches(experiment: Experiment, items: list[Item]) -> str:
    size, world = experiment.trainer.batch_size, runs.world_size(experiment)
    return ", ".join(str(len(batches_of_rank(items, size, rank, world))) for rank in range(world))


def _time(job: Job, items: list[Item]) -> str:
    """An estimate from sampler steps measured with this prior on this hardware, compilation and loading left out."""
    measured: dict[str, list[float]] = defaultdict(list)
    for sampler, seconds in _seconds_per_step(job):
        measured[sampler].append(seconds)
    if unknown := {item.sampler for item in items} - measured.keys():
        what = f"{', '.join(sorted(unknown))} with {job.fixed['prior']}"
        return f"unknown, nothing was measured yet of {what} on this hardware ({runs.hardware()})"
    # The median: start-up, and a last batch that is not full, weigh on a few.
    rates = {sampler: median(seconds) for sampler, seconds in measured.items()}
    world = runs.world_size(job.experiment)
    shares = [batches_of_rank(items, job.experiment.trainer.batch_size, rank, world) for rank in range(world)]
    chosen = [[items[index] for batch in share for index in batch] for share in shares]
    longest = max(sum(rates[item.sampler] * item.steps for item in share) for share in chosen)
    count = sum(len(seconds) for seconds in measured.values())
    return f"about {_duration(longest)}, by {count} restorations measured on this hardware"


def _seconds_per_step(job: Job) -> Iterator[tuple[str, float]]:
    """Sampler, and seconds of its step for one item, in every run folder beside this one and in it."""
    for meta_path in sorted(Path(job.experiment.runs_dir).glob("**/meta.json")):
        folder = meta_path.parent
        if (folder / "rows").is_dir() and _hardware(meta_path) == runs.hardware():
            alike = [row for row in results.read_rows(folder) if _is_alike(row, job)]
            yield from ((row["sampler"], row["seconds"] / row["steps"]) for row in alike)


def _is_alike(row: Row, job: Job) -> bool:
    same = row.get("prior") == job.fixed["prior"] and row.get("sampler") in job.samplers
    return same and row["status"] == "ok" and isinstance(row.get("seconds"), int | float)


def _hardware(meta_path: Path) -> str:
    try:
        return json.loads(meta_path.read_text()).get("hardware", "")
    except (OSError, ValueError, AttributeError):
        return ""


def _disk_bytes(job: Job, items: list[Item]) -> int:
    """Of the files to come, as if videos could not be compressed: every restoration, and the clips to look at."""
    video = math.prod(job.prior.video_shape)
    clips = sum(3 * video + video // item.factor**2 for item in items if job.keeps_clip(item))
    return len(items) * (video + ROW_BYTES) + 2 * clips  # kept by each rank, and gathered


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{math.ceil(num_bytes / 1e6)} MB"
