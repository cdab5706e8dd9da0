"""Samplers compared: PSNR against the guidance scale and against seconds, and what each loses to the longest run.

Made from `results.csv` and `means.csv` of a run folder. A setting is a sampler with its steps and zeta; under one
observation (operator, noise and frames seen) settings share clips and sensor noise, so they are compared in pairs.
Samplers that are called alike but for their steps, as `dps_250` and `dps_1000`, are drawn as one curve. PSNR in dB,
seconds for one restoration.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from vsr_lightning.averages import item_scores, paired_difference
from vsr_lightning.conditions import OBSERVATION, SAMPLING, TEXTS
from vsr_lightning.figures.drawing import counts, operator, plural, save, short, source
from vsr_lightning.figures.reading import Row, grouped, mean_of, read_means, read_ok_rows
from vsr_lightning.files import write_table

METRIC = "psnr_first"
COLUMNS = (
    *(*OBSERVATION, *SAMPLING, "seconds", METRIC, f"{METRIC}_se", f"{METRIC}_of_mean"),
    *("difference", "difference_se", "videos"),
)
SAME_TIME = 1.2  # ratio of seconds, below which settings are drawn as a group
COLOURS = colormaps["tab10"]
MARKERS = "osD^vPX*"
MOST_SIDE_BY_SIDE = 10  # settings that take as long, before they are ranked
ALL_AS_FAST = 1.5  # ratio of seconds, below which all settings are ranked
LEGEND_SIGN, LEGEND_LETTER = 0.8, 0.075  # inches: an entry of the legend but for its name, and a letter of that
Line = Mapping[str, Any]  # of the table that `compare` makes


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
    table = compare(rows, read_means(run_dir / "means.csv"))
    paths = [run_dir / "samplers.png", run_dir / "samplers.csv"]
    save(draw(table, rows), paths[0])
    write_table(paths[1], COLUMNS, table)
    return paths


# ---------------------------------------------------------------------------------------- statistics


def compare(rows: Iterable[Row], means: Iterable[Row] = ()) -> list[dict[str, Any]]:
    """A line for each observation and setting, with the columns COLUMNS.

    `seconds` is the median of a sampler's restorations with so many steps, whatever zeta: start-up and a last batch
    that is not full weigh on a few. `difference` is the setting minus the reference, paired by video and noise
    instance, with its standard error over videos (nan for a single video, or without a pair). The reference is the best
    of the settings with the most steps.
    """
    of_mean = grouped((row for row in means if row.get(f"{METRIC}_of_mean")), observation_of)
    return [
        dict(zip(OBSERVATION, observation, strict=True)) | line
        for observation, group in sorted(grouped(rows, observation_of).items())
        for line in _compare_settings(group, of_mean.get(observation, []))
    ]


def _compare_settings(rows: Iterable[Row], means: Iterable[Row]) -> list[dict[str, Any]]:
    by_setting, of_mean = grouped(rows, setting_of), grouped(means, setting_of)
    seconds: dict[tuple, list[float]] = defaultdict(list)
    for setting, group in by_setting.items():
        seconds[setting[:2]] += [float(row["seconds"]) for row in group]
    lines = []
    for setting, group in sorted(by_setting.items()):
        score, error, videos = mean_of(group, METRIC)
        joint = mean_of(of_mean[setting], f"{METRIC}_of_mean")[0] if setting in of_mean else None
        measured = {"seconds": median(seconds[setting[:2]]), METRIC: score, f"{METRIC}_se": error}
        lines.append({**setting._asdict(), **measured, f"{METRIC}_of_mean": joint, "videos": videos})
    reference = item_scores(by_setting[setting_of(_reference(lines))], METRIC)
    for line in lines:
        pairs = paired_difference(item_scores(by_setting[setting_of(line)], METRIC), reference)
        line["difference"], line["difference_se"], _ = pairs
    return lines


def observation_of(row: Row) -> tuple:
    return tuple(row[name] if name in TEXTS else float(row[name]) for name in OBSERVATION)


def families(table: Iterable[Line]) -> dict[str, str]:
    """Of each sampler the name of its curve: its own, but for the number of steps that it has alone and ends with."""
    steps = {sampler: {line["steps"] for line in lines} for sampler, lines in grouped(table, _sampler_of).items()}
    names = {sampler: sampler.removesuffix(f"_{max(numbers)}") for sampler, numbers in steps.items()}
    return {name: short if len(steps[name]) == 1 and short not in steps else name for name, short in names.items()}


def _sampler_of(line: Line) -> str:
    return str(line["sampler"])


def setting_of(row: Row) -> Setting:
    return Setting(str(row["sampler"]), int(row["steps"]), float(row["zeta"]))


def _reference(lines: Iterable[Line]) -> Line:
    """The best of those with the most steps."""
    return max(lines, key=lambda line: (line["steps"], line[METRIC]))


# --------------------------------------------------------------------------------------------- drawing


def draw(table: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """PSNR against seconds, or settings ranked by PSNR where seconds tell them not apart."""
    by_observation = grouped(table, observation_of).values()
    most = max(len(group) for lines in by_observation for group in _equally_fast(lines))
    all_as_fast = all(len(lines) > 1 and _slowest_to_fastest(lines) < ALL_AS_FAST for lines in by_observation)
    if not _zetas_were_compared(table) and (all_as_fast or most > MOST_SIDE_BY_SIDE):
        return _draw_ranks(table, rows)
    return _draw_curves(table, rows)


def _slowest_to_fastest(lines: Iterable[Line]) -> float:
    seconds = [line["seconds"] for line in lines]
    return max(seconds) / min(seconds)


def _draw_ranks(table: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """A row for each observation: settings from the best down, their PSNR, and their difference to the reference."""
    by_observation = grouped(table, observation_of)
    heights = [0.9 + 0.22 * len(lines) for lines in by_observation.values()]
    figure = Figure(figsize=(9.6, 1.0 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 2, squeeze=False, sharey="row", height_ratios=heights)
    for (left, right), lines in zip(panels, by_observation.values(), strict=True):
        ranked = sorted(lines, key=lambda line: line[METRIC])
        numbers = sorted({line["steps"] for line in lines})
        for place, line in enumerate(ranked):
            style = {"color": COLOURS(numbers.index(line["steps"]) % 10), "fmt": "o", "markersize": 4.5, "capsize": 2.5}
            for axes, value in ((left, METRIC), (right, "difference")):
                axes.errorbar(line[value], place, xerr=line[f"{value}_se"], **style)
        names = [f"{line['sampler']}, {line['steps']} steps, {line['seconds']:.2g} s" for line in ranked]
        left.set_yticks(range(len(ranked)), names, fontsize=8)
        left.set_title(_observation_title(lines[0]), fontsize=9, loc="left")
        reference = _reference(lines)
        right.axvline(0, color="dimgrey", linewidth=0.8)
        right.set_xlabel(f"less that of {reference['sampler']}, {reference['steps']} steps, in pairs (dB)", fontsize=9)
        left.set_xlabel("PSNR of the first frame (dB)", fontsize=9)
        for axes in (left, right):
            axes.grid(alpha=0.3, linewidth=0.6)
    figure.suptitle("\n".join([source(rows[0]), f"{counts(rows)}; s: seconds a restoration"]), fontsize=10)
    return figure


def _draw_curves(table: Sequence[Line], rows: Sequence[Row]) -> Figure:
    """A row for each observation: PSNR at each sampler's best zeta against seconds, and left of it against zeta.

    Not against zeta where no sampler had a choice of it.
    """
    by_observation, family_of = grouped(table, observation_of), families(table)
    names = list(dict.fromkeys(family_of.values()))
    columns = 2 if _zetas_were_compared(table) else 1
    figure = Figure(figsize=(6.8 * columns, 0.8 + 4.2 * len(by_observation)), layout="constrained")
    panels = figure.subplots(len(by_observation), columns, squeeze=False, sharey="row")
    for row, lines in zip(panels, by_observation.values(), strict=True):
        groups = _equally_fast(lines)
        for place, name in enumerate(names):
            if curve := [line for line in lines if family_of[line["sampler"]] == name]:
                style = {"color": COLOURS(place % 10), "marker": MARKERS[place % len(MARKERS)]}
                _draw_against_seconds(row[-1], name, curve, groups, style)
                if columns == 2:
                    # Side by side, or equal settings would hide each other.
                    _draw_against_zeta(row[0], curve, 1.02 ** (place - (len(names) - 1) / 2), style)
        if columns == 2:
            _label_zetas(row[0], sorted({line["zeta"] for line in lines}))
        _label_seconds(row[-1])
        _label_steps(row[-1], groups)
        row[0].set_title(_observation_title(lines[0]), fontsize=10)
        row[0].set_ylabel("PSNR of the first frame (dB)")
        for axes in row:
            axes.grid(alpha=0.3, linewidth=0.6)
    if columns == 2:
        panels[-1, 0].set_xlabel("guidance scale $\\zeta$; the darker, the more steps")
    at_best = ", at the best $\\zeta$" if columns == 2 else ""
    panels[-1, -1].set_xlabel(
        f"seconds a restoration{at_best}; on top the number of steps\n(settings under one line are about equally fast)"
    )
    entry = LEGEND_SIGN + LEGEND_LETTER * max(map(len, names))
    ncols = max(1, min(4, int(figure.get_figwidth() / entry)))
    figure.legend(*_legend(panels.flat), loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    figure.suptitle(("; " if columns == 2 else "\n").join([source(rows[0]), counts(rows)]), fontsize=10)
    return figure


def _zetas_were_compared(table: Iterable[Line]) -> bool:
    by_sampler = grouped(table, lambda line: (*observation_of(line), line["sampler"], line["steps"]))
    return any(len({line["zeta"] for line in lines}) > 1 for lines in by_sampler.values())


def _legend(panels: Iterable[Axes]) -> tuple[list[Any], list[str]]:
    """One entry for each sampler, in whatever panel it is."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    return list(entries.values()), list(entries)


