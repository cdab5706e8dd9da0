"""Figs. 4 and 5 of the paper: what blur before decimation, against aliasing, does to the restoration.

Made from `results.csv` and `clips.h5` of a run folder. The paper finds that the curves of all blur widths converge as
frames are added; `convergence.csv` says by how much they do.
Shapes: F frames, H W pixels (h w low resolution), C channels. PSNR in dB, widths in high-resolution pixels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from vsr_lightning.averages import ItemKey, paired_difference
from vsr_lightning.conditions import CONDITION, OPERATOR, without
from vsr_lightning.figures.drawing import (
    against_frames,
    annotate,
    counts,
    draw_curve,
    label_row,
    number_frames,
    panel_grid,
    sampling,
    save,
    short,
    show_frame,
    source,
)
from vsr_lightning.figures.reading import (
    Row,
    curve,
    grouped,
    number_of_frames,
    of_same_observation,
    read_clips,
    read_ok_rows,
    read_oracle,
)
from vsr_lightning.files import write_table

METRIC = "psnr_first"
SETTING = without(CONDITION, *OPERATOR, "num_frames")
COLOURS = colormaps["viridis"]
CONVERGENCE = (
    *("factor", "num_frames", "sharpest", "blurriest", "spread", "spread_se", "spread_oracle"),
    *("difference", "difference_se", "videos"),
)


def make_figures(run_dir: Path) -> list[Path]:
    """Write `fig4.png`, `fig5.png` and `convergence.csv` into the run folder, where their data is; their paths."""
    run_dir = Path(run_dir)
    paths = []
    clips = read_clips(run_dir / "clips.h5") if (run_dir / "clips.h5").exists() else []
    if pair := sharpest_and_blurriest(clips):
        paths.append(run_dir / "fig4.png")
        save(draw_fig4(*pair), paths[-1])
    if rows := _of_one_setting(read_ok_rows(run_dir / "results.csv")):
        paths += [run_dir / "fig5.png", run_dir / "convergence.csv"]
        oracle = read_oracle(run_dir / "oracle.csv")
        save(draw_fig5(rows, oracle), paths[-2])
        write_table(paths[-1], CONVERGENCE, convergence(rows, oracle))
    return paths


def _of_one_setting(rows: Iterable[Row]) -> list[Row]:
    """Rows of the Gaussian kernel that differ in factor, width and number of frames alone; of several such, the first.

    Samplers or noises are not to be averaged. The figure's title says which setting it is.
    """
    settings = grouped((row for row in rows if row["kernel"] == "gaussian"), itemgetter(*SETTING))
    return next(iter(settings.values()), [])


# ---------------------------------------------------------------------------------------- statistics


def convergence(rows: Iterable[Row], oracle: Sequence[Row] = ()) -> list[dict[str, Any]]:
    """How far apart the blur widths are, for each factor, number of observed frames and range of widths.

    Args:
        rows: items of `results.csv`, of one order of frames and one sensor noise.
        oracle: conditions of `oracle.csv`.

    Returns:
        Lines with the columns CONVERGENCE. A range goes from the sharpest width to each of the others (`sharpest`,
        `blurriest`). `spread` is the best mean over its widths minus the worst one, with a standard error by the
        jackknife over videos (Efron 1982, chapter 3); `spread_oracle` is the oracle's, None where it was not asked for
        them all; `difference` is the range's first width minus its last, paired by video, with its standard error.
        Errors are nan for a single video.
    """
    lines = []
    for (factor, num_frames), group in sorted(grouped(rows, _factor_and_frames).items()):
        of_widths = dict(sorted(grouped(group, _width).items()))
        by_width = {width: _video_means(of_width) for width, of_width in of_widths.items()}
        limits = {width: dict(_of_oracle(oracle, of_width[0])) for width, of_width in of_widths.items()}
        widths = list(of_widths)
        for count in range(2, len(widths) + 1):
            chosen = [by_width[width] for width in widths[:count]]
            known = [limits[width][num_frames] for width in widths[:count] if num_frames in limits[width]]
            of_oracle = max(known) - min(known) if len(known) == count else None
            values = (*(factor, num_frames, widths[0], widths[count - 1]), *_spread(chosen), of_oracle)
            lines.append(dict(zip(CONVERGENCE, (*values, *paired_difference(chosen[0], chosen[-1])), strict=True)))
    return lines


def _spread(by_width: Sequence[Mapping[ItemKey, float]]) -> tuple[float, float]:
    """The best mean over videos of any width minus the worst one, and its standard error by the jackknife."""

    def spread(without: ItemKey | None = None) -> float:
        means = [fmean(score for video, score in scores.items() if video != without) for scores in by_width]
        return max(means) - min(means)

    videos = sorted(set[ItemKey]().union(*by_width))  # in one order, for sums that round alike each time
    if any(len(scores) < 2 for scores in by_width):
        return spread(), math.nan
    left_out = [spread(video) for video in videos]
    mean = fmean(left_out)
    return spread(), math.sqrt((len(videos) - 1) / len(videos) * sum((value - mean) ** 2 for value in left_out))


def _of_oracle(oracle: Iterable[Row], like: Row) -> list[tuple[int, float]]:
    """What the oracle reaches under a row's observation: (number of observed frames, score), in order."""
    alike = [row for row in of_same_observation(oracle, like) if row["order"] == like["order"]]
    return sorted((number_of_frames(row), float(row[METRIC])) for row in alike)


