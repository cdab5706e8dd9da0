"""One self-contained HTML page about run folders: clips to step through, sortable tables, figures, provenance.

Made from the files of each folder alone; what a folder lacks is left out. `report.html` beside this file is the
template, which escapes every value; `report.css` and `report.js` go into the page, so that it needs no other file and
no network.
Shapes: F frames, H W pixels (h w low resolution), C channels, 1 or 3. Intensities and errors on [0, 1], PSNR in dB.
"""

import base64
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from vsr_lightning.config import UserError
from vsr_lightning.figures.drawing import frame_psnr, plural
from vsr_lightning.figures.reading import REMAKE, Row, read_clips, read_table
from vsr_lightning.files import reading, write_text

TEMPLATES = Path(__file__).parent
# What runs differ in, in the order in which the page names it.
SETTINGS = (
    *("num_frames", "order", "factor", "kernel", "sigma_h", "sigma_y", "sampler", "steps", "zeta"),
    *("seed", "prior", "dataset"),
)
# How columns are called; others keep their name.
LABELS = {
    "num_frames": "observed frames",
    "order": "order of frames",
    "factor": "scale factor",
    "sigma_h": "sigma_h (px)",
    "psnr": "PSNR (dB)",
    "psnr_first": "PSNR, first frame (dB)",
    "psnr_mean": "PSNR, all frames (dB)",
    "ssim": "SSIM",
    "ssim_mean": "SSIM",
    "temporal_error": "temporal error",
    "residual_rms": "residual RMS",
    "seconds": "time (s)",
    "n": "restorations",
    "n_samples": "samples in the mean",
}
VARIANTS = {"_bicubic": "bicubic", "_vae": "VAE", "_of_mean": "mean of samples", "_difference": "difference"}
DECIMALS = {"psnr": 2, "ssim": 3, "temporal_error": 4, "residual_rms": 4, "seconds": 1}  # by the column's beginning
TABLES = {
    "summary": "By condition",
    "table1": "Methods compared",
    "paired": "Random minus sequential order, paired by video and noise instance",
    "means": "Mean over noise instances, by video and condition",
}
FOLDED_TABLES = ("means",)
CAPTIONS = {
    "fig2": "Restorations of one video beside what was observed of it and the truth",
    "fig3": "PSNR of the first frame against the number of observed frames",
    "fig6": "Restorations of single frames beside the baseline, the truth, and the errors of both",
    "fig7": "Restorations of videos beside what was observed of them and the truth",
}
PANELS = ("observed", "bicubic", "restored", "truth")
ERROR_COLOURS = colormaps["inferno"]


def make_report(run_dirs: Sequence[Path], target: Path) -> Path:
    """Write the page about `run_dirs`, in that order, to `target`, and return its path.

    A run folder holds at least `results.csv`. The same folders give the same page, byte for byte.

    Raises:
        UserError: if a folder has no `results.csv`.
        DamagedFile: if one of its files is damaged.
    """
    runs = _tell_apart([_read_run(Path(folder), f"run-{number}") for number, folder in enumerate(run_dirs, start=1)])
    page = _render(runs, _comparison(runs))
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, page)
    return target


def _render(runs: Sequence["Run"], comparison: "Table | None") -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    template = environment.get_template("report.html")
    return template.render(runs=runs, comparison=comparison, style=style, script=script)


# ---------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True)
class Picture:
    """A figure of a run: `source` is a data URI, the size is in pixels."""

    name: str
    caption: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """What the page shows of a run folder; `key` is unique on the page."""

    key: str
    name: str
    folder: str
    overview: str
    clips: "Clips | None"
    tables: list["Table"]
    pictures: list[Picture]
    provenance: list[tuple[str, str]]
    files: dict[str, str]  # texts to show in full, by name
    summary: Sequence[Row]  # for the comparison


