"""BAIR robot pushing, the small version (Ebert et al., 2017, arXiv:1710.05268): a robot arm pushes objects in a bin.

43,264 training and 256 test trajectories of 30 frames, 64 x 64, from two cameras. The archive is a tar of TFRecord
files `softmotion30_44k/{train,test}/*.tfrecords`, 256 trajectories in each, frames as raw RGB.

F frames of a trajectory, H W pixels, C channels.
"""

import contextlib
import math
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vsr_lightning.config import UserError
from vsr_lightning.data.clip_store import ClipStore, StoreWriter
from vsr_lightning.data.fetching import check_space, download, find_file, read_dirs, write_dir
from vsr_lightning.data.tfrecord import OVERHEAD, parse_example, read_records
from vsr_lightning.data.trajectories import TrajectoryDataModule
from vsr_lightning.files import remove_abandoned

ARCHIVE = "bair_robot_pushing_dataset_v0.tar"
FOLDER = "softmotion30_44k"
CAMERAS = ("image_aux1", "image_main")
NUM_FRAMES = 30
IMAGE_SHAPE = (64, 64, 3)  # (H, W, C)
STATE_SIZES = {"action": 4, "endeffector_pos": 3}  # numbers a frame, beside the images
EXPECTED = {"train": 43_264, "test": 256}  # trajectories in the whole archive, by folder
STORED_SHARE = 0.5  # of the archive's bytes that the stores take: one camera of two (369,480 of 741,610 a trajectory)
SPLITS = ("train", "val", "test")
VAL_EVERY = ", validation every "  # stands between the source and `val_every` in a store's attribute `source`


# ---------------------------------------------------------------------------------------------------------
# The archive


@dataclass(frozen=True)
class Record:
    """One trajectory as the archive has it."""

    data: bytes
    folder: str  # train or test
    number: int  # in its file, from 0
    name: str  # for errors: its file and number


def read_archive(source: Path) -> Iterator[Record]:
    """The trajectories of a tar, in its order, or of a folder with `train/` and `test/`; one of them in memory."""
    return _read_folder(source) if source.is_dir() else _read_tar(source)


def _read_folder(folder: Path) -> Iterator[Record]:
    for path in _record_files(folder):
        with path.open("rb") as stream:
            yield from _read_file(stream, path.parent.name, str(path))


def _read_tar(path: Path) -> Iterator[Record]:
    _check_end(path)
    try:
        with tarfile.open(path, "r:") as tar:  # not "r|", which copies each byte once more
            for member in tar:
                place = PurePosixPath(member.name)
                if member.isfile() and _is_record_file(place):
                    stream = tar.extractfile(member)
                    assert stream is not None  # for a regular file
                    yield from _read_file(stream, place.parent.name, f"{path}: {place}")
            _check_rest(path, tar.offset)
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a tar, or truncated ({error}); get it again") from error


def _read_file(stream: IO[bytes], folder: str, name: str) -> Iterator[Record]:
    for number, data in enumerate(read_records(stream, name)):
        yield Record(data, folder, number, f"{name}: record {number}")


def _check_end(path: Path) -> None:
    """Refuse a tar without the two blocks of zeros at its end, at once: tarfile takes a lost end for the end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * tarfile.BLOCKSIZE))
        if file.read() != bytes(2 * tarfile.BLOCKSIZE):
            raise UserError(f"{path}: not a tar, or truncated (its end is missing); get it again")


def _check_rest(path: Path, offset: int) -> None:
    """Refuse a tar with anything but zeros after its last member: tarfile takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            if block.strip(b"\0"):
                raise UserError(
                    f"{path}: damaged after byte {offset:,} (a member's header is unreadable); get it again"
                )


def _record_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.tfrecords") if _is_record_file(path))


def _is_record_file(path: Path | PurePosixPath) -> bool:
    # A name with a leading dot is what macOS adds to archives and folders.
    return path.suffix == ".tfrecords" and path.parent.name in EXPECTED and not path.name.startswith(".")


def _num_bytes(source: Path) -> int:
    return sum(path.stat().st_size for path in (_record_files(source) if source.is_dir() else [source]))


