"""Tables of the report: what does not vary stands above, a mean and its error share a cell, numbers can be sorted."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vsr_lightning.figures.reading import Row
from vsr_lightning.figures.report_words import format_cell, in_reading_order, label, place, rounded, to_number

TABLES = {
    "summary": "By condition",
    "table1": "Methods compared",
    "paired": "Random minus sequential order, paired by video and noise instance",
    "convergence": "How far apart the blur widths are",
    "samplers": "Samplers compared, paired by video and noise instance",
    "oracle": "What an oracle reaches that is told the motion",
    "means": "Mean over noise instances, by video and condition",
}
FOLDED_TABLES = ("means",)


@dataclass(frozen=True)
class Cell:
    text: str
    value: str  # to sort by: a number as JavaScript reads it, or the text; "" is always last


@dataclass(frozen=True)
class Header:
    label: str
    numeric: bool


@dataclass(frozen=True)
class Table:
    caption: str
    is_open: bool
    constants: list[tuple[str, str]]  # label and value of what is the same in all rows
    headers: list[Header]
    rows: list[list[Cell]]


def in_order(tables: Iterable[Path]) -> list[Path]:
    """Those of TABLES in its order, then the others by name."""
    return sorted(tables, key=lambda path: place(path.stem, list(TABLES)))


def make_table(name: str, rows: Sequence[Row]) -> Table:
    """`<column>` and `<column>_se` become one cell, "mean ± error"; settings that do not vary leave the table."""
    shown, constant = _columns(rows)
    headers = [Header(label(column, name), _is_numeric(column, rows)) for column in shown]
    return Table(
        caption=TABLES.get(name, name.replace("_", " ")),
        is_open=name not in FOLDED_TABLES,
        constants=[(label(column, name), format_cell(column, rows[0][column])) for column in constant],
        headers=headers,
        rows=[
            [_cell(column, row, header.numeric) for column, header in zip(shown, headers, strict=True)] for row in rows
        ],
    )


def comparison_table(summaries: Iterable[tuple[str, Sequence[Row]]]) -> Table | None:
    """A line for each run and condition, with the columns that all share; None for fewer than two runs.

    Args:
        summaries: the name of each run and the rows of its `summary.csv`, which may be none.
    """
    filled = [(name, rows) for name, rows in summaries if rows]
    if len(filled) < 2:
        return None
    shared = [column for column in filled[0][1][0] if all(column in rows[0] for _, rows in filled)]
    lines = [{"run": name} | {column: row[column] for column in shared} for name, rows in filled for row in rows]
    return make_table("comparison", lines)


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The columns that a table shows, and those that are the same in all rows; empty ones and errors are in neither.

    Last stand settings that are the same wherever they are given: quoted rows have none.
    """
    filled = [column for column in rows[0] if any(row[column] for row in rows)]
    measured = {column for column in filled if f"{column}_se" in rows[0]}
    errors = {f"{column}_se" for column in measured}
    values = {column: {row[column] for row in rows} for column in filled if column not in measured | errors}
    constant = [column for column, found in values.items() if len(found) == 1]
    if len(constant) == len(filled):  # a single row, and nothing else to show of it
        return constant, []
    shown = in_reading_order([column for column in filled if column not in errors and column not in constant])
    return sorted(shown, key=lambda column: len(values.get(column, set()) - {""}) == 1), constant


def _is_numeric(column: str, rows: Sequence[Row]) -> bool:
    return all(to_number(row[column]) is not None for row in rows if row[column])


def _cell(column: str, row: Row, numeric: bool) -> Cell:
    text, error = format_cell(column, row[column]), to_number(row.get(f"{column}_se", ""))
    if error and math.isfinite(error):  # 0 is the error of what cannot vary, as a number of samples
        text += f" ± {rounded(column, error, digits=2)}"
    return Cell(text, _sort_value(row[column]) if numeric else row[column])


def _sort_value(text: str) -> str:
    number = to_number(text)
    return "" if number is None or math.isnan(number) else repr(number).replace("inf", "Infinity")
