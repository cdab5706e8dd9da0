"""Results of a sweep on disk: rows as they are measured, then tables.

A run folder holds `rows/rank-<r>.jsonl`, written by each process while it works, and `results.csv` (one row per item),
`means.csv` (one per video and condition) and `summary.csv` (one per condition), made from them. Tables are whole or
absent; of a killed process's last rows, those that are whole count.
"""

import contextlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from vsr_lightning import files
from vsr_lightning.averages import known, mean_and_error
from vsr_lightning.conditions import CONDITION, ITEM
from vsr_lightning.errors import UserError

Row = dict[str, Any]

# Of a file that is damaged: the same command makes what is missing.
COUNTS_AS_MISSING = "what only this file held counts as missing; it may be deleted"
MEASURED = ("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seconds")

# The order of columns in results.csv; further ones follow.
COLUMNS = (
    *("video", "noise", "factor", "num_frames", "order", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("psnr_first", "psnr_mean", "ssim_mean", "residual_rms", "seed", "seconds", "kernel", "prior"),
    *("dataset", "status"),
)


# ---------------------------------------------------------------------------------------------- keys


def _parse(text: str) -> Any:
    """A CSV cell: an int or a float where it reads as one, None where it is empty, else the text itself."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text or None


def normalise(value: Any) -> int | float | str:
    """The same value for 2, 2.0, "2" and np.float32(2), so that keys survive JSON, CSV and tensors."""
    if hasattr(value, "item"):  # a scalar of NumPy or PyTorch
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float | str):
        return _normalise(value)
    return "" if value is None else str(value)


@lru_cache(maxsize=4096)  # keys repeat few values
def _normalise(value: float | str) -> int | float | str:
    if isinstance(value, str):
        value = _parse(value)
    if value is None:
        return ""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return str(value)  # nan is not equal to itself, "nan" is
    # Six digits: 0.02 in float32 is 0.0199999995 in float64.
    return int(value) if value.is_integer() and abs(value) < 2**53 else float(f"{value:.6g}")


def condition_key(row: Mapping[str, Any]) -> tuple:
    """What `row` was measured under, as a tuple in the order of CONDITION; missing columns are ""."""
    return tuple(normalise(row.get(column)) for column in CONDITION)


def item_key(row: Mapping[str, Any]) -> tuple:
    """What identifies `row`: its condition, video and noise instance, equal after JSON or CSV."""
    return condition_key(row) + tuple(normalise(row.get(column)) for column in ITEM)


def video_key(row: Mapping[str, Any]) -> tuple:
    """What identifies a video under a condition, over its noise instances."""
    return *condition_key(row), normalise(row.get("video"))


def sortable(key: tuple) -> tuple:
    """Numbers before texts, so that a column holding both can be sorted."""
    return tuple((isinstance(value, str), value) for value in key)


# ---------------------------------------------------------------------------------------------- rows


class RowWriter:
    """Appends rows to `rows/rank-<rank>.jsonl`; what `append` has returned from survives a crash.

    Owns the file until it is closed: a second process that wants it waits, for one that an earlier go left behind or
    for the same command in another terminal.
    """

    def __init__(self, run_dir: Path, rank: int = 0):
        self.path = Path(run_dir) / "rows" / f"rank-{rank}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+", buffering=0)
        files.lock(self._file, waiting_for=self.path.parents[1])
        self._drop_torn_line()
        files.sync(self.path.parent)  # the file's name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write one JSON line per row and wait until they are on disk. Raises OSError that names the file."""
        lines = "".join(json.dumps(dict(row), default=_plain) + "\n" for row in rows).encode()
        with files.naming(self.path):
            while lines:  # a write may stop short
                lines = lines[self._file.write(lines) :]
            os.fsync(self._file.fileno())

    def _drop_torn_line(self) -> None:
        """Cut off what a killed process left after the last newline: the next row would be glued to it."""
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """For JSON: scalars of NumPy and PyTorch as Python numbers, paths as text."""
    return value.item() if hasattr(value, "item") else str(value)


def read_rows(run_dir: Path) -> list[Row]:
    """Rows of all ranks, one per item: the first one, or the first with status "ok" if there is any.

    Raises UserError naming file and line if a line other than a torn last one is no row.
    """
    rows: dict[tuple, Row] = {}
    for path in _row_files(Path(run_dir)):
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
            row = dict(json.loads(line))
            if "status" not in row:
                raise ValueError("a row says how its restoration ended")
            rows.append(row)
        except (ValueError, TypeError):
            message = f"{path}: line {number} is not a row of results; delete it to measure its item again"
            raise UserError(message) from None
    return rows


class NewRows:
    """Counts the rows that all ranks write from now on, those of items that failed and were tried again included.

    Reads each row once, however often it is asked.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = Path(run_dir)
        self._read = {path: path.stat().st_size for path in _row_files(self._run_dir)}  # bytes
        self._count = 0

    def count(self) -> int:
        for path in _row_files(self._run_dir):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                self._count += file.read().count(b"\n")
                self._read[path] = file.tell()
        return self._count


def _row_files(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("rows/rank-*.jsonl"))


def _is_ok(row: Mapping[str, Any]) -> bool:
    return row.get("status") == "ok"


# -------------------------------------------------------------------------------------------- tables


def write_tables(run_dir: Path, written: Sequence[Row] | None = None) -> None:
    """Make `results.csv` and `summary.csv` from the rows written so far, and `means.csv` if it is there.

    `written`: these rows, if `read_rows` was asked for them already.
    """
    run_dir = Path(run_dir)
    by_key = {item_key(row): row for row in (read_rows(run_dir) if written is None else written)}
    # One spelling of each key, so that readers need not know that 2 and 2.0 are the same condition.
    rows = [by_key[key] | dict(zip((*CONDITION, *ITEM), key, strict=True)) for key in sorted(by_key, key=sortable)]
    means_path = run_dir / "means.csv"
    means = read_table(means_path) if means_path.exists() else []
    write_csv(run_dir / "results.csv", rows, first=COLUMNS)
    write_csv(run_dir / "summary.csv", summarise(rows, means), first=(*CONDITION, "n", "failed"))


def write_means(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add to `means.csv` how good the mean over a video's noise instances is.

    A row has the condition's columns, `video`, `n_samples`, and the mean's scores as `<score>_of_mean`. It replaces
    an earlier row of the same video and condition, unless that is the mean of more samples: some were lost since.
    """
    path = Path(run_dir) / "means.csv"
    by_key: dict[tuple, Row] = {}
    with contextlib.suppress(FileNotFoundError, files.DamagedFile):  # a damaged table is measured anew
        by_key = {video_key(row): row for row in read_table(path)}
    for row in rows:
        key = video_key(row)
        if samples_of(by_key.get(key, {})) <= samples_of(row):
            by_key[key] = dict(row)
    ordered = [by_key[key] for key in sorted(by_key, key=sortable)]
    write_csv(path, ordered, first=("video", *CONDITION))


def samples_of(mean: Mapping[str, Any]) -> int:
    """The number of samples in a mean, a row of `means.csv`; 0 if it does not say."""
    number = mean.get("n_samples")
    return number if isinstance(number, int) else 0


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV file, numbers parsed, None where a cell is empty. Raises DamagedFile."""
    rows = files.read_table(path, COUNTS_AS_MISSING)
    # Cells repeat: conditions in every row, scores of a clip in all that are of it.
    parsed = {cell: _parse(cell) for cell in {cell for row in rows for cell in row.values()}}
    return [{column: parsed[cell] for column, cell in row.items()} for row in rows]


def write_csv(path: Path, rows: Sequence[Row], first: Sequence[str]) -> None:
    """Write `rows` with the columns `first`, then the others as they come."""
    others = dict.fromkeys(column for row in rows for column in row if column not in first)
    files.write_table(path, [*first, *others], rows)


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
    for condition in sorted(groups, key=sortable):
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
        line[column], line[f"{column}_se"] = column_mean(rows, column)
    return line


def column_mean(rows: Iterable[Mapping[str, Any]], column: str) -> tuple[float | None, float | None]:
    """Mean over videos of a column where it has a value (nan is none), and its standard error.

    None: no values; for the error, fewer than two videos.
    """
    scores = ((row.get("video"), float(row[column])) for row in rows if row.get(column) is not None)
    values = [(normalise(video), score) for video, score in scores if not math.isnan(score)]
    if not values:
        return None, None
    mean, error, _ = mean_and_error(values)
    return mean, known(error)


def format_summary(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a table for the terminal: what varies between conditions, what failed, if any, PSNR and SSIM."""
    counts = ["n", "failed"] if any(row.get("failed") for row in summary) else ["n"]
    varying = varying_columns(summary)
    measured = ("psnr_first", "psnr_first_of_mean", "psnr_first_bicubic", "psnr_mean", "ssim_mean")
    header = [*varying, *counts, *measured]
    lines = [header]
    for row in summary:
        numbers = []
        for column in measured:
            value, error = row.get(column), row.get(f"{column}_se")
            text = "" if value in (None, "") else f"{value:.3f}" if column == "ssim_mean" else f"{value:.2f}"
            numbers.append(f"{text} ± {error:.2f}" if error not in (None, "") and column == "psnr_first" else text)
        lines.append([str(row[column]) for column in (*varying, *counts)] + numbers)
    return align(lines)


def align(lines: Sequence[Sequence[str]]) -> str:
    """A table for the terminal, its columns flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def varying_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    varying = [column for column in CONDITION if len({row[column] for row in rows}) > 1]
    return varying or ["num_frames"]
