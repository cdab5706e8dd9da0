"""`compare`: what ways to restore gain on a reference, in pairs, read from finished run folders.

Two restorations are a pair if they have the same video, noise instance, observation and seed: what the clip and its
sensor noise do to both cancels. Differences are averaged over noise instances, then over videos; errors are over
videos.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vsr_lightning.averages import ItemKey, item_scores, known, mean_and_error, paired_difference
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
        metric: a column of `results.csv`, or of `means.csv` if it ends with `_of_mean`: means of as many samples pair.

    Returns:
        Lines with WAYS, the columns of `reference` and `by`, `metric`, and MEASURED, all of what has a pair: the mean,
        the mean of the differences to the reference, their standard errors (None for a single video), and the number of
        videos.

    Raises:
        UserError: there is no such column, nothing is the reference, or nothing else has a pair.
    """
    for column in (*reference, *by):
        if column not in COLUMNS:
            raise UserError(f"'{column}' is no column of a condition{suggestion(column, COLUMNS)}")
    kept = tuple(dict.fromkeys((*WAYS, *reference, *by)))
    wanted = {column: _cell(column, text) for column, text in reference.items()}
    split = grouped(_read(run_dirs, metric), lambda row: all(row[column] == wanted[column] for column in wanted))
    chosen, others = split.get(True, []), split.get(False, [])
    if not chosen:
        there = "; ".join(f"{column} {_values(others, column)}" for column in wanted)
        raise UserError(f"reference {_words(reference)}: is not among the restorations, which have {there}")
    several = [column for column in WAYS if column not in reference and len({row[column] for row in chosen}) > 1]
    paired_by = without(COLUMNS, *reference, *without(WAYS, *several))
    scores = item_scores(chosen, metric, paired_by)
    lines = []
    for key, group in grouped(others, lambda row: tuple(row[column] for column in kept)).items():
        if measured := _measure(item_scores(group, metric, paired_by), scores):
            lines.append(dict(zip((*kept, "metric", *MEASURED), (*key, metric, *measured), strict=True)))
    if not lines:
        apart = "".join(f"; the reference has {column} {_values(chosen, column)}, name one" for column in several)
        raise UserError(
            f"reference {_words(reference)}: nothing else has the same {', '.join((*ITEM, *paired_by))}{apart}"
        )
    return lines


def _measure(scores: Mapping[ItemKey, float], reference: Mapping[ItemKey, float]) -> tuple | None:
    """MEASURED of the items that both have; None if there is none."""
    pairs = {item: score for item, score in scores.items() if item in reference}
    if not pairs:
        return None
    mean, mean_error, videos = mean_and_error((item[0], score) for item, score in pairs.items())
    difference, error, _ = paired_difference(pairs, reference)
    return mean, known(mean_error), difference, known(error), videos


def to_text(lines: Sequence[Row], shown: Iterable[str]) -> str:
    """A table for the terminal, with those of WAYS that vary, and the columns `shown`."""
    ways = [column for column in WAYS if column not in shown and len({line[column] for line in lines}) > 1]
    columns = [*ways, *dict.fromkeys(shown)]
    metric = lines[0]["metric"]
    digits = 2 if metric.startswith("psnr") else 4
    cells = [
        [str(line[column]) for column in columns]
        + [_with_error(line, "mean", f".{digits}f"), _with_error(line, "difference", f"+.{digits}f")]
        + [str(line["videos"])]
        for line in lines
    ]
    return align([[*columns, metric, "difference", "videos"], *cells])


def _with_error(line: Row, value: str, form: str) -> str:
    error = line[f"{value}_se"]
    return f"{line[value]:{form}}" + ("" if error is None else f" ± {error:{form.removeprefix('+')}}")


def _read(run_dirs: Sequence[Path], metric: str) -> list[Row]:
    """What was measured, with numbers as such; restorations of which it was not are left out."""
    folders = [folder.resolve() for folder in run_dirs]
    if len(set(folders)) < len(folders):
        raise UserError(f"{_names(run_dirs)}: a folder is named twice")
    names = [folder.name for folder in folders]
    of_mean = metric.endswith(OF_MEAN)
    noise = "n_samples" if of_mean else "noise"  # a mean is over noise instances: in their place, how many
    rows: list[Row] = []
    for folder, given in zip(folders, run_dirs, strict=True):
        run = folder.name if names.count(folder.name) == 1 else str(given)
        path = given / ("means.csv" if of_mean else "results.csv")
        if not path.exists():
            raise UserError(f"{path}: is missing; name the folder of a sweep, as runs/guidance")
        table = read_means(path) if of_mean else read_ok_rows(path)
        if table and metric not in table[0]:
            raise UserError(f"{path}: has no column '{metric}'{suggestion(metric, table[0])}")
        for row in table:
            if row[metric]:
                condition = {column: _cell(column, row[column]) for column in CONDITION}
                item = {"video": _number("video", row["video"]), "noise": _number(noise, row[noise])}
                rows.append({"run": run, **condition, **item, metric: _number(metric, row[metric])})
    if not rows:
        raise UserError(f"{metric}: was not measured in {_names(run_dirs)}")
    return rows


def _cell(column: str, text: str) -> Any:
    return _number(column, text) if column in NUMBERS else text


def _number(column: str, text: str) -> float:
    """A whole one as int, which is written as it was."""
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{column}: '{text}' is not a number") from None
    return int(value) if value.is_integer() else value


def _values(rows: Iterable[Row], column: str) -> str:
    return ", ".join(map(str, sorted({row[column] for row in rows})))


def _words(reference: Mapping[str, str]) -> str:
    return ", ".join(f"{column}={value}" for column, value in reference.items())


def _names(folders: Iterable[Path]) -> str:
    return ", ".join(map(str, folders))
