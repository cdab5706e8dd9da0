"""Restored videos of a sweep on disk: all of them for the means, and some clips to look at.

Each process writes `rows/restored/*.npz` and `rows/clips-rank-<r>.h5` while it works; `clips.h5` is made from the
latter. Every file is whole or absent. One that was damaged later counts as absent: the sweep restores its videos again.

Shapes: B batch, F frames, H W pixels (h w low resolution), C channels.
"""

import contextlib
import hashlib
import io
import json
import math
import zipfile
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from vsr_lightning import files
from vsr_lightning.conditions import CONDITION
from vsr_lightning.evaluation.results import (
    COUNTS_AS_MISSING,
    Row,
    item_key,
    normalise,
    sortable,
    video_key,
)

CLIP_ARRAYS = ("observed", "restored", "truth", "bicubic")
CLIP = (*CONDITION, "video")  # what identifies a kept clip


def save_restored(run_dir: Path, rows: Sequence[Mapping[str, Any]], restored: np.ndarray) -> None:
    """Keep a batch of restorations, uint8 (B, F, H, W, C), for the means over noise instances.

    Saved before the batch's rows are, so that an item with a row has its restoration.
    """
    folder = Path(run_dir) / "rows" / "restored"
    folder.mkdir(parents=True, exist_ok=True)
    keys = [item_key(row) for row in rows]
    name = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
    _write_restored(folder / f"{name}.npz", keys, restored)


def _write_restored(path: Path, keys: Sequence[tuple], restored: np.ndarray) -> None:
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, keys=np.array(json.dumps(keys)), restored=restored)


def remove_unfinished(run_dir: Path, since: float) -> None:
    """Remove what killed processes left half-written before `since`, a time as `time.time` tells it.

    No other batch or rank would write over it. What is younger may be somebody's who writes right now.
    """
    for leftover in Path(run_dir).glob("rows/**/*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if leftover.stat().st_mtime < since:
                leftover.unlink()


def drop_unmeasured(run_dir: Path, measured: Container[tuple], clips: Container[tuple]) -> None:
    """Drop the restorations of items, and the clips of videos, that are not among those measured.

    A process killed between saving a batch and its rows leaves such, and what is made instead of them must have no
    rival. For when nobody reads the folder, or writes to it.
    """
    for path in restored_files(run_dir):
        with contextlib.suppress(files.DamagedFile):
            videos = read_restored(path)
            kept = [key for key in videos if key in measured]
            if not kept:
                path.unlink()
            elif len(kept) < len(videos):
                _write_restored(path, kept, np.stack([videos[key] for key in kept]))
    for path in Path(run_dir).glob("rows/clips-rank-*.h5"):
        with contextlib.suppress(files.DamagedFile):
            orphans = [clip for clip in read_clip_file(path) if video_key(clip) not in clips]
            if orphans:
                with _h5_file(path, path.read_bytes()) as file:
                    for clip in orphans:
                        del file[_group_name({column: normalise(clip.get(column)) for column in CLIP})]


def load_restored(run_dir: Path) -> dict[tuple, np.ndarray]:
    """All kept restorations that can be read, uint8 (F, H, W, C), by item key."""
    videos: dict[tuple, np.ndarray] = {}
    with ThreadPoolExecutor() as readers:  # nearly all of it is decompression, which other threads need not wait for
        for batch in readers.map(_restored_if_whole, restored_files(run_dir)):
            videos |= batch
    return videos


def _restored_if_whole(path: Path) -> dict[tuple, np.ndarray]:
    with contextlib.suppress(files.DamagedFile):
        return read_restored(path)
    return {}


def restored_files(run_dir: Path) -> list[Path]:
    return sorted(Path(run_dir).glob("rows/restored/*.npz"))


def read_restored(path: Path) -> dict[tuple, np.ndarray]:
    """The restorations of one batch, uint8 (F, H, W, C), by item key. Raises DamagedFile."""
    with files.reading(path, COUNTS_AS_MISSING), zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        # Not by NumPy alone, which believes an array's header before the checksum of its bytes is known.
        keys, restored = (np.load(io.BytesIO(archive.read(f"{name}.npy"))) for name in ("keys", "restored"))
        return dict(zip(map(tuple, json.loads(str(keys))), restored, strict=True))


@dataclass(frozen=True)
class Clip:
    """The clip of one item, to look at.

    Args:
        row: the item's row, or just its condition and video.
        observed: uint8 (F, h, w, C).
        restored, truth: uint8 (F, H, W, C).
        frames: indices, from 0, of the frames that were observed.
        bicubic: the baseline at the operator's own phase, uint8 (F, H, W, C), if it is to be kept.

    Raises:
        ValueError: if an array is not uint8 of four dimensions.
    """

    row: Mapping[str, Any]
    observed: np.ndarray
    restored: np.ndarray
    truth: np.ndarray
    frames: Sequence[int]
    bicubic: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, array in self.arrays().items():
            if array.dtype != np.uint8 or array.ndim != 4:
                raise ValueError(f"{name} must be uint8 (F, H, W, C), got {array.dtype} {array.shape}")

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = {name: getattr(self, name) for name in CLIP_ARRAYS}
        return {name: array for name, array in arrays.items() if array is not None}


class ClipWriter:
    """Keeps clips to look at in `rows/clips-rank-<rank>.h5`, one group per condition and video.

    The caller passes noise 0 of the first video or videos of each condition.
    """

    def __init__(self, run_dir: Path, rank: int = 0):
        self.path = Path(run_dir) / "rows" / f"clips-rank-{rank}.h5"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._content = self.path.read_bytes() if self.path.exists() and _is_whole(self.path) else b""

    def append(self, clips: Sequence[Clip]) -> None:
        """Keep clips, instead of earlier ones of the same condition and video."""
        if not clips:
            return
        # HDF5 is not readable when its writer is killed, so the file that others see is always a closed one.
        with _h5_file(self.path, self._content) as file:
            for clip in clips:
                key = {column: normalise(clip.row.get(column)) for column in CLIP}
                frames = np.asarray(list(clip.frames), dtype=np.int64)
                _replace_group(file, key, {**clip.arrays(), "frames": frames})
        self._content = self.path.read_bytes()


@contextlib.contextmanager
def _h5_file(path: Path, content: bytes = b"") -> Iterator[h5py.File]:
    """An HDF5 file with that content to change, which takes the place of `path` at the end.

    In memory until then: HDF5 crashes the process when the disk is full.
    """
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "a") if content else h5py.File(buffer, "w", userblock_size=files.SEAL_SIZE) as file:
        yield file
    with files.replacing(path) as temporary:
        temporary.write_bytes(files.seal(buffer.getvalue()))


