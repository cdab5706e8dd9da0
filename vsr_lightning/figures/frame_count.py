"""Figs. 2 and 3 of the paper: what more observed frames do for the restoration.

Made from `results.csv` and `clips.h5` of a run folder, without a display and without pyplot's global state.
Shapes: F frames, H W pixels (h w low resolution), C channels. PSNR in dB.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vsr_lightning.averages import ItemKey, item_scores, paired_difference
from vsr_lightning.conditions import CONDITION, FRAMES, without
from vsr_lightning.figures.drawing import (
    against_frames,
    annotate,
    counts,
    draw_curve,
    frame_psnr,
    label_row,
    number_frames,
    operator,
    panel_grid,
    plural,
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
    mean_of,
    number_of_frames,
    of_same_observation,
    read_clips,
    read_ok_rows,
    read_oracle,
)
from vsr_lightning.files import write_table

METRIC = "psnr_first"
ORDERS = {"sequential": ("tab:blue", "o"), "random": ("tab:red", "s")}  # colours as in the paper
BASELINES = {"psnr_first_bicubic": "bicubic", "psnr_first_vae": "VAE reconstruction"}
# What one curve, or one column of pictures, has in common.
SETTING = without(CONDITION, *FRAMES)
PAIRED = ("num_frames", "psnr_first_difference", "psnr_first_difference_se", "videos")  # columns of paired.csv
MAX_RESTORATIONS = 6


def make_figures(run_dir: Path) -> list[Path]:
    """Write `fig2.png`, `fig3.png` and `paired.csv` into the run folder, those whose data is there; their paths."""
    run_dir = Path(run_dir)
    figures = []
    if (run_dir / "clips.h5").exists():
        figures.append(run_dir / "fig2.png")
        fig2(run_dir, figures[-1])
    rows = read_ok_rows(run_dir / "results.csv")
    if len({row["num_frames"] for row in rows}) > 1:
        figures.append(run_dir / "fig3.png")
        fig3(run_dir, figures[-1])
    if paired := random_minus_sequential(rows):
        figures.append(run_dir / "paired.csv")
        write_paired(paired, figures[-1])
    return figures


def write_paired(paired: dict[int, tuple[float, float, int]], path: Path) -> None:
    """Save random minus sequential order, PSNR of the first frame in dB, by number of observed frames."""
    lines = [dict(zip(PAIRED, (number, *values), strict=True)) for number, values in sorted(paired.items())]
    write_table(path, PAIRED, lines)


def fig2(run_dir: Path, path: Path) -> None:
    """Save the restorations of one video beside what was observed (paper, Fig. 2)."""
    save(draw_fig2(read_clips(Path(run_dir) / "clips.h5")), path)


def fig3(run_dir: Path, path: Path) -> None:
    """Save the PSNR of the first frame against the number of observed frames (paper, Fig. 3).

    Beside it, where `oracle.csv` is there, what an oracle reaches that is told the motion.
    """
    run_dir = Path(run_dir)
    save(draw_fig3(read_ok_rows(run_dir / "results.csv"), read_oracle(run_dir / "oracle.csv")), path)


def _setting(row: Row) -> tuple:
    return tuple(row.get(column, "") for column in SETTING)


# ---------------------------------------------------------------------------------------- statistics


def random_minus_sequential(rows: Iterable[Row], metric: str = METRIC) -> dict[int, tuple[float, float, int]]:
    """How much the random order gains over the sequential one, by number of observed frames.

    Pairs share setting, video and noise instance; an item that is there under one order only has no pair.

    Returns:
        `{num_frames: (mean, standard error, number of videos)}`, in the unit of `metric`. The error is over
        per-video means, and nan for a single video.
    """
    ok = (row for row in rows if row["status"] == "ok")
    gains = {
        num_frames: paired_difference(_scores(group, "random", metric), _scores(group, "sequential", metric))
        for num_frames, group in sorted(grouped(ok, number_of_frames).items())
    }
    return {num_frames: gain for num_frames, gain in gains.items() if gain[-1] > 0}


def _scores(rows: Iterable[Row], order: str, metric: str) -> dict[ItemKey, float]:
    return item_scores((row for row in rows if row["order"] == order), metric, also=SETTING)


# --------------------------------------------------------------------------------------------- Fig. 3


def draw_fig3(rows: Sequence[Row], oracle: Sequence[Row] = ()) -> Figure:
    """A panel for each setting among `rows` (items of `results.csv`), one curve for each order of frames.

    `oracle` are conditions of `oracle.csv`, drawn in the panels with the same observations.
    """
    by_setting = grouped(rows, _setting)
    columns = min(len(by_setting), 3)
    lines = math.ceil(len(by_setting) / columns)
    figure = Figure(figsize=(6.8 * columns, 4.8 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes, group in zip(panels, by_setting.values(), strict=False):
        _draw_panel(axes, group, of_same_observation(oracle, group[0]))
    for axes in panels[len(by_setting) :]:
        axes.set_axis_off()
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row], oracle: Sequence[Row]) -> None:
    for order, (colour, marker) in ORDERS.items():
        if of_order := [row for row in rows if row["order"] == order]:
            draw_curve(axes, curve(of_order, METRIC), f"{order} order", colour, marker)
        points = sorted((int(row["num_frames"]), float(row[METRIC])) for row in oracle if row["order"] == order)
        if points:
            label = f"told the motion, {order}"
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=":", linewidth=1.6, label=label)
    for column, name in BASELINES.items():
        if measured := [row for row in rows if row.get(column, "") != ""]:
            level = mean_of(measured, column)[0]
            label = f"{name}: {level:.1f} dB"
            if column == "psnr_first_vae":  # far above the curves: a line there would press them together
                axes.plot([], [], linestyle="", label=label)
            else:
                axes.axhline(level, color="0.35", linestyle="--", linewidth=1.4, label=label)
    axes.set_ylabel("PSNR of the first frame (dB)")
    axes.set_title(_title(rows[0]) + "\n" + counts(rows), fontsize=10)
    against_frames(axes, legend_columns=2)  # four are wider than a panel


def _title(row: Row) -> str:
    """Prior, data, degradation and sampler in two lines."""
    return f"{source(row)}, {operator(row)}, $\\sigma_y$ {short(row['sigma_y'])}\n{sampling(row)}"


# --------------------------------------------------------------------------------------------- Fig. 2


def draw_fig2(clips: Sequence[Row]) -> Figure:
    """Truth, observation, and restorations from a growing number of frames; one column per frame.

    Of several settings the first is drawn, in sequential order where there is one.
    """
    clips = _one_curve(clips)
    most = clips[-1]
    num_frames = len(most["truth"])
    height, width = most["observed"].shape[1:3]
    rows = [("truth", most["truth"]), (f"observed\n{width}×{height}", most["observed"])]
    rows += [
        (f"{plural(int(clip['num_frames']), 'frame')}\n{_psnr_first(clip):.1f} dB", clip["restored"]) for clip in clips
    ]
    seen = [None, most["frames"], *(clip["frames"] for clip in clips)]

    figure, (panels,) = panel_grid(1, len(rows), num_frames, cell=0.82)
    for line, ((label, video), frames) in enumerate(zip(rows, seen, strict=True)):
        label_row(panels[line, 0], label)
        for index, axes in enumerate(panels[line]):
            observed = frames is not None and index in frames
            show_frame(axes, video[index], *(("tab:blue", 2.0) if observed else ()))
            if line == 1 and index not in most["frames"]:
                _hatch(axes)
    number_frames(panels[0], range(num_frames))
    note = f"{most['order']} order; blue border: the frame was observed; dB: PSNR of frame 1"
    annotate(figure, _title(most).replace("\n", ", "), note)
    return figure


def _one_curve(clips: Sequence[Row]) -> list[Row]:
    """Clips of one setting, order and video, by number of frames, at most MAX_RESTORATIONS of them."""
    first = min(clips, key=lambda c: (tuple(map(str, _setting(c))), c["order"] != "sequential", c["video"]))
    same = [c for c in clips if _curve_key(c) == _curve_key(first)]
    same.sort(key=lambda clip: int(clip["num_frames"]))
    if len(same) <= MAX_RESTORATIONS:
        return same
    # Denser where few frames are observed, which is where the restoration changes most.
    chosen = np.geomspace(1, len(same), MAX_RESTORATIONS).round().astype(int) - 1
    return [same[index] for index in sorted(set(chosen.tolist()))]


def _curve_key(clip: Row) -> tuple:
    return *_setting(clip), clip["order"], clip["video"]


def _psnr_first(clip: Row) -> float:
    """PSNR in dB of the first restored frame, from the 8-bit clips."""
    return frame_psnr(clip["restored"][0], clip["truth"][0])


def _hatch(axes: Axes) -> None:
    """Cross out a frame that was not observed."""
    style: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, **style))
