"""BAIR's archive in its true layout, with random pixels, written by code of its own; and the way through it."""

import io
import struct
import tarfile
from pathlib import Path

import google_crc32c
import numpy as np

from vsr_lightning.data.bair import BAIR

FILES = {"train/traj_0_to_4": 5, "train/traj_5_to_7": 3, "test/traj_0_to_1": 2}  # trajectories in each


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_feature(value: bytes) -> bytes:
    return field(1, field(1, value))


def float_feature(values: np.ndarray) -> bytes:
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def example(features: dict[str, bytes]) -> bytes:
    return field(1, b"".join(field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items()))


def framed(data: bytes) -> bytes:
    """A TFRecord; tests/test_tfrecord.py has the checksum from first principles."""

    def checksum(content: bytes) -> bytes:
        crc = google_crc32c.value(content)
        return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def make_trajectory(*seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image_aux1": rng.integers(0, 256, (30, 64, 64, 3), np.uint8),
        "image_main": rng.integers(0, 256, (30, 64, 64, 3), np.uint8),
        "action": rng.normal(size=(30, 4)).astype(np.float32),
        "endeffector_pos": rng.normal(size=(30, 3)).astype(np.float32),
    }


def features_of(trajectory: dict[str, np.ndarray]) -> dict[str, bytes]:
    features = {}
    for frame in range(30):
        for camera in ("image_main", "image_aux1"):
            features[f"{frame}/{camera}/encoded"] = bytes_feature(trajectory[camera][frame].tobytes())
        for key in ("action", "endeffector_pos"):
            features[f"{frame}/{key}"] = float_feature(trajectory[key][frame])
    return features


TRAJECTORIES = {name: [make_trajectory(*name.encode(), i) for i in range(count)] for name, count in FILES.items()}
CONTENTS = {name: b"".join(framed(example(features_of(one))) for one in file) for name, file in TRAJECTORIES.items()}


def write_folder(folder: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    for name, content in contents.items():
        path = folder / "softmotion30_44k" / f"{name}.tfrecords"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_tar(path: Path, contents: dict[str, bytes] = CONTENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"softmotion30_44k/{name}.tfrecords")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def fetch(source="", **keys):
    data = BAIR(**{"batch_size": 2, "num_workers": 0, "val_every": 3, "source": str(source), **keys})
    data.fetch()
    return data


def files(folder="."):
    """Everything under a folder, temporary files included."""
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
