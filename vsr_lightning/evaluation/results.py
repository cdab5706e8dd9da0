"""Results of a sweep on disk: rows as they are measured, then tables, clips, and one W&B run.

A run folder holds `rows/rank-<r>.jsonl` and `rows/clips-rank-<r>.h5`, written by each process while it
works, and `results.csv` (one row per item), `means.csv` (one per video and condition), `summary.csv` (one per
condition) and `clips.h5`, made from them. Every table is complete or absent: it is written under a temporary
name and renamed.

Shapes: F frames, H W pixels (h w low resolution), C channels.
"""

import csv
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import h5py
import numpy as np
from PIL import Image

from vsr_lightning.config import UserError

Row = dict[str, Any]

CONDITION = (
    *("factor", "kernel", "num_frames", "order", "sigma_h", "sigma_y"),
    *("sampler", "steps", "zeta", "seed", "prior", "dataset"),
)
ITEM = ("video", "noise")
MEASURED = ("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seconds")

# The order of columns in results.csv; further ones follow.
COLUMNS = (
    *("video", "noise", "factor", "num_frames", "order", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seed", "seconds", "kernel", "prior"),
    *("dataset", "status"),
)
CLIP_ARRAYS = ("observed", "restored", "truth", "bicubic")
CLIP = (*CONDITION, "video")  # what identifies a kept clip


# ---------------------------------------------------------------------------------------------- keys


def _parse(text: str) -> Any:
    """A CSV cell: an int or a float where it reads as one, None where it is empty, else the text itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text or None


def _normalise(value: Any) -> int | float | str:
    """The same value for 2, 2.0, "2" and np.float32(2), so that keys survive JSON, CSV and tensors."""
    if hasattr(value, "item"):  # a scalar of NumPy or PyTorch
        value = value.item()
    if isinstance(value, str):
        value = _parse(value)
    if value is None:
        return ""
    if not isinstance(value, float):
        return value if isinstance(value, int) else str(value)
    if not math.isfinite(value):
        return str(value)  # nan is not equal to itself, "nan" is
    # Six digits: 0.02 in float32 is 0.0199999995 in float64.
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")


def condition_key(row: Mapping[str, Any]) -> tuple:
    """What `row` was measured under, as a tuple in the order of CONDITION; missing columns are ""."""
    return tuple(_normalise(row.get(column)) for column in CONDITION)


def item_key(row: Mapping[str, Any]) -> tuple:
    """What identifies `row`: its condition, video and noise instance, equal after JSON or CSV."""
    return condition_key(row) + tuple(_normalise(row.get(column)) for column in ITEM)


def _sortable(key: tuple) -> tuple:
    """Numbers before texts, so that a column holding both can be sorted."""
    return tuple((isinstance(value, str), value) for value in key)


# ---------------------------------------------------------------------------------------------- rows


class RowWriter:
    """Appends rows to `rows/rank-<rank>.jsonl`; what `append` has returned from survives a crash."""

    def __init__(self, run_dir: Path, rank: int = 0):
        self.path = Path(run_dir) / "rows" / f"rank-{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(self.path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one JSON line per row and wait until they are on disk."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(dict(row), default=_plain) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())


def _drop_torn_line(path: Path) -> None:
    """Cut off what a killed run left after the last newline: the next row would be glued to it."""
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """For JSON: scalars of NumPy and PyTorch as Python numbers, paths as text."""
    return value.item() if hasattr(value, "item") else str(value)


def read_rows(run_dir: Path) -> list[Row]:
    """Rows of all ranks, one per item: the first one, or the first with status "ok" if there is any.

    Raises UserError naming file and line if a line other than a torn last one is no JSON object.
    """
    rows: dict[tuple, Row] = {}
    for path in sorted(Path(run_dir).glob("rows/rank-*.jsonl")):
        for row in _read_lines(path):
            key = item_key(row)
            if key not in rows or (_is_ok(row) and not _is_ok(rows[key])):
                rows[key] = row
    return list(rows.values())


def _read_lines(path: Path) -> list[Row]:
    *lines, _torn = path.read_bytes().split(b"\n")  # what follows the last newline is empty, or torn
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            message = f"{path}: line {number} is not a row of results; delete it to measure its item again"
            raise UserError(message) from None
    return rows


def _is_ok(row: Mapping[str, Any]) -> bool:
    return row.get("status") == "ok"


# -------------------------------------------------------------------------------------------- tables


def write_tables(run_dir: Path) -> None:
    """Make `results.csv` and `summary.csv` from the rows measured so far, and `means.csv` if it is there."""
    run_dir = Path(run_dir)
    by_key = {item_key(row): row for row in read_rows(run_dir)}
    # One spelling of each key, so that readers need not know that 2 and 2.0 are the same condition.
    rows = [by_key[key] | dict(zip((*CONDITION, *ITEM), key, strict=True)) for key in sorted(by_key, key=_sortable)]
    means_path = run_dir / "means.csv"
    means = read_table(means_path) if means_path.exists() else []
    _write_csv(run_dir / "results.csv", rows, first=COLUMNS)
    _write_csv(run_dir / "summary.csv", summarise(rows, means), first=(*CONDITION, "n", "failed"))


def write_means(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add to `means.csv` how good the mean over a video's noise instances is.

    A row has the condition's columns, `video`, `n_samples`, and the mean's scores as `<score>_of_mean`. It replaces
    an earlier row of the same video and condition.
    """
    path = Path(run_dir) / "means.csv"
    earlier = read_table(path) if path.exists() else []
    by_key = {item_key(row): dict(row) for row in (*earlier, *rows)}
    ordered = [by_key[key] for key in sorted(by_key, key=_sortable)]
    _write_csv(path, ordered, first=("video", *CONDITION))


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV file, numbers parsed, None where a cell is empty."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [{column: _parse(cell) for column, cell in row.items()} for row in csv.DictReader(file)]


def _write_csv(path: Path, rows: Sequence[Row], first: Sequence[str]) -> None:
    """Write `rows` with the columns `first`, then the others as they come."""
    others = dict.fromkeys(column for row in rows for column in row if column not in first)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*first, *others])
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def summarise(rows: Sequence[Row], means: Sequence[Row] = ()) -> list[Row]:
    """One row per condition: `n` items that are ok, `failed` ones, mean and error of each measured column.

    Args:
        rows: items, as `read_rows` gives them. Only those with status "ok" enter the means.
        means: rows of `means.csv`; their columns join the condition they belong to.
    """
    groups: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        groups[condition_key(row)].append(row)
    means_of: dict[tuple, list[Row]] = defaultdict(list)
    for row in means:
        means_of[condition_key(row)].append(row)

    measured, measured_of_mean = measured_columns(rows), measured_columns(means)
    summary = []
    for condition in sorted(groups, key=_sortable):
        group = groups[condition]
        ok = [row for row in group if _is_ok(row)]
        line = dict(zip(CONDITION, condition, strict=True)) | {"n": len(ok), "failed": len(group) - len(ok)}
        line |= _means_and_errors(ok, measured) | _means_and_errors(means_of[condition], measured_of_mean)
        summary.append(line)
    return summary


