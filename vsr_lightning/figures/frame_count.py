"""Figs. 2 and 3 of the paper: what more observed frames do for the restoration.

Made from `results.csv` and `clips.h5` of a run folder, without a display and without pyplot's global state.
Shapes: F frames, H W pixels (h w low resolution), C channels. PSNR in dB.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]

ORDERS = {"sequential": ("tab:blue", "o"), "random": ("tab:red", "s")}  # colours as in the paper
BASELINES = {"psnr_first_bicubic": "bicubic", "psnr_first_vae": "VAE reconstruction"}
# What one curve, or one column of pictures, has in common.
SETTING = ("prior", "dataset", "factor", "kernel", "sigma_h", "sigma_y", "sampler", "steps", "zeta", "seed")
MAX_RESTORATIONS = 6


def make_figures(run_dir: Path) -> list[Path]:
    """Write `fig2.png`, `fig3.png` and `paired.csv` into the run folder, those whose data is there; their paths."""
    run_dir = Path(run_dir)
    figures = []
    if (run_dir / "clips.h5").exists():
        figures.append(run_dir / "fig2.png")
        fig2(run_dir, figures[-1])
    results = run_dir / "results.csv"
    if results.exists() and len({row["num_frames"] for row in _read_ok_rows(results)}) > 1:
        figures.append(run_dir / "fig3.png")
        fig3(run_dir, figures[-1])
    if results.exists() and (paired := paired_difference(_read_ok_rows(results))):
        figures.append(run_dir / "paired.csv")
        write_paired(paired, figures[-1])
    return figures


def write_paired(paired: dict[int, tuple[float, float, int]], path: Path) -> None:
    """Save random minus sequential order, PSNR of the first frame in dB, by number of observed frames."""
    lines = ["num_frames,psnr_first_difference,psnr_first_difference_se,videos"]
    lines += [f"{number},{mean},{error},{videos}" for number, (mean, error, videos) in sorted(paired.items())]
    path.write_text("\n".join(lines) + "\n")


def fig2(run_dir: Path, path: Path) -> None:
    """Save the restorations of one video beside what was observed (paper, Fig. 2)."""
    _save(draw_fig2(_read_clips(Path(run_dir) / "clips.h5")), path)


def fig3(run_dir: Path, path: Path) -> None:
    """Save the PSNR of the first frame against the number of observed frames (paper, Fig. 3)."""
    _save(draw_fig3(_read_ok_rows(Path(run_dir) / "results.csv")), path)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150, facecolor="white")


# ------------------------------------------------------------------------------------------- reading


def _read_ok_rows(path: Path) -> list[dict[str, str]]:
    """Items of `results.csv` that did not fail, cells as text."""
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["status"] == "ok"]


def _read_clips(path: Path) -> list[dict[str, Any]]:
    """Each condition's columns with its arrays `observed`, `restored`, `truth` and `frames`."""
    with h5py.File(path, "r") as file:
        return [
            dict(group.attrs) | {name: group[name][()] for name in ("observed", "restored", "truth", "frames")}
            for group in file.values()
        ]


def _setting(row: Row) -> tuple:
    return tuple(row.get(column, "") for column in SETTING)


# ---------------------------------------------------------------------------------------- statistics


