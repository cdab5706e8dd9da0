"""Handwritten digits, uint8 (N, 28, 28): MNIST, or the ones in scikit-learn, made to look like it."""

import functools
import gzip
import hashlib
import struct
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from vsr_lightning.data.fetching import download, find_file, write_dir
from vsr_lightning.data.splits import SPLITS
from vsr_lightning.errors import UserError

MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # as TFDS's own mnist builder has it
TRAIN_FILE, TEST_FILE = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
MNIST_MD5 = {
    TRAIN_FILE: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    TEST_FILE: "9fb629c4189551a2d022fa330f9573f3",
}
MNIST_VAL = 5000  # images at the end of the train file that are validation, not training
EMBEDDED_TRAIN, EMBEDDED_VAL = 1400, 150  # of 1,797; the rest is test


def load_digits(name: str, split: str, dir: str = "") -> np.ndarray:
    """The digits of one split, uint8 (N, 28, 28), not to be written to; no image is in two splits.

    Args:
        name: `mnist`, downloaded where it is missing; or `embedded`, which is always there.
        split: `train`, `val` or `test`.
        dir: the data folder; see `vsr_lightning.data.fetching.read_dirs`.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if name == "mnist":
        return _load_mnist(split, dir)
    if name == "embedded":
        return _load_embedded(split)
    raise UserError(f"data.digits: {name!r} is unknown; use mnist, embedded or auto")


def resolve_digits(name: str, dir: str = "") -> str:
    """Turn `auto` into `mnist` where it is or can be had within seconds, else into `embedded`, and say so."""
    if name != "auto":
        return name
    try:
        choice, reason = "mnist", "found"
        if not _has_mnist(dir):
            # A megabyte within 4 seconds: then the 11 take less than a minute.
            download_mnist(dir, seconds=4, first_bytes=1_000_000)
            reason = "just downloaded"
    except UserError:
        choice, reason = "embedded", "scikit-learn's, since MNIST is neither here nor quickly downloaded"
    print(f"digits: {choice} ({reason})", file=sys.stderr)
    return choice


def download_mnist(dir: str = "", *, seconds: float = 10, first_bytes: int = 1) -> None:
    """Download the MNIST image files that are missing to `<dir>/mnist`; TFDS verifies their checksums.

    Raises UserError unless the `first_bytes` arrive within `seconds`.
    """
    from tensorflow_datasets.image_classification.mnist import MNIST

    # The small file first: it is also the probe of the network.
    for file in (TEST_FILE, TRAIN_FILE):
        if find_file(f"mnist/{file}", dir) is None:
            path = write_dir(dir) / "mnist" / file
            download(MNIST_URL + file, path, MNIST.url_infos, seconds=seconds, first_bytes=first_bytes)


def _has_mnist(dir: str) -> bool:
    return all(find_file(f"mnist/{file}", dir) for file in MNIST_MD5)


def _load_mnist(split: str, dir: str) -> np.ndarray:
    if not _has_mnist(dir):
        try:
            download_mnist(dir)
        except UserError as error:
            files = " and ".join(MNIST_MD5)
            raise UserError(
                f"MNIST is missing and could not be downloaded ({error}): put {files} into "
                f"{write_dir(dir) / 'mnist'}, or set VSR_DATA_DIR to a folder that has mnist/, "
                "or use the override data.digits=embedded"
            ) from error
    file = TEST_FILE if split == "test" else TRAIN_FILE
    images = _read_idx(find_file(f"mnist/{file}", dir) or write_dir(dir) / "mnist" / file)
    if split == "test":
        return images
    return images[:-MNIST_VAL] if split == "train" else images[-MNIST_VAL:]


def _read_idx(path: Path) -> np.ndarray:
    """A gzipped idx3 file as uint8 (N, H, W), or a UserError unless it is byte for byte the original."""
    raw = path.read_bytes()
    way_out = "delete it to have it downloaded again, or use the override data.digits=embedded"
    if hashlib.md5(raw, usedforsecurity=False).hexdigest() != MNIST_MD5[path.name]:
        raise UserError(f"{path}: truncated or altered ({len(raw)} bytes, wrong md5); {way_out}")
    try:
        data = gzip.decompress(raw)
        magic, count, height, width = struct.unpack_from(">4I", data)
    except (OSError, EOFError, struct.error) as error:
        raise UserError(f"{path}: not a gzipped idx file; {way_out}") from error
    if magic != 0x803 or len(data) != 16 + count * height * width:
        raise UserError(f"{path}: not an idx file of images, or an incomplete one; {way_out}")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width)


@functools.cache  # `train` takes a second of filtering, and is a megabyte
def _load_embedded(split: str) -> np.ndarray:
    from sklearn import datasets

    cuts = {
        "train": slice(EMBEDDED_TRAIN),
        "val": slice(EMBEDDED_TRAIN, EMBEDDED_TRAIN + EMBEDDED_VAL),
        "test": slice(EMBEDDED_TRAIN + EMBEDDED_VAL, None),
    }
    digits = np.stack([_like_mnist(image / 16) for image in datasets.load_digits().images[cuts[split]]])
    digits.setflags(write=False)  # as MNIST's are
    return digits


def _like_mnist(image: np.ndarray) -> np.ndarray:
    """An (8, 8) digit in [0, 1] as uint8 (28, 28) of MNIST's size, stroke width, contrast and centring.

    The constants were fitted to MNIST's mean, share of lit pixels and brightness histogram, and by eye.
    """
    # MNIST digits are about 20 x 15 pixels; these fill 8 rows but, being narrow, only about 5 columns.
    large = ndimage.zoom(np.pad(image, 1), (2.4, 2.9), order=3, mode="grid-constant", grid_mode=True)
    smooth = ndimage.gaussian_filter(large, 0.6)
    # Against its surroundings a stroke stands out, and the holes of 6, 8 and 9 open again.
    relief = smooth - 0.7 * ndimage.gaussian_filter(large, 3)
    ink = np.clip((relief - 0.17) / (0.47 - 0.17), 0, 1)

    canvas = np.pad(ink, 14)
    top, left = (round(centre - 13.5) for centre in ndimage.center_of_mass(canvas))
    return np.round(255 * canvas[top : top + 28, left : left + 28]).astype(np.uint8)
