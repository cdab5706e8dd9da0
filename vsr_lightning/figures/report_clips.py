"""The clip viewer of the report: pictures of kept clips, and what `report.js` needs to step through them.

Shapes: F frames, H W pixels (h w low resolution), C channels, 1 or 3. Intensities and errors on [0, 1], PSNR in dB.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from PIL import Image

from vsr_lightning.figures.drawing import frame_psnr
from vsr_lightning.figures.reading import Row, read_clips
from vsr_lightning.figures.report_words import SETTINGS, format_cell, label, place

PANELS = ("observed", "bicubic", "restored", "truth")
ERROR_COLOURS = colormaps["inferno"]


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


def read_viewer(path: Path) -> Clips | None:
    """The viewer of `clips.h5`; None if no clip was kept. Raises DamagedFile."""
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
            Control(column, label(column), texts[column], numeric=not any(isinstance(value, str) for value in values))
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
    arrays = {name: row[name] for name in PANELS if name in row}
    settings = {column: _plain(value) for column, value in row.items() if column not in (*PANELS, "frames")}
    return Clip(settings, row["frames"].tolist(), arrays)


def _plain(value: Any) -> int | float | str:
    """A scalar of HDF5 as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _varying(clips: Sequence[Clip]) -> dict[str, list[Any]]:
    """The settings in which clips differ, each with its values in order, numbers before texts."""
    columns = sorted(clips[0].settings, key=lambda column: place(column, SETTINGS))
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
    return format_cell(column, str(value)) or "none"


def _clip_data(clip: Clip, varying: Mapping[str, list[Any]], scale: float, sprites: dict[str, int]) -> dict[str, Any]:
    """What `report.js` knows of a clip; its pictures join `sprites`, which numbers them."""
    images = {name: _grey_or_rgb(array) for name, array in clip.arrays.items()}
    images["error"] = _error_map(_error(clip), scale)
    settings = (f"{label(column)} {_setting_text(column, clip.settings[column])}" for column in varying)
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
    return png_uri(buffer.getvalue())


def png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