def paired_difference(rows: Iterable[Row], metric: str = "psnr_first") -> dict[int, tuple[float, float, int]]:
    """How much the random order gains over the sequential one, by number of observed frames.

    Pairs share setting, video and noise instance; an item that is there under one order only has no pair.

    Returns:
        `{num_frames: (mean, standard error, number of videos)}`, in the unit of `metric`. The error is over
        per-video means, and nan for a single video.
    """
    pairs: dict[tuple, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row.get("status", "ok") == "ok":
            item = int(row["num_frames"]), str(row["video"]), str(row["noise"]), *map(str, _setting(row))
            pairs[item][row["order"]] = float(row[metric])

    differences: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for (num_frames, video, *_), values in pairs.items():
        if "random" in values and "sequential" in values:
            differences[num_frames].append((video, values["random"] - values["sequential"]))
    return {num_frames: _mean_and_error(differences[num_frames]) for num_frames in sorted(differences)}


def _mean_and_error(values: Iterable[tuple[str, float]]) -> tuple[float, float, int]:
    """Mean, standard error and number of videos, from (video, value); each video counts once."""
    by_video: dict[str, list[float]] = defaultdict(list)
    for video, value in values:
        by_video[video].append(value)
    means = [fmean(of_video) for of_video in by_video.values()]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return fmean(means), error, len(means)


def _curve(rows: Sequence[Row], order: str, metric: str) -> list[tuple[int, float, float]]:
    """Points (number of frames, mean, standard error) of one order."""
    by_number: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        by_number[int(row["num_frames"])].append(row)
    points = []
    for num_frames, group in sorted(by_number.items()):
        of_order = [row for row in group if row["order"] == order]
        if of_order:
            mean, error, _ = _mean_and_error((row["video"], float(row[metric])) for row in of_order)
            points.append((num_frames, mean, error))
    return points


# --------------------------------------------------------------------------------------------- Fig. 3


def draw_fig3(rows: Sequence[Row]) -> Figure:
    """A panel for each setting among `rows` (items of `results.csv`), one curve for each order of frames."""
    by_setting: dict[tuple, list[Row]] = defaultdict(list)
    for row in rows:
        by_setting[_setting(row)].append(row)
    columns = min(len(by_setting), 3)
    lines = math.ceil(len(by_setting) / columns)
    figure = Figure(figsize=(6.8 * columns, 4.8 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes, group in zip(panels, by_setting.values(), strict=False):
        _draw_panel(axes, group)
    for axes in panels[len(by_setting) :]:
        axes.set_axis_off()
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    metric = "psnr_first"
    for order, (colour, marker) in ORDERS.items():
        if any(row["order"] == order for row in rows):
            numbers, means, errors = zip(*_curve(rows, order, metric), strict=True)
            style: dict[str, Any] = {
                "color": colour,
                "marker": marker,
                "markersize": 4.5,
                "linewidth": 1.8,
                "capsize": 3,
            }
            axes.errorbar(numbers, means, yerr=errors, label=f"{order} order", **style)
    for column, name in BASELINES.items():
        values = [(row["video"], float(row[column])) for row in rows if row.get(column, "") != ""]
        if values:
            level = _mean_and_error(values)[0]
            label = f"{name}: {level:.1f} dB"
            if column == "psnr_first_vae":  # far above the curves: a line there would press them together
                axes.plot([], [], linestyle="", label=label)
            else:
                axes.axhline(level, color="0.35", linestyle="--", linewidth=1.4, label=label)
    axes.set_xlabel("number of observed frames")
    axes.set_ylabel("PSNR of the first frame (dB)")
    axes.set_title(_title(rows[0]) + "\n" + _counts(rows), fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
    axes.grid(alpha=0.3, linewidth=0.6)
    # Below the axes: the curves may be anywhere inside.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4, frameon=False, fontsize=9)


def _title(row: Row) -> str:
    """Prior, data, degradation and sampler in two lines."""
    prior, dataset = Path(str(row["prior"])).name, row["dataset"]
    source = prior if prior == dataset else f"prior {prior} on {dataset}"
    blur = rf"$\sigma_h$ {_short(row['sigma_h'])} px" if row["kernel"] == "gaussian" else row["kernel"]
    return (
        f"{source}, {_short(row['factor'])}×, {blur}, $\\sigma_y$ {_short(row['sigma_y'])}\n"
        f"{row['sampler']}, {_short(row['steps'])} steps, $\\zeta$ {_short(row['zeta'])}"
    )


def _short(number: Any) -> str:
    """2, "2" and 2.0 all as "2"."""
    return f"{float(number):g}"


def _counts(rows: Sequence[Row]) -> str:
    videos, noises = len({row["video"] for row in rows}), len({row["noise"] for row in rows})
    bars = ", bars: standard error over videos" if videos > 1 else ""
    return f"{_plural(videos, 'video')} × {_plural(noises, 'noise instance')}{bars}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


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
        (f"{_plural(int(clip['num_frames']), 'frame')}\n{_psnr_first(clip):.1f} dB", clip["restored"]) for clip in clips
    ]
    seen = [None, most["frames"], *(clip["frames"] for clip in clips)]

    cell, left, top, bottom = 0.82, 0.95, 0.58, 0.36  # inches
    size = left + cell * num_frames + 0.1, top + cell * len(rows) + bottom
    figure = Figure(figsize=size)
    panels = figure.subplots(len(rows), num_frames, squeeze=False)
    figure.subplots_adjust(
        left=left / size[0],
        right=1 - 0.1 / size[0],
        top=1 - top / size[1],
        bottom=bottom / size[1],
        wspace=0.06,
        hspace=0.06,
    )
    for line, ((label, video), frames) in enumerate(zip(rows, seen, strict=True)):
        panels[line, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)
        for index, axes in enumerate(panels[line]):
            _draw_frame(axes, video[index], observed=None if frames is None else index in frames)
            if line == 1 and index not in most["frames"]:
                _hatch(axes)
    for index, axes in enumerate(panels[0]):
        axes.set_title(f"frame {index + 1}", fontsize=9, pad=4)
    figure.suptitle(_title(most).replace("\n", ", "), fontsize=10, y=1 - 0.1 / size[1], va="top")
    note = f"{most['order']} order; blue border: the frame was observed; dB: PSNR of frame 1"
    figure.text(0.5, 0.12 / size[1], note, ha="center", fontsize=9, color="0.25")
    return figure


def _one_curve(clips: Sequence[Row]) -> list[Row]:
    """Clips of one setting and order, by number of frames, at most MAX_RESTORATIONS of them."""
    first = min(clips, key=lambda clip: (tuple(map(str, _setting(clip))), clip["order"] != "sequential"))
    same = [c for c in clips if _setting(c) == _setting(first) and c["order"] == first["order"]]
    same.sort(key=lambda clip: int(clip["num_frames"]))
    if len(same) <= MAX_RESTORATIONS:
        return same
    # Denser where few frames are observed, which is where the restoration changes most.
    chosen = np.geomspace(1, len(same), MAX_RESTORATIONS).round().astype(int) - 1
    return [same[index] for index in sorted(set(chosen.tolist()))]


def _psnr_first(clip: Row) -> float:
    """PSNR in dB of the first restored frame, from the 8-bit clips."""
    error = clip["restored"][0].astype(float) - clip["truth"][0].astype(float)
    return 10 * math.log10(255**2 / max(float(np.mean(error**2)), 1e-10))


def _draw_frame(axes: Axes, frame: np.ndarray, observed: bool | None) -> None:
    """Show one frame uint8 (H, W, C) with a border that tells whether it was observed."""
    axes.imshow(np.broadcast_to(frame, (*frame.shape[:2], 3)), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color="tab:blue" if observed else "0.75", linewidth=2.0 if observed else 0.6)


def _hatch(axes: Axes) -> None:
    """Cross out a frame that was not observed."""
    style: dict[str, Any] = {"facecolor": "0.92", "edgecolor": "0.6", "hatch": "////", "linewidth": 0}
    axes.add_patch(Rectangle((0, 0), 1, 1, transform=axes.transAxes, **style))