def _factor(row: Row) -> int:
    return int(row["factor"])


def _factor_and_frames(row: Row) -> tuple[int, int]:
    return _factor(row), number_of_frames(row)


def _width(row: Row) -> float:
    return float(row["sigma_h"])


def _video_means(rows: Iterable[Row]) -> dict[ItemKey, float]:
    """Mean over noise instances, by video alone."""
    by_video = grouped(rows, itemgetter("video"))
    return {(video,): fmean(float(row[METRIC]) for row in of_video) for video, of_video in by_video.items()}


# --------------------------------------------------------------------------------------------- Fig. 5


def draw_fig5(rows: Sequence[Row], oracle: Sequence[Row] = ()) -> Figure:
    """A panel for each factor, a curve for each blur width, PSNR of the first frame against observed frames.

    Dotted, where `oracle` has the conditions (`oracle.csv`): what an oracle reaches that is told the motion.
    """
    by_factor = grouped(rows, _factor)
    widths = sorted({_width(row) for row in rows})
    colours = {width: COLOURS(0.9 * place / max(1, len(widths) - 1)) for place, width in enumerate(widths)}
    figure = Figure(figsize=(6.8 * len(by_factor), 4.8), layout="constrained")
    panels = figure.subplots(1, len(by_factor), squeeze=False, sharey=True)[0]
    dotted = ""
    for axes, (factor, group) in zip(panels, sorted(by_factor.items()), strict=True):
        for width, of_width in sorted(grouped(group, _width).items()):
            draw_curve(axes, curve(of_width, METRIC), rf"$\sigma_h$ {short(width)} px", colours[width], marker="o")
            if points := _of_oracle(oracle, of_width[0]):
                dotted = "; dotted: an oracle that is told the motion"
                axes.plot(*zip(*points, strict=True), color=colours[width], linestyle=":", linewidth=1.4)
        axes.set_title(f"{factor}×", fontsize=10)
        against_frames(axes, legend_columns=6)
    panels[0].set_ylabel("PSNR of the first frame (dB)")
    figure.suptitle(f"{_title(rows[0])}\n{counts(rows)}{dotted}", fontsize=10)
    return figure


def _title(row: Row) -> str:
    """Two lines: one is wider than a figure of a single panel."""
    return f"{source(row)}, $\\sigma_y$ {short(row['sigma_y'])}\n{sampling(row)}, {row['order']} order"


# --------------------------------------------------------------------------------------------- Fig. 4


def sharpest_and_blurriest(clips: Sequence[Row]) -> tuple[Row, Row] | None:
    """The least and the most blurred of the clips with the largest factor and most observed frames; None if equal."""
    gaussian = [clip for clip in clips if clip["kernel"] == "gaussian"]
    if not gaussian:
        return None
    most = max(map(_factor_and_frames, gaussian))
    alike = [clip for clip in gaussian if _factor_and_frames(clip) == most]
    first = min(alike, key=lambda clip: (_width(clip), int(clip["video"])))
    last = max(alike, key=lambda clip: (_width(clip), -int(clip["video"])))
    return None if _width(first) == _width(last) else (first, last)


def draw_fig4(sharpest: Row, blurriest: Row) -> Figure:
    """A video and its observations with the least and the most blur; one column for each frame."""
    rows = [("truth", sharpest["truth"])]
    rows += [
        (f"{short(clip['factor'])}×\n$\\sigma_h$ {short(clip['sigma_h'])} px", clip["observed"])
        for clip in (sharpest, blurriest)
    ]
    num_frames = len(sharpest["truth"])
    figure, (panels,) = panel_grid(1, len(rows), num_frames, cell=0.82)
    for line, (label, video) in zip(panels, rows, strict=True):
        label_row(line[0], label)
        for axes, frame in zip(line, video, strict=True):
            show_frame(axes, frame)
    number_frames(panels[0], range(num_frames))
    annotate(figure, str(sharpest["dataset"]), "without blur, decimation aliases; with much, little is left to alias")
    return figure
