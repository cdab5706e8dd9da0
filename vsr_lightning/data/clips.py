"""Clips: where they lie on disk, how they are stored, and how they reach the networks.

B batch, F frames, C channels, H W pixels. Stored clips are uint8 (N, F, H, W, C); videos are float32
(B, F, C, H, W) in [-1, 1].
"""

import contextlib
import hashlib
import http.client
import os
import shutil
import sys
import threading
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from vsr_lightning.config import UserError
from vsr_lightning.files import put_in_place, remove_abandoned, temporary_path

STORE_FORMAT = 1  # of the layout of clip stores; a reader takes no other


def to_video(clips: Tensor) -> Tensor:
    """uint8 (..., F, H, W, C) -> float32 (..., F, C, H, W) in [-1, 1]."""
    return clips.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_video`, clamped and rounded: (..., F, C, H, W) -> uint8 (..., F, H, W, C)."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


# ---------------------------------------------------------------------------------------------------------
# Where data lies, and how it gets there


def read_dirs(dir: str = "") -> list[Path]:
    """Folders in which to look for data, first match wins: `dir`, $VSR_DATA_DIR, data/."""
    return [Path(folder) for folder in (dir, os.environ.get("VSR_DATA_DIR", ""), "data") if folder]


def write_dir(dir: str = "") -> Path:
    """The folder to write data to: `dir`, else data/. $VSR_DATA_DIR is only ever read."""
    return Path(dir or "data")


def find_file(name: str, dir: str = "") -> Path | None:
    """The first file called `name` (a relative path) in `read_dirs(dir)`, or None."""
    return next((folder / name for folder in read_dirs(dir) if (folder / name).is_file()), None)


def check_space(folder: Path, num_bytes: float) -> None:
    """Raise UserError unless the disk of a folder, which need not exist, has room."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"{folder}: {num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; make room, or name a folder "
            "on another disk as data.dir"
        )


def download(url: str, path: Path, url_infos: Mapping[str, Any], *, seconds: float = 10, first_bytes: int = 1) -> None:
    """Download `url` to `path` through TFDS, which verifies it against its checksum in `url_infos`.

    Gives up, with a UserError, unless the `first_bytes` arrive within `seconds`. `path` appears only when complete;
    an interrupted download starts again.
    """
    # TFDS itself retries for minutes where there is no network, in threads that nothing can stop.
    if not _arrives(url, first_bytes, seconds):
        raise UserError(f"{url}: out of reach, or too slow")

    from tensorflow_datasets.core.download import DownloadManager

    folder = temporary_path(path)
    try:
        folder.mkdir(parents=True)
        remove_abandoned(path)
        manager = DownloadManager(download_dir=folder, url_infos=dict(url_infos), force_checksums_validation=True)
        put_in_place(Path(manager.download(url)), path)
    except Exception as error:  # whatever requests, urllib3, the file system or TFDS's checksum test raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{url}: download to {path} failed: {reason}") from error
    except KeyboardInterrupt:
        # Python waits for threads before it exits, and nothing stops TFDS's.
        print("the download ends with the next Ctrl-C", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _arrives(url: str, num_bytes: int, seconds: float) -> bool:
    """Whether the first `num_bytes` of `url` can be had within `seconds`."""
    arrived = threading.Event()

    def read() -> None:
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            urllib.request.urlopen(url, timeout=seconds) as response,
        ):
            if len(response.read(num_bytes)) == num_bytes:
                arrived.set()

    # A thread, because the time-out of urlopen covers neither the name look-up nor a slow trickle.
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(seconds)
    return arrived.is_set()


# ---------------------------------------------------------------------------------------------------------
# The clip store


class StoreWriter:
    """Writes clips to an HDF5 store, which appears under `path` only at `commit`.

    A context manager: without a commit, its end leaves nothing behind and an older store as it was. What writers
    that were killed left behind goes at the next writer's start.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        source: str,
        camera: str = "",
        frames_per_second: float | None = None,
        created_by: str = "vsr_lightning",
    ) -> None:
        self.path = Path(path)
        self.num_clips = 0
        self._attributes = {
            "format": STORE_FORMAT,
            "name": name,
            "source": source,
            "camera": camera,
            "frames_per_second": frames_per_second or 0.0,
            "created_by": created_by,
        }
        self._sha256 = hashlib.sha256()
        self._temporary = temporary_path(self.path)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(self.path)
        self._file = h5py.File(self._temporary, "w")
        return self

    def append(self, chunk: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Add clips: uint8 (n, F, H, W, C), or a mapping with that under `video` and, beside it, `action` (n, F, 4)
        and `endeffector_pos` (n, F, 3)."""
        arrays = chunk if isinstance(chunk, Mapping) else {"video": chunk}
        for key, array in arrays.items():
            _append(self._file, key, array)
        self._sha256.update(np.ascontiguousarray(arrays["video"]).data)
        self.num_clips += len(arrays["video"])

    def commit(self) -> None:
        """Put the finished store in place. Raises UserError if there is nothing in it."""
        if self.num_clips == 0:
            raise UserError(f"{self.path}: no clips to store: is the source empty?")
        self._file.attrs.update(self._attributes, sha256=self._sha256.hexdigest())
        self._file.close()
        put_in_place(self._temporary, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._file.close()  # may fail, where the disk is full
        finally:
            self._temporary.unlink(missing_ok=True)


def write_store(path: str | Path, chunks: Iterable[np.ndarray | Mapping[str, np.ndarray]], **attributes: Any) -> None:
    """Write a store from chunks, consumed one at a time; see `StoreWriter` for these and the attributes."""
    with StoreWriter(path, **attributes) as writer:
        for chunk in chunks:
            writer.append(chunk)
        writer.commit()


def _append(file: h5py.File, key: str, array: np.ndarray) -> None:
    if key == "video" and (array.dtype != np.uint8 or array.ndim != 5):
        raise ValueError(f"clips must be uint8 (n, F, H, W, C), not {array.dtype} {array.shape}")
    if key not in file:
        one = (1, *array.shape[1:])  # one trajectory per HDF5 chunk
        shape, maxshape = (0, *array.shape[1:]), (None, *array.shape[1:])
        file.create_dataset(key, shape, array.dtype, maxshape=maxshape, chunks=one)
    stored = file[key]
    stored.resize(len(stored) + len(array), axis=0)
    stored[len(stored) - len(array) :] = array


class ClipStore(Dataset[Tensor]):
    """A store written by `write_store` as a dataset: `[i]` is a uint8 tensor (F, H, W, C)."""

    endless = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._dataset: h5py.Dataset | None = None  # kept: to look it up takes longer than to read a clip
        self._pid = 0
        with self._open() as file:
            self.shape: tuple[int, ...] = file["video"].shape
            self.attributes: dict[str, Any] = dict(file.attrs)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(self._video()[index])

    def frames(self, index: int, first: int, count: int) -> Tensor:
        """`count` consecutive frames of a clip, of which no others are read: uint8 (count, H, W, C)."""
        return torch.from_numpy(self._video()[index, first : first + count])

    def verify(self) -> None:
        """Raise UserError unless the clips have the checksum they were written with."""
        sha256 = hashlib.sha256()
        for clip in self._video():
            sha256.update(clip)
        if sha256.hexdigest() != self.attributes["sha256"]:
            raise UserError(f"{self.path}: altered since it was written (sha256 differs); delete and rebuild it")

    def _video(self) -> h5py.Dataset:
        # HDF5 handles survive neither a fork nor pickling, so each process opens its own at first use.
        if self._dataset is None or self._pid != os.getpid():
            self._file, self._pid = self._open(), os.getpid()
            self._dataset = self._file["video"]
        return self._dataset

    def _open(self) -> h5py.File:
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such clip store; make it with the `data` command")
        try:
            # Without HDF5's chunk cache, just the wanted frames of a chunk are read: three times as fast for a third.
            file = h5py.File(self.path, "r", rdcc_nbytes=0)
        except OSError as error:
            raise UserError(f"{self.path}: not an HDF5 file, or truncated; delete and rebuild it") from error
        video = file.get("video")
        is_store = isinstance(video, h5py.Dataset) and video.dtype == np.uint8 and video.ndim == 5
        if not is_store or "sha256" not in file.attrs:
            file.close()
            raise UserError(f"{self.path}: not a clip store (no uint8 `video` (N, F, H, W, C) with a sha256)")
        if file.attrs.get("format") != STORE_FORMAT:
            found = file.attrs.get("format", "none")
            file.close()
            raise UserError(
                f"{self.path}: written by another version (store format {found}, not {STORE_FORMAT}); "
                "delete and rebuild it"
            )
        return file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_dataset": None}


# ---------------------------------------------------------------------------------------------------------
# Batches


class StepBatchSampler(Sampler[list[int]]):
    """Endless batches of indices in which the batch of step s is a function of (seed, s) alone.

    So a run resumed at `start_step` sees exactly what it would have seen. The order is one permutation of
    the items after another, each of its own seed; `num_items=None` counts upwards for ever. Step s takes the
    next `batch_size * world_size` indices of that order, and rank r the r-th part of them.
    """

    def __init__(
        self,
        num_items: int | None,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_items == 0:
            raise UserError("no training clips: the dataset is empty")
        if batch_size < 1:
            raise UserError(f"data.batch_size: must be at least 1, not {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch_at(step)
            step += 1

    def batch_at(self, step: int) -> list[int]:
        """The indices of this rank at a global step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        if self.num_items is None:
            return places.tolist()
        epochs, places = np.divmod(places, self.num_items)
        parts = [
            self._permute(epoch, self.num_items)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.concatenate(parts).tolist()

    def _permute(self, epoch: int, num_items: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(num_items)
        return self._permutation


def collate(clips: Tensor | Sequence[Tensor]) -> Tensor:
    """Stack clips to a batch; one that `__getitems__` already made passes through."""
    return clips if isinstance(clips, Tensor) else torch.stack(list(clips))


def stack(clips: Dataset[Tensor], indices: Iterable[int]) -> Tensor:
    """Some clips of a dataset as video, (B, F, C, H, W) in [-1, 1]."""
    return to_video(torch.stack([clips[index] for index in indices]))


class ClipDataModule(lightning.LightningDataModule, ABC):
    """The base of every dataset: subclasses say what the clips are, this class brings them to the device.

    Loaders yield uint8 (B, F, H, W, C), a quarter of the bytes; on the device that becomes float32 video
    (B, F, C, H, W) in [-1, 1]. The Trainer must have `use_distributed_sampler=False`.

    Args:
        batch_size: clips per step and device.
        num_workers: processes that prepare clips, per device.
        seed: of the training clips and their order.
        val_videos: size of the validation set; it is the same clips in the same order, always.
        num_frames: frames per clip.
        dir: where stores are written and first looked for; see `read_dirs`.
        source: a local archive, file or folder to use in place of a download.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_workers: int = 4,
        seed: int = 0,
        val_videos: int = 256,
        num_frames: int = 10,
        dir: str = "",
        source: str = "",
    ) -> None:
        super().__init__()
        for key, value in {
            "batch_size": batch_size,
            "val_videos": val_videos,
            "num_frames": num_frames,
        }.items():
            if value < 1:
                raise UserError(f"data.{key}: must be at least 1, not {value}")
        if num_workers < 0:
            raise UserError(f"data.num_workers: must not be negative, not {num_workers}")
        if seed < 0:
            raise UserError(f"data.seed: must not be negative, not {seed}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_videos = val_videos
        self.num_frames = num_frames
        self.dir = dir
        self.source = source

    @abstractmethod
    def train_clips(self) -> Dataset[Tensor]:
        """Training clips, each uint8 (F, H, W, C); endless where the dataset says `endless = True`."""

    @abstractmethod
    def val_clips(self) -> Dataset[Tensor]:
        """Validation clips, at least the first `val_videos`."""

    @abstractmethod
    def test_clips(self) -> Dataset[Tensor]:
        """Test clips; nothing is trained or tuned on them."""

    @abstractmethod
    def clips_name(self, split: str) -> str:
        """What the clips of a split are, in a few words: the `dataset` of a result."""

    def fingerprint(self, split: str) -> str:
        """Tells the clips of a split from any others under the same name; empty where the settings do."""
        return ""

    @abstractmethod
    def fetch(self) -> None:
        """Get, verify and convert the data, printing what was done: the `data` command."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        clips = self.train_clips()
        rank, world_size, start_step = 0, 1, 0
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            # global_step counts optimiser steps, the sampler counts batches.
            start_step = self.trainer.global_step * self.trainer.accumulate_grad_batches
        num_items = None if getattr(clips, "endless", False) else len(clips)  # type: ignore[arg-type]
        sampler = StepBatchSampler(num_items, self.batch_size, self.seed, start_step, rank, world_size)
        return self._loader(clips, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        clips = self.val_clips()
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        count = min(self.val_videos, len(clips))  # type: ignore[arg-type]
        # No clip twice, and no rank with a batch more than another: it would wait for them for ever.
        count -= count % world_size
        if count == 0:
            raise UserError(f"data.val_videos: fewer validation clips than the {world_size} devices")
        return self._loader(Subset(clips, range(rank, count, world_size)), batch_size=self.batch_size)

    def validation_clips(self, count: int) -> Tensor:
        """The first validation clips as video, (count, F, C, H, W) in [-1, 1]."""
        clips = self.val_clips()
        return stack(clips, range(min(count, self.val_videos, len(clips))))  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return to_video(batch)

    def _loader(self, clips: Dataset[Tensor], **batches: Any) -> DataLoader[Tensor]:
        return DataLoader(
            clips,
            **batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
        )
