"""Samplers compared: PSNR against the guidance scale and against seconds, and what each loses to the longest run.

Made from `results.csv` and `means.csv` of a run folder. A setting is a sampler with its steps and zeta; settings share
clips, degradation and sensor noise, so they are compared in pairs. PSNR in dB, seconds for one restoration.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vsr_lightning.figures.drawing import counts, operator, plural, save, short, source
from vsr_lightning.figures.reading import Row, mean_and_error, read_ok_rows, read_table
from vsr_lightning.files import write_table

METRIC = "psnr_first"
COLUMNS = (
    *("sampler", "steps", "zeta", "seconds", METRIC, f"{METRIC}_se", f"{METRIC}_of_mean"),
    *("difference", "difference_se", "videos"),
)
COLOURS = colormaps["tab10"]
MARKERS = "osD^vPX*"


class Setting(NamedTuple):
    """One way to sample."""

    sampler: str
    steps: int
    zeta: float


def make_figures(run_dir: Path) -> list[Path]:
    """Write `samplers.png` and `samplers.csv` into the run folder; their paths, none without results."""
    run_dir = Path(run_dir)
    rows = read_ok_rows(run_dir / "results.csv")
    if not rows:
        return []
    table = compare(rows, read_table(run_dir / "means.csv"))
    paths = [run_dir / "samplers.png", run_dir / "samplers.csv"]
    save(draw(table, rows), paths[0])
    write_table(paths[1], COLUMNS, table)
    return paths


# ---------------------------------------------------------------------------------------- statistics


def compare(rows: Iterable[Row], means: Iterable[Row] = ()) -> list[dict[str, Any]]:
    """A line for each setting, with the columns COLUMNS, in the order of sampler, steps and zeta.

    `difference` is the setting minus the reference, paired by video, noise instance and condition, with its standard
    error over videos (nan for a single video). The reference is the best of the settings with the most steps.
    """
    by_setting: dict[Setting, list[Row]] = defaultdict(list)
    for row in rows:
        by_setting[setting_of(row)].append(row)
    of_mean: dict[Setting, list[Row]] = defaultdict(list)
    for row in means:
        of_mean[setting_of(row)].append(row)
    reference = by_setting[_reference(by_setting)]
    lines = []
    for setting, group in sorted(by_setting.items()):
        score, error, videos = _mean(group, METRIC)
        difference, difference_error, _ = mean_and_error(_differences(group, reference))
        joint = _mean(of_mean[setting], f"{METRIC}_of_mean")[0] if of_mean[setting] else ""
        seconds = _mean(group, "seconds")[0]
        values = (*setting, seconds, score, error, joint, difference, difference_error, videos)
        lines.append(dict(zip(COLUMNS, values, strict=True)))
    return lines


def setting_of(row: Row) -> Setting:
    return Setting(str(row["sampler"]), int(row["steps"]), float(row["zeta"]))


def _reference(by_setting: Mapping[Setting, Sequence[Row]]) -> Setting:
    return max(by_setting, key=lambda setting: (setting.steps, _mean(by_setting[setting], METRIC)[0]))


def _mean(rows: Iterable[Row], column: str) -> tuple[float, float, int]:
    return mean_and_error((row["video"], float(row[column])) for row in rows)


def _differences(rows: Iterable[Row], reference: Iterable[Row]) -> list[tuple[str, float]]:
    """(video, difference in METRIC) of the items that both have."""
    there = {_item(row): float(row[METRIC]) for row in reference}
    return [(row["video"], float(row[METRIC]) - there[_item(row)]) for row in rows if _item(row) in there]


def _item(row: Row) -> tuple:
    columns = ("video", "noise", "factor", "kernel", "num_frames", "order", "sigma_h", "sigma_y")
    return tuple(row[column] for column in columns)


# --------------------------------------------------------------------------------------------- drawing


def draw(table: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> Figure:
    """On the left PSNR against zeta, on the right, with the best zeta of each number of steps, against seconds."""
    figure = Figure(figsize=(13.6, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    samplers = list(dict.fromkeys(line["sampler"] for line in table))
    for place, sampler in enumerate(samplers):
        lines = [line for line in table if line["sampler"] == sampler]
        style = {"color": COLOURS(place % 10), "marker": MARKERS[place % len(MARKERS)]}
        _draw_against_zeta(left, lines, style)
        _draw_against_seconds(right, lines, style)
    left.set_xlabel("guidance scale $\\zeta$")
    left.set_ylabel("PSNR of the first frame (dB)")
    right.set_xlabel("seconds a restoration; the number of steps beside it")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.grid(alpha=0.3, linewidth=0.6)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    first = rows[0]
    figure.suptitle(
        f"{source(first)}, {operator(first)}, $\\sigma_y$ {short(first['sigma_y'])}, "
        f"{plural(int(first['num_frames']), 'frame')} observed\n{counts(rows)}",
        fontsize=10,
    )
    return figure


def _draw_against_zeta(axes: Axes, lines: Sequence[Mapping[str, Any]], style: dict[str, Any]) -> None:
    """A curve for each number of steps, the more the darker."""
    numbers = sorted({line["steps"] for line in lines})
    for place, steps in enumerate(numbers):
        points = [line for line in lines if line["steps"] == steps]
        faint = 0.4 + 0.6 * (place + 1) / len(numbers)
        _errorbar(axes, [line["zeta"] for line in points], points, alpha=faint, **style)
        axes.annotate(
            str(steps), (points[-1]["zeta"], points[-1][METRIC]), (4, 0), textcoords="offset points", fontsize=8
        )


def _draw_against_seconds(axes: Axes, lines: Sequence[Mapping[str, Any]], style: dict[str, Any]) -> None:
    best: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if line["steps"] not in best or line[METRIC] > best[line["steps"]][METRIC]:
            best[line["steps"]] = line
    points = sorted(best.values(), key=lambda line: line["seconds"])
    _errorbar(axes, [line["seconds"] for line in points], points, label=str(lines[0]["sampler"]), **style)
    for line in points:
        axes.annotate(
            str(line["steps"]), (line["seconds"], line[METRIC]), (5, 4), textcoords="offset points", fontsize=8
        )


def _errorbar(axes: Axes, x: Sequence[float], points: Sequence[Mapping[str, Any]], **style: Any) -> None:
    scores, errors = [line[METRIC] for line in points], [line[f"{METRIC}_se"] for line in points]
    axes.errorbar(x, scores, yerr=errors, markersize=4.5, linewidth=1.6, capsize=2.5, **style)