# ---------------------------------------------------------------------------------------------------------
# One trajectory


def parse_trajectory(record: Record, camera: str) -> dict[str, np.ndarray]:
    """A trajectory as stores keep it: `video` uint8 (1, F, H, W, C), `action` and `endeffector_pos` float32 (1, F, n).

    Raises UserError, with the record's name, where something is missing or of another size.
    """
    features = parse_example(record.data, record.name)
    images = [_image(features, f"{frame}/{camera}/encoded", record.name) for frame in range(NUM_FRAMES)]
    arrays = {"video": np.frombuffer(b"".join(images), np.uint8).reshape(1, NUM_FRAMES, *IMAGE_SHAPE)}
    for key, size in STATE_SIZES.items():
        rows = [_numbers(features, f"{frame}/{key}", size, record.name) for frame in range(NUM_FRAMES)]
        arrays[key] = np.array([rows], np.float32)
    return arrays


def _image(features: Mapping[str, Any], key: str, name: str) -> bytes:
    image = b"".join(_feature(features, key, name).bytes_list.value)
    if len(image) != math.prod(IMAGE_SHAPE):
        size = " x ".join(map(str, IMAGE_SHAPE))
        raise UserError(f"{name}: '{key}' is {len(image):,} bytes, not {size}")
    return image


def _numbers(features: Mapping[str, Any], key: str, size: int, name: str) -> list[float]:
    values = list(_feature(features, key, name).float_list.value)
    if len(values) != size:
        raise UserError(f"{name}: '{key}' is {len(values)} numbers, not {size}")
    return values


def _feature(features: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in features:
        raise UserError(f"{name}: has no '{key}', so it is not of BAIR robot pushing small")
    return features[key]


# ---------------------------------------------------------------------------------------------------------
# All of them


def split_of(record: Record, val_every: int) -> str:
    """The split of a trajectory. Validation is the last of every `val_every` in a file of the train folder.

    So the split does not depend on the order of the files, nor on which of them are there.
    """
    is_val = record.folder == "train" and record.number % val_every == val_every - 1
    return "val" if is_val else record.folder


def convert(source: Path, folder: Path, camera: str, val_every: int) -> dict[str, int]:
    """Make a store of each split that has trajectories, in one pass; returns their numbers.

    All stores appear in the end, that of training last: where it is, the others are.
    """
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                StoreWriter(
                    folder / f"bair-{split}.h5",
                    name=f"bair-{split}",
                    source=f"{source.name}{VAL_EVERY}{val_every}",
                    camera=camera,
                )
            )
            for split in SPLITS
        }
        bar = stack.enter_context(tqdm(total=_num_bytes(source), desc=source.name, unit="B", unit_scale=True))
        for record in read_archive(source):
            writers[split_of(record, val_every)].append(parse_trajectory(record, camera))
            bar.update(len(record.data) + OVERHEAD)
        if not any(writer.num_clips for writer in writers.values()):
            raise UserError(f"{source}: holds no {FOLDER}/{{train,test}}/*.tfrecords")
        for split in SPLITS:  # stores of another source must not stand beside these; training goes first
            (folder / f"bair-{split}.h5").unlink(missing_ok=True)
        for split in reversed(SPLITS):
            if writers[split].num_clips:
                writers[split].commit()
    return {split: writer.num_clips for split, writer in writers.items()}


# ---------------------------------------------------------------------------------------------------------
# The data module


