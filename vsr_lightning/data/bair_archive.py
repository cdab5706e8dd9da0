"""The archive of BAIR robot pushing small: its trajectories one after another, verified and complete.

It is a tar of TFRecord files `softmotion30_44k/{train,test}/*.tfrecords`, 256 trajectories in each, frames as raw RGB.

F frames of a trajectory, H W pixels, C channels.
"""

import math
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from vsr_lightning.data.tfrecord import parse_example, read_records
from vsr_lightning.errors import UserError

ARCHIVE = "bair_robot_pushing_dataset_v0.tar"
FOLDER = "softmotion30_44k"
CAMERAS = ("image_aux1", "image_main")
NUM_FRAMES = 30
IMAGE_SHAPE = (64, 64, 3)  # (H, W, C)
STATE_SIZES = {"action": 4, "endeffector_pos": 3}  # numbers a frame, beside the images
EXPECTED = {"train": 43_264, "test": 256}  # trajectories in the whole archive, by folder


@dataclass(frozen=True)
class Record:
    """One trajectory as the archive has it."""

    data: bytes
    folder: str  # train or test
    number: int  # in its file, from 0
    name: str  # for errors: its file and number


def find_records(source: Path) -> Path:
    """The tar, or the folder with `train/` and `test/`, that `data.source` means."""
    if source.is_file():
        return source
    for folder in (source / FOLDER, source):
        if _record_files(folder):
            return folder
    raise UserError(f"data.source: {source} is neither a tar nor a folder with {FOLDER}/{{train,test}}/*.tfrecords")


def num_bytes(source: Path) -> int:
    """The size of a tar, or of the record files of a folder."""
    return sum(path.stat().st_size for path in (_record_files(source) if source.is_dir() else [source]))


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


def parse_trajectory(record: Record, camera: str) -> dict[str, np.ndarray]:
    """A trajectory as stores keep it: `video` uint8 (1, F, H, W, C), `action` and `endeffector_pos` float32 (1, F, n).

    Raises UserError, with the record's name, where something is missing, too much or of another size.
    """
    features = parse_example(record.data, record.name)
    if f"{NUM_FRAMES}/{camera}/encoded" in features:
        raise UserError(f"{record.name}: has more than {NUM_FRAMES} frames, so it is not of BAIR robot pushing small")
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