def measured_columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns to average: MEASURED, then every other one outside the key that holds only numbers."""
    numeric: dict[str, bool] = {}
    for row in rows:
        for column, value in row.items():
            if value is not None:
                numeric[column] = numeric.get(column, True) and isinstance(value, int | float)
    # A seed is a number too, but its mean says nothing.
    others = [column for column in numeric if column not in MEASURED and not column.endswith("seed")]
    return [
        column
        for column in (*MEASURED, *sorted(others))
        if numeric.get(column) and column not in (*CONDITION, *ITEM, "status")
    ]


def _means_and_errors(rows: Sequence[Row], columns: Sequence[str]) -> Row:
    line: Row = {}
    for column in columns:
        line[column], line[f"{column}_se"] = mean_and_error(rows, column)
    return line


def mean_and_error(rows: Iterable[Mapping[str, Any]], column: str) -> tuple[float | None, float | None]:
    """Mean of the per-video means of `column`, and its standard error over videos.

    Noise instances of one video are not independent, so a video counts once. None: no values; for the error,
    fewer than two videos.
    """
    by_video: dict[Any, list[float]] = defaultdict(list)
    for row in rows:
        if row.get(column) is not None:
            by_video[_normalise(row.get("video"))].append(float(row[column]))
    means = [fmean(values) for values in by_video.values()]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None
    return (fmean(means) if means else None), error


# ---------------------------------------------------------------------------------- restored videos


def save_restored(run_dir: Path, rows: Sequence[Mapping[str, Any]], restored: np.ndarray) -> None:
    """Keep a batch of restorations, uint8 (B, F, H, W, C), for the means over noise instances.

    Saved before the batch's rows are, so that an item with a row has its restoration.
    """
    folder = Path(run_dir) / "rows" / "restored"
    folder.mkdir(parents=True, exist_ok=True)
    keys = json.dumps([item_key(row) for row in rows])
    name = hashlib.sha256(keys.encode()).hexdigest()[:16]
    temporary = folder / f"{name}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, keys=np.array(keys), restored=restored)
    temporary.replace(folder / f"{name}.npz")


def load_restored(run_dir: Path) -> dict[tuple, np.ndarray]:
    """All kept restorations, uint8 (F, H, W, C), by item key."""
    videos: dict[tuple, np.ndarray] = {}
    for path in sorted(Path(run_dir).glob("rows/restored/*.npz")):
        with np.load(path) as batch:
            keys = [tuple(key) for key in json.loads(str(batch["keys"]))]
            videos |= dict(zip(keys, batch["restored"], strict=True))
    return videos


# --------------------------------------------------------------------------------------------- clips


class ClipWriter:
    """Keeps clips to look at in `rows/clips-rank-<rank>.h5`, one group per condition and video.

    The caller passes noise 0 of the first video or videos of each condition.
    """

    def __init__(self, run_dir: Path, rank: int = 0):
        self.path = Path(run_dir) / "rows" / f"clips-rank-{rank}.h5"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(
        self,
        row: Mapping[str, Any],
        observed: np.ndarray,
        restored: np.ndarray,
        truth: np.ndarray,
        frames: Sequence[int],
        bicubic: np.ndarray | None = None,
    ) -> None:
        """Keep the clips of one item, instead of earlier ones of the same condition and video.

        Args:
            row: the item's row, or just its condition and video.
            observed: uint8 (F, h, w, C).
            restored, truth: uint8 (F, H, W, C).
            frames: indices, from 0, of the frames that were observed.
            bicubic: the baseline at the operator's own phase, uint8 (F, H, W, C), if it is to be kept.

        Raises:
            ValueError: if a clip is not uint8 of four dimensions.
        """
        clips = {"observed": observed, "restored": restored, "truth": truth}
        if bicubic is not None:
            clips["bicubic"] = bicubic
        for name, clip in clips.items():
            if clip.dtype != np.uint8 or clip.ndim != 4:
                raise ValueError(f"{name} must be uint8 (F, H, W, C), got {clip.dtype} {clip.shape}")

        # HDF5 is not readable when its writer is killed, so the file that others see is always a closed one.
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        if self.path.exists():
            shutil.copyfile(self.path, temporary)
        key = {column: _normalise(row.get(column)) for column in CLIP}
        with h5py.File(temporary, "a") as file:
            name = _group_name(key)
            if name in file:
                del file[name]
            group = file.create_group(name)
            group.attrs.update(key)
            group["frames"] = np.asarray(list(frames), dtype=np.int64)
            for array, clip in clips.items():
                group.create_dataset(array, data=clip, compression="gzip")
        temporary.replace(self.path)


def _group_name(key: Mapping[str, Any]) -> str:
    """A readable name; HDF5 would read the slashes of a path as nested groups."""
    parts = (f"{column}={value}" for column, value in key.items())
    return " ".join(parts).replace("/", "|")


def merge_clips(run_dir: Path) -> None:
    """Gather the clips of all ranks in `clips.h5`, keeping those that only an earlier `clips.h5` has."""
    run_dir = Path(run_dir)
    path, temporary = run_dir / "clips.h5", run_dir / "clips.h5.tmp"
    sources = [*sorted(run_dir.glob("rows/clips-rank-*.h5")), *([path] if path.exists() else [])]
    if not sources:
        return
    with h5py.File(temporary, "w") as merged:
        for source in sources:
            with h5py.File(source, "r") as file:
                for name in file:
                    if name not in merged:
                        file.copy(name, merged)
    temporary.replace(path)


def read_clips(run_dir: Path) -> list[Row]:
    """Clips in `clips.h5`, sorted by condition and video.

    Each is the condition's columns and `video`, `observed` uint8 (F, h, w, C), `restored`, `truth` and, where it was
    kept, `bicubic` uint8 (F, H, W, C), and `frames`, the observed indices from 0.
    """
    with h5py.File(Path(run_dir) / "clips.h5", "r") as file:
        clips = [_read_clip(group) for group in file.values()]
    return sorted(clips, key=lambda clip: _sortable((*condition_key(clip), clip["video"])))


def _read_clip(group: h5py.Group) -> Row:
    clip: Row = {"video": 0} | {column: _normalise(value) for column, value in group.attrs.items()}
    clip |= {name: group[name][()] for name in CLIP_ARRAYS if name in group}
    return clip | {"frames": group["frames"][()].tolist()}


def format_summary(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table for the terminal: what varies between conditions, then PSNR and SSIM."""
    varying = _varying_columns(summary)
    measured = ("psnr_first", "psnr_first_of_mean", "psnr_first_bicubic", "psnr_mean", "ssim_mean")
    header = [*varying, "n", *measured]
    lines = [header]
    for row in summary:
        numbers = []
        for column in measured:
            value, error = row.get(column), row.get(f"{column}_se")
            text = "" if value in (None, "") else f"{value:.3f}" if column == "ssim_mean" else f"{value:.2f}"
            numbers.append(f"{text} ± {error:.2f}" if error not in (None, "") and column == "psnr_first" else text)
        lines.append([str(row[column]) for column in varying] + [str(row["n"]), *numbers])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _varying_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    varying = [column for column in CONDITION if len({row[column] for row in rows}) > 1]
    return varying or ["num_frames"]