def _observation_title(line: Line) -> str:
    seen = f"{plural(int(line['num_frames']), 'frame')} observed in {line['order']} order"
    return f"{operator(line)}, $\\sigma_y$ {short(line['sigma_y'])}, {seen}"


def _label_zetas(axes: Axes, zetas: Sequence[float]) -> None:
    axes.set_xscale("symlog" if 0 in zetas else "log")
    axes.set_xticks(zetas, [short(zeta) for zeta in zetas])
    axes.xaxis.set_minor_locator(NullLocator())


def _label_seconds(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.1)  # room for the numbers of steps at the top
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: short(seconds)))
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_against_zeta(axes: Axes, lines: Sequence[Line], aside: float, style: dict[str, Any]) -> None:
    """A curve for each number of steps, the more the darker."""
    numbers = sorted({line["steps"] for line in lines})
    for place, steps in enumerate(numbers):
        points = [line for line in lines if line["steps"] == steps]
        darkness = 0.4 + 0.6 * (place + 1) / len(numbers)
        _errorbar(axes, [aside * line["zeta"] for line in points], points, alpha=darkness, **style)


def _draw_against_seconds(
    axes: Axes, name: str, lines: Sequence[Line], groups: Sequence[Sequence[Line]], style: dict[str, Any]
) -> None:
    """A curve of the lines' best zetas, those of a group side by side, or they would hide each other."""
    points = [
        (seconds, line)
        for group in groups
        for seconds, line in zip(_side_by_side(group), group, strict=True)
        if line in lines
    ]
    seconds, best = zip(*points, strict=True)
    _errorbar(axes, seconds, best, label=name, **style)


