"""What figures are made of: the result files of a run folder, and means over their rows.

Figures know a run by its files alone, `results.csv`, `means.csv` and `clips.h5`, so that they can be drawn anywhere.
Shapes: F frames, H W pixels (h w low resolution), C channels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import h5py
import yaml

from vsr_lightning import files
from vsr_lightning.averages import mean_and_error
from vsr_lightning.conditions import ITEM, NUMBERS, OPERATOR, TEXTS

Row = Mapping[str, Any]
Key = TypeVar("Key")

REMAKE = "repeat the sweep's command, which makes it anew, or remove the file"  # of a file that is damaged
CONFIG_REMAKE = "remove it, then repeat the sweep's command, which writes it anew"
SCORES = ("psnr", "ssim", "temporal_error", "seconds")  # how measured columns begin; they may be empty
CLIP_ARRAYS = ("observed", "restored", "truth", "frames", "bicubic")


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, cells as text; none if there is no file. Raises DamagedFile."""
    return files.read_table(path, REMAKE) if path.exists() else []


def read_ok_rows(path: Path) -> list[dict[str, str]]:
    """Items of `results.csv` that did not fail, cells as text; none if there is no file. Raises DamagedFile."""
    rows = read_table(path)
    with files.reading(path, REMAKE):
        ok = [row for row in rows if row["status"] == "ok"]
        _check_cells(ok, numbers=(*ITEM, "psnr_first"))
    return ok


def read_means(path: Path) -> list[dict[str, str]]:
    """Rows of `means.csv`, cells as text; none if there is no file. Raises DamagedFile."""
    rows = read_table(path)
    with files.reading(path, REMAKE):
        _check_cells(rows, numbers=("video", "n_samples"))
    return rows


def read_oracle(path: Path) -> list[dict[str, str]]:
    """Conditions of `oracle.csv`, cells as text; none if there is no file. Raises DamagedFile."""
    rows = read_table(path)
    with files.reading(path, REMAKE.replace("sweep's", "oracle's")):
        _check_cells(rows, numbers=("psnr_first",))
    return rows


def _check_cells(rows: Iterable[Row], numbers: Iterable[str]) -> None:
    """Raise KeyError or ValueError unless rows have a condition and `numbers`, and numbers can be read as such."""
    for row in rows:
        scores = [column for column in row if column.startswith(SCORES) and row[column]]
        for column in (*NUMBERS, *numbers, *scores):
            float(row[column])
        for column in TEXTS:
            row[column]


def read_config(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file, or of JSON, which YAML includes; none if there is no file. Raises DamagedFile."""
    if not path.exists():
        return {}
    with files.reading(path, CONFIG_REMAKE):
        return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def of_same_observation(rows: Iterable[Row], like: Row) -> list[Row]:
    """Those rows whose clips were degraded as those of the row `like`, whatever frames were observed of them."""
    columns = ("dataset", "seed", *OPERATOR, "sigma_y")
    return [row for row in rows if all(str(row[column]) == str(like[column]) for column in columns)]


def read_clips(path: Path) -> list[dict[str, Any]]:
    """Kept clips: each its condition's columns and `video`, with its arrays.

    `observed` is uint8 (F, h, w, C), `restored` and `truth` are uint8 (F, H, W, C), `frames` holds the observed
    indices. Older files lack `bicubic` (F, H, W, C), and `video`, which was 0. Raises DamagedFile.
    """
    with files.reading(path, REMAKE):
        files.check_seal(path)
        with h5py.File(path, "r") as file:
            clips = [
                {"video": 0}
                | dict(group.attrs)
                | {name: group[name][()] for name in CLIP_ARRAYS if name in group or name != "bicubic"}
                for group in file.values()
            ]
        _check_cells(clips, numbers=("video",))
    return clips


def grouped(rows: Iterable[Row], key: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """Rows by what `key` says of them, keys and rows in the order in which they come."""
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def number_of_frames(row: Row) -> int:
    return int(row["num_frames"])


def mean_of(rows: Iterable[Row], column: str) -> tuple[float, float, int]:
    """Mean over videos of a column, its standard error, and the number of videos."""
    return mean_and_error((row["video"], float(row[column])) for row in rows)


def curve(rows: Iterable[Row], metric: str) -> list[tuple[int, float, float]]:
    """Points (number of observed frames, mean, standard error) of a column of items."""
    by_number = sorted(grouped(rows, number_of_frames).items())
    return [(number, *mean_of(of_number, metric)[:2]) for number, of_number in by_number]