# --------------------------------------------------------------------------------- Weights & Biases


def log_results(run: Any, run_dir: Path, figures: Iterable[Path]) -> None:
    """Log the tables, curves, figures and clips of a run folder to `run`, a W&B run that is under way."""
    import wandb

    run_dir = Path(run_dir)
    summary = read_table(run_dir / "summary.csv")
    tables = {"results": read_table(run_dir / "results.csv"), "summary": summary}
    run.log({f"tables/{name}": _wandb_table(rows) for name, rows in tables.items()})
    _log_curves(run, summary)
    images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in map(Path, figures)}
    if images:
        run.log(images)
    if (run_dir / "clips.h5").exists():
        _log_clips(run, read_clips(run_dir))


def _wandb_table(rows: Sequence[Row]) -> Any:
    import wandb

    columns = list(rows[0]) if rows else []
    return wandb.Table(columns=[*columns], data=[[row[column] for column in columns] for row in rows])


def _log_curves(run: Any, summary: Sequence[Row]) -> None:
    """Every measured column against the number of observed frames, one curve for each order and setting."""
    step = "frame_count/num_frames"
    points: dict[int, dict[str, float]] = defaultdict(dict)
    for row, label in zip(summary, _labels(summary), strict=True):
        for column in row:
            if f"{column}_se" in row and row[column] is not None:
                points[row["num_frames"]][f"frame_count/{label}/{column}"] = row[column]
    # Exact names: the logger defines "*" against its own step, and which of two globs wins is random.
    run.define_metric(step)
    for name in sorted({name for values in points.values() for name in values}):
        run.define_metric(name, step_metric=step)
    for num_frames, values in sorted(points.items()):
        run.log({step: num_frames, **values})