def _side_by_side(group: Sequence[Line]) -> list[float]:
    """Where the settings of a group are drawn: around the seconds that they have in common."""
    seconds = math.exp(sum(math.log(line["seconds"]) for line in group) / len(group))
    apart = min(1.025, 1.2 ** (1 / len(group)))  # a large group is not to reach as far as the next one
    return [seconds * apart ** (place - (len(group) - 1) / 2) for place in range(len(group))]


def _equally_fast(lines: Iterable[Line]) -> list[list[Line]]:
    """Settings whose seconds differ by less than noise, in order of seconds; of each sampler and number of steps the
    one with the best zeta."""
    settings = grouped(lines, lambda line: (line["sampler"], line["steps"])).values()
    best = [max(group, key=lambda line: line[METRIC]) for group in settings]
    groups: list[list[Line]] = []
    for line in sorted(best, key=lambda line: line["seconds"]):
        if groups and line["seconds"] < SAME_TIME * groups[-1][0]["seconds"]:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def _label_steps(axes: Axes, groups: Iterable[Sequence[Line]]) -> None:
    """The numbers of steps above each group, over a line from its first setting to its last."""
    at_the_top = axes.get_xaxis_transform()
    below_the_number = at_the_top + ScaledTranslation(0, -13 / 72, axes.figure.dpi_scale_trans)
    for group in groups:
        steps = ", ".join(str(number) for number in sorted({line["steps"] for line in group}))
        places = _side_by_side(group)
        axes.plot([places[0], places[-1]], [1.0, 1.0], color="dimgrey", linewidth=0.8, transform=below_the_number)
        axes.annotate(
            steps,
            (math.sqrt(places[0] * places[-1]), 1.0),
            xycoords=at_the_top,
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color="dimgrey",
        )


def _errorbar(axes: Axes, x: Sequence[float], points: Sequence[Line], **style: Any) -> None:
    scores, errors = [line[METRIC] for line in points], [line[f"{METRIC}_se"] for line in points]
    axes.errorbar(x, scores, yerr=errors, markersize=4.5, linewidth=1.6, capsize=2.5, **style)
