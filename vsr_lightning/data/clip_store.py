"""The clip store: clips or trajectories in an HDF5 file that is whole or absent, with a checksum.

F frames, C channels, H W pixels. Stored clips are uint8 (N, F, H, W, C); data/README.md has the attributes.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsr_lightning.errors import UserError
from vsr_lightning.files import naming, put_in_place, remove_abandoned, temporary_path

STORE_FORMAT = 1  # of the layout of clip stores; a reader takes no other


class StoreWriter:
    """Writes clips to an HDF5 store, which appears under `path` only at `commit`.

    A context manager: without a commit, its end leaves nothing behind and an older store as it was. What writers
    that were killed left behind goes at the next writer's start. Errors of the disk are OSErrors that name `path`.
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
        try:
            self._disk = _Disk(self._temporary)
        except OSError as error:
            error.filename = str(self.path.parent)  # which is read-only perhaps; the temporary name would tell nothing
            raise
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._file = self._call(h5py.File, self._disk, "w")
        return self

    def append(self, chunk: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Add clips: uint8 (n, F, H, W, C), or a mapping with that under `video` and, beside it, `action` (n, F, 4)
        and `endeffector_pos` (n, F, 3)."""
        arrays = chunk if isinstance(chunk, Mapping) else {"video": chunk}
        for key, array in arrays.items():
            self._call(_append, self._file, key, array)
        self._sha256.update(np.ascontiguousarray(arrays["video"]).data)
        self.num_clips += len(arrays["video"])

    def commit(self) -> None:
        """Put the finished store in place. Raises UserError if there is nothing in it."""
        if self.num_clips == 0:
            raise UserError(f"{self.path}: no clips to store: is the source empty?")
        self._call(self._file.attrs.update, self._attributes | {"sha256": self._sha256.hexdigest()})
        self._call(self._file.close)
        with naming(self.path):
            self._disk.close()
            put_in_place(self._temporary, self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            with contextlib.suppress(Exception):  # what is still open here is thrown away
                self._call(self._file.close)
            with contextlib.suppress(OSError):
                self._disk.close()
        finally:
            self._thread.shutdown()
            self._temporary.unlink(missing_ok=True)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of HDF5. Raises the disk's error, with the store's name, before any that HDF5 makes of it.

        In a thread, since Ctrl-C is raised in the main one: there it might be raised in `_Disk.write`, where HDF5 would
        take it for the disk's error, and not let it through.
        """
        with naming(self.path):
            try:
                return self._thread.submit(function, *arguments).result()
            finally:
                if self._disk.error:
                    raise self._disk.error


class _Disk(io.FileIO):
    """The file that HDF5 writes. An error, of a full disk say, is kept in `error`, and what follows is not written.

    HDF5 itself must not meet the error: it would meet it again whenever it closes something, in tracebacks on stderr
    that cannot be caught, and can crash the process.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        with self._keeping_error():
            while rest and not self.error:  # a disk that fills up takes a part first
                rest = rest[super().write(rest) :]
        return memoryview(data).nbytes

    def truncate(self, size: int | None = None) -> int:
        with self._keeping_error():
            super().truncate(size)
        return self.tell() if size is None else size

    @contextlib.contextmanager
    def _keeping_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.error = self.error or error


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
        if not is_store or not file.attrs.keys() >= {"sha256", "source", "camera"}:
            file.close()
            raise UserError(
                f"{self.path}: not a clip store (no uint8 `video` (N, F, H, W, C) with sha256, source and camera)"
            )
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