def _labels(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The order of frames, preceded by whatever else differs between `rows`: "sigma_h=2/random"."""
    differing = [
        column
        for column in CONDITION
        if column not in ("num_frames", "order") and len({_normalise(row.get(column)) for row in rows}) > 1
    ]
    settings = [[f"{column}={row[column]}".replace("/", "_") for column in differing] for row in rows]
    return ["/".join([*setting, row["order"]]) for setting, row in zip(settings, rows, strict=True)]


def _log_clips(run: Any, clips: Sequence[Row]) -> None:
    import wandb

    with tempfile.TemporaryDirectory() as folder:  # W&B copies the files when they are logged
        videos = {}
        several = len({clip["video"] for clip in clips}) > 1
        for index, (clip, label) in enumerate(zip(clips, _labels(clips), strict=True)):
            path = Path(folder) / f"{index}.gif"
            write_gif(clip, path)
            name = f"{label}/video_{clip['video']}" if several else label
            videos[f"clips/{name}/frames_{clip['num_frames']:02d}"] = wandb.Video(str(path), format="gif")
        run.log(videos)


def write_gif(clip: Mapping[str, Any], path: Path, min_height: int = 192, milliseconds: int = 250) -> None:
    """Write observed | restored | truth side by side, enlarged to at least `min_height` pixels.

    Frames that were not observed are black on the left.
    """
    truth = clip["truth"]
    seen = np.isin(np.arange(len(truth)), clip["frames"])
    observed = clip["observed"] * seen[:, None, None, None].astype(np.uint8)
    height = truth.shape[1] * math.ceil(min_height / truth.shape[1])
    panels = [_enlarge(frames, height) for frames in (observed, clip["restored"], truth)]
    gap = np.full((len(truth), height, 4, 3), 255, np.uint8)
    strip = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)
    first, *others = [Image.fromarray(frame) for frame in strip]
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def _enlarge(frames: np.ndarray, height: int) -> np.ndarray:
    """Repeat pixels up to `height` rows; one channel becomes three: (F, h, w, C) to (F, height, width, 3)."""
    factor = height // frames.shape[1]
    enlarged = frames.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.broadcast_to(enlarged, (*enlarged.shape[:3], 3))