class BAIR(TrajectoryDataModule):
    """Clips of BAIR robot pushing small.

    `source` is the archive, or a folder that is or holds `softmotion30_44k`. Without it, either is looked for where
    data lies, and else the archive is downloaded.

    Args:
        camera: `image_aux1`, the one of the benchmarks, or `image_main`.
        val_every: of every so many trajectories of a training file, the last is validation; 42 makes 1,014 of 43,264.
        **common: the keys of `TrajectoryDataModule`.
    """

    store_name = "bair"
    ways_out = (
        f"make data-bair downloads it, OVERRIDES=data.source=<{ARCHIVE}, or a folder with {FOLDER}> takes what is "
        "there; or simulate a stand-in: make data-sim, then SOURCE=sim"
    )

    def __init__(self, *, camera: str = CAMERAS[0], val_every: int = 42, **common: Any) -> None:
        super().__init__(camera=camera, **common)
        if camera not in CAMERAS:
            raise UserError(f"data.camera: '{camera}' is none of {', '.join(CAMERAS)}")
        if val_every < 2:
            raise UserError(f"data.val_every: must be at least 2, not {val_every}")
        self.val_every = val_every

    def clips_name(self, split: str) -> str:
        return " ".join(["bair", *([self.camera] if self.camera != CAMERAS[0] else []), split])

    def fetch(self) -> None:
        """Make the stores unless they are there: from `source`, from what lies in the data folders, or a download."""
        if self.find_store("train"):
            self._verify()
            return
        folder = write_dir(self.dir)
        for file in (ARCHIVE, *map(self.store_file, SPLITS)):
            remove_abandoned(folder / file)  # before free space is looked at
        source = self._find_source() or self._download(folder)
        check_space(folder, STORED_SHARE * _num_bytes(source))
        counts = convert(source, folder, self.camera, self.val_every)
        self._report(counts, folder)

    def _verify(self) -> None:
        counts = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            if path := self.find_store(split):
                store = self.open_store(path)
                self._check_origin(store)
                store.verify()
                counts[split] = len(store)
                print(f"{path} is there and verified")
            else:
                print(f"{self.store_file(split)} is not there: its source had no trajectories for it")
        _warn_of_missing(counts)

    def _check_origin(self, store: ClipStore) -> None:
        """Raise UserError where a store is not what this configuration would make."""
        name, _, val_every = store.attributes["source"].partition(VAL_EVERY)
        wanted = Path(self.source).name if self.source else name
        if (name, val_every) != (wanted, str(self.val_every)):
            raise UserError(
                f"{store.path}: made from {store.attributes['source']}, not from {wanted}{VAL_EVERY}{self.val_every}; "
                "delete the stores to have them made anew, or leave the keys as they were"
            )

    def _find_source(self) -> Path | None:
        """What to convert, or None if it has to be downloaded."""
        if self.source:
            return _find_records(Path(self.source))
        folders = (folder / FOLDER for folder in read_dirs(self.dir))
        return next((folder for folder in folders if folder.is_dir()), None) or find_file(ARCHIVE, self.dir)

    def _download(self, folder: Path) -> Path:
        from tensorflow_datasets.datasets.bair_robot_pushing_small import (
            bair_robot_pushing_small_dataset_builder as tfds,
        )

        archive = folder / ARCHIVE
        url_infos = tfds.Builder.url_infos
        check_space(folder, (1 + STORED_SHARE) * url_infos[tfds.DATA_URL].size)
        try:
            download(tfds.DATA_URL, archive, url_infos)
        except UserError as error:
            raise UserError(f"{error}; {self.ways_out}") from error
        print(f"{archive}: downloaded and verified; once the stores are made it can be deleted")
        return archive

    def _report(self, counts: Mapping[str, int], folder: Path) -> None:
        for split, count in counts.items():
            path = folder / self.store_file(split)
            if count:
                print(f"{path}: {count:,} trajectories of {NUM_FRAMES} frames, {self.camera}")
            else:
                hint = f", since no file of train/ has {self.val_every} (data.val_every)" if split == "val" else ""
                print(f"{path}: not written: no trajectories for it{hint}")
        _warn_of_missing(counts)


def _warn_of_missing(counts: Mapping[str, int]) -> None:
    """A part of the data is usable, but that it is a part is said each time."""
    found = {"train": counts["train"] + counts["val"], "test": counts["test"]}
    for key, expected in EXPECTED.items():
        if found[key] != expected:
            print(f"warning: {found[key]:,} trajectories in {key}/, not BAIR's {expected:,}", file=sys.stderr)


def _find_records(source: Path) -> Path:
    """The tar, or the folder with `train/` and `test/`, that `data.source` means."""
    if source.is_file():
        return source
    for folder in (source / FOLDER, source):
        if _record_files(folder):
            return folder
    raise UserError(f"data.source: {source} is neither a tar nor a folder with {FOLDER}/{{train,test}}/*.tfrecords")
