"""What figures share in how they look: frames in a grid, curves, titles, numbers, and saving without a display.

Shapes: H W pixels, C channels. Lengths in inches, PSNR in dB.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vsr_lightning.conditions import used_samplers
from vsr_lightning.figures.reading import Row
from vsr_lightning.files import replacing

DPI = 150


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, without pyplot's global state."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")


# -------------------------------------------------------------------------------------------- layout


def panel_grid(
    blocks: int, rows: int, columns: int, *, cell: float, gap: float = 0.0, top: float = 0.58
) -> tuple[Figure, np.ndarray]:
    """A figure of square panels: `blocks` below each other, each of `rows` by `columns`.

    Args:
        cell: width and height of a panel with its margin.
        gap: above each block but the first.
        top: room for the title and the column titles.

    Returns:
        The figure and its axes, (blocks, rows, columns), with room for row labels on the left and a note below.
    """
    left, right, bottom, margin = 0.95, 0.1, 0.36, 0.05
    width = left + columns * cell + right
    height = top + blocks * rows * cell + (blocks - 1) * gap + bottom
    figure = Figure(figsize=(width, height))
    panels = np.empty((blocks, rows, columns), dtype=object)
    for block, row, column in np.ndindex(*panels.shape):
        x = left + column * cell
        y = height - top - (block * rows + row + 1) * cell - block * gap
        side = cell - margin
        panels[block, row, column] = figure.add_axes((x / width, y / height, side / width, side / height))
    return figure, panels


def annotate(figure: Figure, title: str, note: str) -> None:
    """A title at the top of a panel grid, and a note at its foot."""
    height = figure.get_figheight()
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    figure.text(0.5, 0.12 / height, note, ha="center", fontsize=9, color="0.25")


def label_row(axes: Axes, label: str) -> None:
    """A label on the left of the first panel of a row."""
    axes.set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)


def show_frame(axes: Axes, frame: np.ndarray, colour: str = "0.75", linewidth: float = 0.6) -> None:
    """Show one frame uint8 (H, W, C), grey or RGB, pixel by pixel in a border."""
    axes.imshow(np.broadcast_to(frame, (*frame.shape[:2], 3)), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=linewidth)


def number_frames(line: Iterable[Axes], frames: Iterable[int]) -> None:
    """Write above each panel of a line which frame it shows; indices are from 0."""
    for axes, frame in zip(line, frames, strict=True):
        axes.set_title(f"frame {frame + 1}", fontsize=9, pad=4)


# -------------------------------------------------------------------------------------------- curves


def draw_curve(axes: Axes, points: Iterable[tuple[int, float, float]], label: str, colour: Any, marker: str) -> None:
    """Points (number of observed frames, mean, standard error) as a line with error bars."""
    numbers, means, errors = zip(*points, strict=True)
    style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.8, "capsize": 3}
    axes.errorbar(numbers, means, yerr=errors, label=label, **style)


def against_frames(axes: Axes, legend_columns: int) -> None:
    """Finish a panel whose curves are drawn against the number of observed frames."""
    axes.set_xlabel("number of observed frames")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16, min_n_ticks=1))
    axes.grid(alpha=0.3, linewidth=0.6)
    # Below the axes: the curves may be anywhere inside.
    style: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "frameon": False, "fontsize": 9}
    axes.legend(ncols=legend_columns, **style)


# ------------------------------------------------------------------------------------ numbers, words


def frame_psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of two frames uint8 (H, W, C), 148 dB for equal ones."""
    error = a.astype(float) - b.astype(float)
    return 10 * math.log10(255**2 / max(float(np.mean(error**2)), 1e-10))


def samplers_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The samplers that a `config.yaml` uses, with their parameters; steps and zeta where the grid lists none."""
    sections = used_samplers(config).items()
    return {f"sampler {name}" if name else "sampler’s parameters": section_text(s) for name, s in sections if s}


def section_text(section: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """The target's name and the parameters that were given, as "dps_restart_sample: steps 820, temperature 0.5"."""
    target = str(section.get("target", "")).rpartition(".")[2]
    given = {key: value for key, value in section.items() if key not in ("target", *without) and value is not None}
    parameters = ", ".join(f"{key} {value}" for key, value in given.items())
    return ": ".join(filter(None, [target, parameters]))


def short(number: Any) -> str:
    """2, "2" and 2.0 all as "2"."""
    return f"{float(number):g}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def counts(rows: Sequence[Row]) -> str:
    """What curves are the means of, and what their bars are."""
    videos, noises = (len({row[column] for row in rows}) for column in ("video", "noise"))
    bars = ", bars: standard error over videos" if videos > 1 else ""
    return f"{plural(videos, 'video')} × {plural(noises, 'noise instance')}{bars}"


def source(row: Row) -> str:
    """Prior and data, in one name where they have the same."""
    prior, dataset = Path(str(row["prior"])).name, row["dataset"]
    return prior if prior == dataset else f"prior {prior} on {dataset}"


def operator(row: Row) -> str:
    """Factor and kernel, the Gaussian by its width."""
    blur = rf"$\sigma_h$ {short(row['sigma_h'])} px" if row["kernel"] == "gaussian" else row["kernel"]
    return f"{short(row['factor'])}×, {blur}"


def sampling(row: Row) -> str:
    """Sampler, steps and guidance scale."""
    return f"{row['sampler']}, {short(row['steps'])} steps, $\\zeta$ {short(row['zeta'])}"
