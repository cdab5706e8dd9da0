"""What figures are made of: the result files of a run folder, and means over their rows.

Figures know a run by its files alone, `results.csv`, `means.csv` and `clips.h5`, so that they can be drawn anywhere.
Shapes: F frames, H W pixels (h w low resolution), C channels.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import h5py

Row = Mapping[str, Any]

CLIP_ARRAYS = ("observed", "restored", "truth", "frames", "bicubic")


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, cells as text; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_ok_rows(path: Path) -> list[dict[str, str]]:
    """Items of `results.csv` that did not fail, cells as text; none if there is no file."""
    return [row for row in read_table(path) if row["status"] == "ok"]


def of_same_observation(rows: Iterable[Row], like: Row) -> list[Row]:
    """Those rows whose clips were degraded as those of the row `like`, whatever frames were observed of them."""
    columns = ("dataset", "factor", "kernel", "sigma_h", "sigma_y")
    return [row for row in rows if all(str(row[column]) == str(like[column]) for column in columns)]


def read_clips(path: Path) -> list[dict[str, Any]]:
    """Kept clips: each its condition's columns and `video`, with its arrays.

    `observed` is uint8 (F, h, w, C), `restored` and `truth` are uint8 (F, H, W, C), `frames` holds the observed
    indices. Older files lack `bicubic` (F, H, W, C), and `video`, which was 0.
    """
    with h5py.File(path, "r") as file:
        return [
            {"video": 0} | dict(group.attrs) | {name: group[name][()] for name in CLIP_ARRAYS if name in group}
            for group in file.values()
        ]


def mean_and_error(values: Iterable[tuple[Any, float]]) -> tuple[float, float, int]:
    """Mean, standard error and number of videos, from (video, value) pairs; each video counts once.

    Noise instances of one video are not independent. The error is nan for a single video.
    """
    by_video: dict[Any, list[float]] = defaultdict(list)
    for video, value in values:
        by_video[video].append(value)
    means = [fmean(of_video) for of_video in by_video.values()]
    error = stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    return fmean(means), error, len(means)