def _read_run(folder: Path, key: str) -> Run:
    if not (folder / "results.csv").is_file():
        raise UserError(f"{folder}: has no results.csv; name folders that a sweep wrote, as runs/frame_count")
    results = read_table(folder / "results.csv")
    tables = {path.stem: read_table(path) for path in _in_order(folder.glob("*.csv")) if path.stem != "results"}
    files = {name: path for name in ("config.yaml", "meta.json") if (path := folder / name).is_file()}
    config, meta = (_read_mapping(files[name]) if name in files else {} for name in ("config.yaml", "meta.json"))
    clips = folder / "clips.h5"
    return Run(
        key=key,
        name=str(config.get("name") or folder.resolve().name),
        folder=str(folder),
        overview=_overview(results),
        clips=_read_viewer(clips) if clips.is_file() else None,
        tables=[_table(name, rows) for name, rows in tables.items() if rows],
        pictures=[_picture(path) for path in sorted(folder.glob("*.png"))],
        provenance=_provenance(folder, meta, results),
        files={name: path.read_text(encoding="utf-8") for name, path in files.items()},
        summary=tables.get("summary", []),
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file, or of JSON, which YAML includes."""
    with reading(path, "remove it, then repeat the sweep's command, which writes it anew"):
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def _in_order(tables: Iterable[Path]) -> list[Path]:
    """Those of TABLES in its order, then the others by name."""
    return sorted(tables, key=lambda path: _place(path.stem, list(TABLES)))


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """To sort by: the place in `known`, all others after them by name."""
    return (known.index(name) if name in known else len(known)), name


def _tell_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of the same name get their folder behind it."""
    counts = Counter(run.name for run in runs)
    return [replace(run, name=f"{run.name} ({run.folder})") if counts[run.name] > 1 else run for run in runs]


def _overview(results: Sequence[Row]) -> str:
    """How much was restored, and what failed of it."""
    ok = sum(row.get("status") == "ok" for row in results)
    videos, noises = (len({row.get(column) for row in results}) for column in ("video", "noise"))
    text = f"{plural(ok, 'restoration')} of {plural(videos, 'video')} × {plural(noises, 'noise instance')}"
    return text if ok == len(results) else f"{text}; {len(results) - ok} failed"


def _picture(path: Path) -> Picture:
    with reading(path, REMAKE), Image.open(path) as image:
        width, height = image.size
        image.verify()
    caption = CAPTIONS.get(path.stem, path.stem.replace("_", " "))
    return Picture(path.name, caption, _png_uri(path.read_bytes()), width, height)


def _png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _provenance(folder: Path, meta: Mapping[str, Any], results: Sequence[Row]) -> list[tuple[str, str]]:
    """Where the numbers come from: code and machine by `meta.json`, the settings by the rows themselves."""
    facts = {"folder": str(folder)}
    facts |= {name: str(meta[name]) for name in ("command", "started", "git", "hardware") if name in meta}
    if versions := meta.get("versions"):
        facts["versions"] = ", ".join(f"{package} {version}" for package, version in versions.items())
    if resumed := meta.get("resumed"):
        facts["resumed"] = "; ".join(f"{go.get('started')} ({go.get('git')}, {go.get('hardware')})" for go in resumed)
    for column in SETTINGS:
        values = dict.fromkeys(_format(column, row[column]) for row in results if row.get(column))
        if values:
            facts[_label(column)] = ", ".join(values)
    return list(facts.items())


# --------------------------------------------------------------------------------------------- tables


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


def _table(name: str, rows: Sequence[Row]) -> Table:
    """`<column>` and `<column>_se` become one cell, "mean ± error"; settings that do not vary leave the table."""
    shown, constant = _columns(rows)
    headers = [Header(_label(column), _is_numeric(column, rows)) for column in shown]
    return Table(
        caption=TABLES.get(name, name.replace("_", " ")),
        is_open=name not in FOLDED_TABLES,
        constants=[(_label(column), _format(column, rows[0][column])) for column in constant],
        headers=headers,
        rows=[
            [_cell(column, row, header.numeric) for column, header in zip(shown, headers, strict=True)] for row in rows
        ],
    )


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
    shown = [column for column in filled if column not in errors and column not in constant]
    return sorted(shown, key=lambda column: len(values.get(column, set()) - {""}) == 1), constant


def _comparison(runs: Sequence[Run]) -> Table | None:
    """A line for each run and condition, with the columns that all summaries share; None for fewer than two."""
    runs = [run for run in runs if run.summary]
    if len(runs) < 2:
        return None
    shared = [column for column in runs[0].summary[0] if all(column in run.summary[0] for run in runs)]
    rows = [{"run": run.name} | {column: row[column] for column in shared} for run in runs for row in run.summary]
    return _table("comparison", rows)


def _label(column: str) -> str:
    for ending, variant in VARIANTS.items():
        if column.endswith(ending):
            return f"{_label(column.removesuffix(ending))}, {variant}"
    return LABELS.get(column, column)


def _is_numeric(column: str, rows: Sequence[Row]) -> bool:
    return all(_number(row[column]) is not None for row in rows if row[column])


def _cell(column: str, row: Row, numeric: bool) -> Cell:
    text, error = _format(column, row[column]), _number(row.get(f"{column}_se", ""))
    if error and math.isfinite(error):  # 0 is the error of what cannot vary, as a number of samples
        text += f" ± {_round(column, error, digits=2)}"
    return Cell(text, _sort_value(row[column]) if numeric else row[column])


def _sort_value(text: str) -> str:
    number = _number(text)
    return "" if number is None or math.isnan(number) else repr(number).replace("inf", "Infinity")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _format(column: str, text: str) -> str:
    """A cell without digits that mean nothing; text that is no number stays."""
    number = _number(text)
    return text if number is None else _round(column, number, digits=4)


def _round(column: str, number: float, digits: int) -> str:
    """Fixed decimals where DECIMALS has them, so that a column lines up; else an integer, or so many digits."""
    for beginning, decimals in DECIMALS.items():
        if column.startswith(beginning):
            return f"{number:.{decimals}f}"
    return str(int(number)) if number.is_integer() else f"{number:.{digits}g}"


# ---------------------------------------------------------------------------------------------- clips


@dataclass(frozen=True)
class Clip:
    """A kept clip: its `settings`, the indices of its observed `frames` from 0, and uint8 `arrays` (F, H, W, C)."""

    settings: dict[str, int | float | str]
    frames: list[int]
    arrays: dict[str, np.ndarray]


@dataclass(frozen=True)
class Control:
    """A setting that differs between clips, with its values in order: a slider for numbers, else a list."""

    column: str
    label: str
    values: list[str]
    numeric: bool


@dataclass(frozen=True)
class Clips:
    """The viewer: its controls, its panels from left to right, and `data`, which `report.js` reads as JSON.

    `error_scale` is the error at the bright end of the error map, `error_colours` its colours from 0 on.
    """

    controls: list[Control]
    panels: list[str]
    error_scale: float
    error_colours: list[str]
    data: dict[str, Any]


def _read_viewer(path: Path) -> Clips | None:
    clips = [_to_clip(row) for row in read_clips(path)]
    if not clips:
        return None
    varying = _varying(clips)
    clips.sort(key=lambda clip: [*_choice(clip, varying).values()])
    scale = max(float(_error(clip).max()) for clip in clips)
    sprites: dict[str, int] = {}  # the truth is the same under all conditions, and kept once
    texts = {column: [_setting_text(column, value) for value in values] for column, values in varying.items()}
    return Clips(
        controls=[
            Control(column, _label(column), texts[column], numeric=not any(isinstance(value, str) for value in values))
            for column, values in varying.items()
        ],
        panels=[name for name in PANELS if any(name in clip.arrays for clip in clips)] + ["error"],
        error_scale=scale,
        error_colours=[to_hex(colour) for colour in ERROR_COLOURS(np.linspace(0, 1, 9))],
        data={
            "clips": [_clip_data(clip, varying, scale, sprites) for clip in clips],
            "sprites": list(sprites),
            "values": texts,
        },
    )


def _to_clip(row: Row) -> Clip:
    """Raises KeyError if an array that every clip has is missing."""
    arrays = {name: row[name] for name in PANELS if name in row or name != "bicubic"}
    settings = {column: _plain(value) for column, value in row.items() if column not in (*PANELS, "frames")}
    return Clip(settings, row["frames"].tolist(), arrays)


def _plain(value: Any) -> int | float | str:
    """A scalar of HDF5 as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _varying(clips: Sequence[Clip]) -> dict[str, list[Any]]:
    """The settings in which clips differ, each with its values in order, numbers before texts."""
    columns = sorted(clips[0].settings, key=lambda column: _place(column, SETTINGS))
    found = {column: {clip.settings[column] for clip in clips} for column in columns}
    return {
        column: sorted(values, key=lambda value: (isinstance(value, str), value))
        for column, values in found.items()
        if len(values) > 1
    }


def _choice(clip: Clip, varying: Mapping[str, list[Any]]) -> dict[str, int]:
    """The clip's settings as places in the lists of values."""
    return {column: values.index(clip.settings[column]) for column, values in varying.items()}


def _setting_text(column: str, value: Any) -> str:
    return _format(column, str(value)) or "none"


def _clip_data(clip: Clip, varying: Mapping[str, list[Any]], scale: float, sprites: dict[str, int]) -> dict[str, Any]:
    """What `report.js` knows of a clip; its pictures join `sprites`, which numbers them."""
    images = {name: _grey_or_rgb(array) for name, array in clip.arrays.items()}
    images["error"] = _error_map(_error(clip), scale)
    settings = (f"{_label(column)} {_setting_text(column, clip.settings[column])}" for column in varying)
    return {
        "choice": _choice(clip, varying),
        "label": ", ".join(settings),
        "frames": clip.frames,
        "length": len(clip.arrays["truth"]),
        "sprites": {name: sprites.setdefault(_encode(image), len(sprites)) for name, image in images.items()},
        "notes": {name: _psnr_notes(clip, name) for name in ("bicubic", "restored") if name in clip.arrays},
    }


def _psnr_notes(clip: Clip, name: str) -> list[str]:
    """What stands beside the name of a panel, for each frame."""
    pairs = zip(clip.arrays[name], clip.arrays["truth"], strict=True)
    return [f"{frame_psnr(frame, truth):.1f} dB" for frame, truth in pairs]


def _error(clip: Clip) -> np.ndarray:
    """|restored - truth|, mean over colours: float32 (F, H, W)."""
    restored, truth = (clip.arrays[name].astype(np.float32) / 255 for name in ("restored", "truth"))
    return np.abs(restored - truth).mean(axis=-1)


def _strip(clip: np.ndarray) -> np.ndarray:
    """The frames side by side: (F, H, W, ...) -> (H, F W, ...)."""
    frames, height, width = clip.shape[:3]
    return clip.swapaxes(0, 1).reshape(height, frames * width, *clip.shape[3:])


def _grey_or_rgb(clip: np.ndarray) -> Image.Image:
    strip = _strip(clip)
    return Image.fromarray(strip[..., 0] if strip.shape[-1] == 1 else strip)


def _error_map(error: np.ndarray, scale: float) -> Image.Image:
    """A strip in ERROR_COLOURS, from 0 to `scale`."""
    image = Image.fromarray(np.round(255 * _strip(error) / max(scale, 1e-6)).astype(np.uint8))
    image.putpalette(ERROR_COLOURS(np.arange(256), bytes=True)[:, :3].tobytes())
    return image


def _encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return _png_uri(buffer.getvalue())
