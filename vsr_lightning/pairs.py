"""`compare`: what ways to restore gain on a reference, in pairs, read from finished run folders.

Two restorations are a pair if they have the same video, noise instance, observation and seed: what the clip and its
sensor noise do to both cancels. Differences are averaged over noise instances, then over videos; errors are over
videos.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vsr_lightning.averages import item_scores, known, mean_and_error, paired_difference
from vsr_lightning.conditions import CONDITION, ITEM, NUMBERS, SAMPLING, without
from vsr_lightning.errors import UserError, suggestion
from vsr_lightning.evaluation.results import align
from vsr_lightning.figures.reading import Row, grouped, read_means, read_ok_rows

COLUMNS = ("run", *CONDITION)  # a reference is named, and lines are kept apart, by these
WAYS = ("run", *SAMPLING, "prior")  # to restore an observation: what is compared
MEASURED = ("mean", "mean_se", "difference", "difference_se", "videos")
OF_MEAN = "_of_mean"  # ends the columns of `means.csv`, which has a row for each video


def compare(
    run_dirs: Sequence[Path], reference: Mapping[str, str], by: Sequence[str] = (), metric: str = "psnr_first"
) -> list[dict[str, Any]]:
    """A line for each way to restore, each value of the reference's columns, and each combination of the columns `by`.

    Args:
        run_dirs: folders of sweeps; a row's `run` is its folder's name.
        reference: columns and the values that make a row the reference, as {"zeta": "0.5"}. A pair may differ in these,
            and in such of WAYS as the reference has one value of; it agrees in all other columns.
        by: columns to average within. Over all others.
        metric: a column of `results.csv`, or of `means.csv` if it ends with `_of_mean`.

    Returns:
        Lines with WAYS, the columns of `reference` and `by`, `metric`, and MEASURED: the mean, the mean of the
        differences to the reference, their standard errors (None for a single video), and the number of videos that
        have a pair.

    Raises:
        UserError: there is no such column, nothing is the reference, or nothing else has a pair.
    """
    kept = tuple(dict.fromkeys((*WAYS, *map(_column, reference), *map(_column, by))))
    wanted = {column: _cell(column, text) for column, text in reference.items()}
    split = grouped(_read(run_dirs, metric), lambda row: all(row[column] == wanted[column] for column in wanted))
    chosen, others = split.get(True, []), split.get(False, [])
    if not chosen:
        there = _values(others, wanted)
        raise UserError(f"reference {_words(reference)}: is not among the restorations, which have {there}")
    fixed = [column for column in WAYS if len({row[column] for row in chosen}) == 1]
    paired_by = without(COLUMNS, *reference, *fixed)
    scores = item_scores(chosen, metric, paired_by)
    lines = []
    for key, group in grouped(others, lambda row: tuple(row[column] for column in kept)).items():
        difference, error, videos = paired_difference(item_scores(group, metric, paired_by), scores)
        if videos:
            mean, mean_error, _ = mean_and_error((row["video"], row[metric]) for row in group)
            measured = (mean, known(mean_error), difference, known(error), videos)
            lines.append(dict(zip((*kept, "metric", *MEASURED), (*key, metric, *measured), strict=True)))
    if not lines:
        raise UserError(f"reference {_words(reference)}: nothing else restores the same videos and observations")
    return lines


def to_text(lines: Sequence[Row], metric: str, shown: Sequence[str]) -> str:
    """A table for the terminal, with those of WAYS that vary, and the columns `shown`."""
    ways = [column for column in WAYS if column not in shown and len({line[column] for line in lines}) > 1]
    columns = [*ways, *dict.fromkeys(shown)]
    digits = 2 if metric.startswith("psnr") else 4
    cells = [
        [_short(line[column]) for column in columns]
        + [_with_error(line, value, digits) for value in ("mean", "difference")]
        + [str(line["videos"])]
        for line in lines
    ]
    return align([[*columns, metric, "difference", "videos"], *cells])


def _read(run_dirs: Sequence[Path], metric: str) -> list[Row]:
    """What was measured, with numbers as such; restorations of which it was not are left out."""
    folders = list(map(Path, run_dirs))
    names = [folder.name for folder in folders]
    rows: list[Row] = []
    for folder in folders:
        run = folder.name if names.count(folder.name) == 1 else str(folder)
        path = folder / ("means.csv" if metric.endswith(OF_MEAN) else "results.csv")
        table = read_means(path) if metric.endswith(OF_MEAN) else read_ok_rows(path)
        if not table:
            raise UserError(f"{path}: has no restorations; name the folder of a sweep")
        if metric not in table[0]:
            raise UserError(f"{path}: has no column '{metric}'{suggestion(metric, table[0])}")
        for row in table:
            if row[metric]:
                condition = {column: _cell(column, row[column]) for column in CONDITION}
                item = {column: row.get(column) for column in ITEM}  # means are over noise instances
                rows.append({"run": run, **condition, **item, metric: _number(metric, row[metric])})
    if not rows:
        raise UserError(f"{metric}: was not measured in {', '.join(map(str, folders))}")
    return rows


def _column(name: str) -> str:
    if name not in COLUMNS:
        raise UserError(f"'{name}' is not what restorations are told apart by{suggestion(name, COLUMNS)}")
    return name


def _cell(column: str, text: str) -> Any:
    return _number(column, text) if column in NUMBERS else text


def _number(column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{column}: '{text}' is not a number") from None


def _words(reference: Mapping[str, str]) -> str:
    return ", ".join(f"{column}={value}" for column, value in reference.items())


def _values(rows: Sequence[Row], columns: Sequence[str] | Mapping[str, Any]) -> str:
    """What there is to name."""
    return "; ".join(f"{column} {', '.join(sorted({_short(row[column]) for row in rows}))}" for column in columns)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_error(line: Row, value: str, digits: int) -> str:
    error = line[f"{value}_se"]
    sign = "+" if value == "difference" else ""
    text = f"{line[value]:{sign}.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"
