"""Table I and Figs. 6 and 7 of the paper: restorations beside bicubic upsampling and the VAE's own reconstruction.

Made from `results.csv`, `means.csv` and `clips.h5` of a run folder. What the paper printed stands apart and is marked:
it was measured on BAIR, with clips and a kernel that the paper does not name.
Shapes: F frames, H W pixels (h w low resolution), C channels. PSNR in dB, temporal error on [0, 1].
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vsr_lightning.averages import known
from vsr_lightning.conditions import OPERATOR
from vsr_lightning.figures.drawing import (
    annotate,
    frame_psnr,
    label_row,
    number_frames,
    operator,
    panel_grid,
    plural,
    samplers_of,
    sampling,
    save,
    short,
    show_frame,
    source,
)
from vsr_lightning.figures.reading import (
    CONFIG_REMAKE,
    Row,
    grouped,
    mean_of,
    read_clips,
    read_config,
    read_means,
    read_ok_rows,
)
from vsr_lightning.files import reading, write_table, write_text

# The other columns of a condition, in the order of the table.
SETTING = ("dataset", "prior", "sampler", "steps", "zeta", "sigma_y", "num_frames", "order", "seed")
METHODS = {"bicubic upsampling": "_bicubic", "ours, one sample": "", "VAE reconstruction (ceiling)": "_vae"}
# Columns of the table, and those of the rows that they are from.
SCORES = {"psnr": "psnr_mean", "ssim": "ssim_mean", "temporal_error": "temporal_error"}
TABLE = (*SETTING, *OPERATOR, "method", "source", *(f"{s}{end}" for s in SCORES for end in ("", "_se")), "clips")

QUOTED_FACTOR = 4
QUOTED_SOURCE = "quoted from the paper, measured on real BAIR"
QUOTED = {  # Table I: PSNR, SSIM
    "IART (paper)": (24.80, 0.886),
    "FMA-Net (paper)": (25.35, 0.897),
    "VDM-VSR (paper)": (27.44, 0.928),
}

CELL = 1.33  # inches: 64 pixels are drawn as 192
MAX_VIDEOS = 3  # of each kernel in Fig. 6
MAX_COLUMNS = 5  # frames in Fig. 7


def make_figures(run_dir: Path) -> list[Path]:
    """Write `table1.csv`, `table1.md`, `fig6.png` (4x) and `fig7.png` (8x), those whose data is there; their paths."""
    run_dir = Path(run_dir)
    paths = []
    config = run_dir / "config.yaml"
    with reading(config, CONFIG_REMAKE):
        samplers = samplers_of(read_config(config))
    if table := table1(read_ok_rows(run_dir / "results.csv"), read_means(run_dir / "means.csv")):
        paths += [run_dir / "table1.csv", run_dir / "table1.md"]
        write_table(paths[0], TABLE, table)
        write_text(paths[1], to_markdown(table, samplers))
    clips = read_clips(run_dir / "clips.h5") if (run_dir / "clips.h5").exists() else []
    for name, factor, draw in (("fig6.png", 4, draw_fig6), ("fig7.png", 8, draw_fig7)):
        if examples := clips_by_kernel(clips, factor):
            paths.append(run_dir / name)
            save(draw(examples), paths[-1])
    return paths


# ------------------------------------------------------------------------------------------- Table I


def table1(rows: Iterable[Row], means: Iterable[Row]) -> list[dict[str, Any]]:
    """Table I with a line for each condition and method, then the paper's lines if 4x was measured.

    Args:
        rows: items of `results.csv` that did not fail.
        means: rows of `means.csv`, the scores of the mean over a video's samples.

    Returns:
        Lines with the columns TABLE; None where there is no number. Errors are over videos.
    """
    by_condition, means_of = _by_condition(rows), _by_condition(means)
    table = [
        {column: group[0][column] for column in (*SETTING, *OPERATOR)} | {"source": "measured"} | line
        for condition, group in sorted(by_condition.items())
        for line in _measured_lines(group, means_of.get(condition, []))
    ]
    if any(int(line["factor"]) == QUOTED_FACTOR for line in table):
        table += [
            {"factor": QUOTED_FACTOR, "method": name, "source": QUOTED_SOURCE, "psnr": psnr, "ssim": ssim}
            for name, (psnr, ssim) in QUOTED.items()
        ]
    return [dict.fromkeys(TABLE) | line for line in table]


def to_markdown(table: Sequence[Row], samplers: Mapping[str, str] | None = None) -> str:
    """The table for people: measured lines by setting, and what is quoted under a heading of its own.

    `samplers` are in words, by name, what rows do not say of them.
    """
    by_setting = grouped((line for line in table if line["source"] == "measured"), itemgetter(*SETTING))
    parts = [_measured_markdown(lines) for lines in by_setting.values()]
    if samplers:
        parts.append("\n".join(f"{name}: {words}" for name, words in samplers.items()) + "\n")
    if quoted := [line for line in table if line["source"] == QUOTED_SOURCE]:
        parts.append(_quoted_markdown(quoted))
    return "\n".join(parts)


def _by_condition(rows: Iterable[Row]) -> dict[tuple, list[Row]]:
    return grouped(rows, lambda row: tuple(_comparable(row[column]) for column in (*SETTING, *OPERATOR)))


def _comparable(cell: str) -> tuple[float, str]:
    """A cell as a key: "2" and "2.0" are equal, numbers are sorted by value, texts after them."""
    try:
        return float(cell), ""
    except ValueError:
        return math.inf, cell


def _measured_lines(rows: Sequence[Row], means: Sequence[Row]) -> list[dict[str, Any]]:
    """A line for each method that has numbers, from the items and the means of one condition."""
    lines = []
    for method, suffix in METHODS.items():
        lines.append({"method": method, **_scores(rows, suffix)})
        samples = max((int(row["n_samples"]) for row in means), default=1)
        if method == "ours, one sample" and samples > 1:
            complete = [row for row in means if int(row["n_samples"]) == samples]  # means of fewer are another estimate
            lines.append({"method": f"ours, mean of {samples} samples", **_scores(complete, "_of_mean")})
    return [line for line in lines if "psnr" in line]


def _scores(rows: Iterable[Row], suffix: str) -> dict[str, Any]:
    """Mean and standard error of each score that was measured, and the number of videos; of one, no error."""
    line: dict[str, Any] = {}
    for score, column in SCORES.items():
        if measured := [row for row in rows if row.get(column + suffix)]:
            line[score], error, line["clips"] = mean_of(measured, column + suffix)
            line[f"{score}_se"] = known(error)
    return line


def _measured_markdown(lines: Sequence[Row]) -> str:
    first = lines[0]
    text = [
        f"## Measured on {first['dataset']}",
        "",
        f"Prior {first['prior']}; {first['sampler']}, {short(first['steps'])} steps, zeta {short(first['zeta'])}; "
        f"{plural(int(first['num_frames']), 'frame')} observed ({first['order']} order), "
        f"sigma_y {short(first['sigma_y'])}. ± is the standard error over clips; temporal error is on [0, 1].",
        "",
        "| scale | kernel | method | PSNR (dB) | SSIM | temporal error | clips |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for line in lines:
        kernel = f"gaussian, sigma_h {short(line['sigma_h'])}" if line["kernel"] == "gaussian" else line["kernel"]
        numbers = [_number(line, "psnr", 2), _number(line, "ssim", 3), _number(line, "temporal_error", 4)]
        cells = [f"{short(line['factor'])}×", kernel, line["method"], *numbers, str(line["clips"])]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def _quoted_markdown(lines: Sequence[Row]) -> str:
    text = [
        "## Quoted from the paper, not measured here",
        "",
        f"Table I of the paper, real BAIR, {QUOTED_FACTOR}×. It names neither its clips nor its kernel: these numbers "
        "give the ones above a place, they are no comparison.",
        "",
        "| scale | method | PSNR (dB) | SSIM |",
        "| --- | --- | --- | --- |",
    ]
    text += [f"| {line['factor']}× | {line['method']} | {line['psnr']:.2f} | {line['ssim']:.3f} |" for line in lines]
    return "\n".join(text) + "\n"


def _number(line: Row, score: str, digits: int) -> str:
    """ "27.44 ± 0.12", without an error for a single clip, empty where nothing was measured."""
    value, error = line[score], line[f"{score}_se"]
    if value is None:
        return ""
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


# ------------------------------------------------------------------------------------------- pictures


def clips_by_kernel(clips: Sequence[Row], factor: int) -> list[list[Row]]:
    """For each kernel its clips at a factor, by video, under one condition: that with the most observed frames."""
    groups: dict[str, dict[tuple, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for clip in clips:
        if int(clip["factor"]) == factor:
            condition = int(clip["num_frames"]), *(str(clip[column]) for column in (*SETTING, *OPERATOR))
            groups[clip["kernel"]][condition].append(clip)
    chosen = [of_kernel[max(of_kernel)] for _, of_kernel in sorted(groups.items())]
    return [sorted(group, key=lambda clip: int(clip["video"])) for group in chosen]


def draw_fig6(examples: Sequence[Sequence[Row]]) -> Figure:
    """The middle frame of a few videos for each kernel: observation, baseline, restoration, truth, and errors."""
    blocks = [group[:MAX_VIDEOS] for group in examples]
    clips = [clip for block in blocks for clip in block]
    methods = [name for name in ("bicubic", "restored") if all(name in clip for clip in clips)]
    worst = max(_error(clip, name).max() for clip in clips for name in methods)
    pictures = ["observed", *methods, "truth"]
    figure, panels = panel_grid(1, len(clips), len(pictures) + len(methods), cell=CELL)
    for line, clip in zip(panels[0], clips, strict=True):
        label_row(line[0], f"video {clip['video']}\n{operator(clip)}")
        for axes, name in zip(line, pictures, strict=False):
            show_frame(axes, clip[name][_middle(clip)])
        for axes, name in zip(line[len(pictures) :], methods, strict=True):
            _show_error(axes, clip, name, worst)
    for axes, title in zip(panels[0, 0], [*pictures, *(f"error, {name}" for name in methods)], strict=True):
        axes.set_title(title, fontsize=9, pad=4)
    note = f"frame {_middle(clips[0]) + 1}; errors: black 0, white {worst:.2f} of the range; dB: PSNR of the frame"
    annotate(figure, _title(clips[0]), note)
    return figure


def draw_fig7(examples: Sequence[Sequence[Row]]) -> Figure:
    """One video for each kernel, every second frame: observation, restoration, truth."""
    clips = [group[0] for group in examples]
    frames = range(0, len(clips[0]["truth"]), 2)[:MAX_COLUMNS]
    figure, panels = panel_grid(len(clips), 3, len(frames), cell=CELL, gap=0.15)
    for block, clip in zip(panels, clips, strict=True):
        quality = np.mean([frame_psnr(*pair) for pair in zip(clip["restored"], clip["truth"], strict=True)])
        height, width = clip["observed"].shape[1:3]
        labels = {
            "observed": f"video {clip['video']}\n{operator(clip)}\nobserved\n{width}×{height}",
            "restored": f"restored\n{quality:.1f} dB",
            "truth": "truth",
        }
        for line, (name, label) in zip(block, labels.items(), strict=True):
            label_row(line[0], label)
            for axes, frame in zip(line, frames, strict=True):
                show_frame(axes, clip[name][frame])
    number_frames(panels[0, 0], frames)
    annotate(figure, _title(clips[0]), "dB: PSNR, mean over all frames")
    return figure


def _middle(clip: Row) -> int:
    """Index of the middle frame, the 5th of 10 as in the paper."""
    return (len(clip["truth"]) - 1) // 2


def _error(clip: Row, name: str) -> np.ndarray:
    """Absolute error of the middle frame, (H, W) on [0, 1], mean over colours."""
    frame, truth = (clip[array][_middle(clip)].astype(float) for array in (name, "truth"))
    return np.abs(frame - truth).mean(axis=-1) / 255


def _show_error(axes: Axes, clip: Row, name: str, worst: float) -> None:
    """An error map, black to white at `worst`, with the frame's PSNR in its corner."""
    levels = _error(clip, name) / max(worst, 1e-6) * 255
    show_frame(axes, levels.round().astype(np.uint8)[..., None])
    psnr = frame_psnr(clip[name][_middle(clip)], clip["truth"][_middle(clip)])
    box = {"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 1.5}
    axes.text(0.04, 0.04, f"{psnr:.1f} dB", transform=axes.transAxes, color="white", fontsize=8, va="bottom", bbox=box)


def _title(clip: Row) -> str:
    """Data and sampler in two lines, the operator being named beside the rows."""
    frames = plural(int(clip["num_frames"]), "frame")
    return f"{source(clip)}\n{sampling(clip)}, $\\sigma_y$ {short(clip['sigma_y'])}, {frames} observed"