def _replace_group(file: h5py.File, key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    name = _group_name(key)
    if name in file:
        del file[name]
    group = file.create_group(name)
    group.attrs.update(key)
    for array, values in arrays.items():
        group.create_dataset(array, data=values, compression="gzip")


def _group_name(key: Mapping[str, Any]) -> str:
    """A readable name; HDF5 would read the slashes of a path as nested groups."""
    parts = (f"{column}={value}" for column, value in key.items())
    return " ".join(parts).replace("/", "|")


def merge_clips(run_dir: Path) -> None:
    """Gather the clips of all ranks in `clips.h5`, keeping those that only an earlier `clips.h5` has."""
    path = Path(run_dir) / "clips.h5"
    sources = [source for source in clip_files(run_dir) if _is_whole(source)]
    if not sources:
        path.unlink(missing_ok=True)  # it is damaged, and nothing can take its place yet
        return
    with _h5_file(path) as merged:
        for source in sources:
            with h5py.File(source, "r") as file:
                for name in file:
                    if name not in merged:
                        file.copy(name, merged)


def clip_files(run_dir: Path) -> list[Path]:
    """The clips of each rank, then those gathered before."""
    gathered = Path(run_dir) / "clips.h5"
    return [*sorted(Path(run_dir).glob("rows/clips-rank-*.h5")), *([gathered] if gathered.exists() else [])]


def _is_whole(path: Path) -> bool:
    """Whether every clip of the file can be read. A seal says so; an older file is tried."""
    try:
        with files.reading(path, COUNTS_AS_MISSING):
            if not files.check_seal(path):
                read_clip_file(path)
    except files.DamagedFile:
        return False
    return True


def read_clips(run_dir: Path) -> list[Row]:
    """The clips in `clips.h5`. Raises DamagedFile."""
    return read_clip_file(Path(run_dir) / "clips.h5")


def read_clip_file(path: Path) -> list[Row]:
    """The clips of a file, sorted by condition and video. Raises DamagedFile.

    Each is the condition's columns and `video`, `observed` uint8 (F, h, w, C), `restored`, `truth` and, where it was
    kept, `bicubic` uint8 (F, H, W, C), and `frames`, the observed indices from 0.
    """
    with files.reading(path, COUNTS_AS_MISSING):
        files.check_seal(path)
        with h5py.File(path, "r") as file:
            clips = [_read_clip(name, group) for name, group in file.items()]
    return sorted(clips, key=lambda clip: sortable(video_key(clip)))


def _read_clip(name: str, group: h5py.Group) -> Row:
    """Raises KeyError or ValueError if something is missing or, in a file without a seal, contradicts its name."""
    key = {column: normalise(value) for column, value in group.attrs.items()}
    if name != _group_name({column: key[column] for column in CLIP if column in key}):
        raise ValueError("the clip of another condition than its name says")
    arrays = {array: group[array][()] for array in CLIP_ARRAYS if array in group or array != "bicubic"}
    return {"video": 0} | key | arrays | {"frames": group["frames"][()].tolist()}


def write_gif(clip: Mapping[str, Any], path: Path, min_height: int = 192, milliseconds: int = 250) -> None:
    """Write observed | restored | truth side by side, enlarged to at least `min_height` pixels.

    Frames that were not observed are black on the left.
    """
    truth = clip["truth"]
    seen = np.isin(np.arange(len(truth)), clip["frames"])
    observed = clip["observed"] * seen[:, None, None, None].astype(np.uint8)
    height = truth.shape[1] * math.ceil(min_height / truth.shape[1])
    panels = [_enlarge(frames, height) for frames in (observed, clip["restored"], truth)]
    gap = np.full((len(truth), height, 4, truth.shape[-1]), 255, np.uint8)
    strip = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=2)
    # Of grey frames a GIF holds all shades as they are; a palette for colours takes most of the time.
    first, *others = [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in strip]
    # Optimising, which Pillow does by itself, takes most of the time and makes no smaller files of ours.
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=False)


def _enlarge(frames: np.ndarray, height: int) -> np.ndarray:
    """Repeat pixels up to `height` rows: (F, h, w, C) to (F, height, width, C)."""
    factor = height // frames.shape[1]
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)
