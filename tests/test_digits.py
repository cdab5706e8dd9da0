"""Digits: splits, idx files good and bad, and the embedded ones' likeness to MNIST."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from vsr_lightning.data import digits
from vsr_lightning.data.digits import TEST_FILE, TRAIN_FILE, load_digits, resolve_digits
from vsr_lightning.errors import UserError


def idx(images):
    """Images (N, H, W) as the bytes of a gzipped idx3 file."""
    return gzip.compress(struct.pack(">4I", 0x803, *images.shape) + images.tobytes(), mtime=0)


def no_network(*args, **kwargs):
    raise UserError("https://example.org: out of reach")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with a tiny MNIST: 20 training images, 5 of them validation, and 10 test images."""
    monkeypatch.chdir(tmp_path)  # so that data/ is empty
    monkeypatch.delenv("VSR_DATA_DIR", raising=False)
    monkeypatch.setattr(digits, "download", no_network)
    monkeypatch.setattr(digits, "MNIST_VAL", 5)
    (tmp_path / "here" / "mnist").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, count in ((TRAIN_FILE, 20), (TEST_FILE, 10)):
        raw = idx(random.integers(0, 256, (count, 28, 28), np.uint8))
        (tmp_path / "here" / "mnist" / name).write_bytes(raw)
        monkeypatch.setitem(digits.MNIST_MD5, name, hashlib.md5(raw).hexdigest())
    return tmp_path / "here"


def images(name, dir=""):
    return {split: load_digits(name, split, str(dir)) for split in ("train", "val", "test")}


def test_mnist_splits_share_no_image(folder):
    splits = images("mnist", folder)
    assert {split: array.shape for split, array in splits.items()} == {
        "train": (15, 28, 28),
        "val": (5, 28, 28),
        "test": (10, 28, 28),
    }
    assert len({image.tobytes() for array in splits.values() for image in array}) == 30


def test_mnist_is_found_through_the_environment(folder, monkeypatch):
    monkeypatch.setenv("VSR_DATA_DIR", str(folder))
    assert len(load_digits("mnist", "test")) == 10
    assert resolve_digits("auto") == "mnist"


def test_embedded_splits_share_no_image():
    splits = images("embedded")
    assert [len(array) for array in splits.values()] == [1400, 150, 247]
    unique = {split: {image.tobytes() for image in array} for split, array in splits.items()}
    assert not unique["train"] & unique["val"]
    assert not unique["train"] & unique["test"]
    assert not unique["val"] & unique["test"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_embedded_digits_look_like_mnist(split):
    array = load_digits("embedded", split)
    assert array.dtype == np.uint8
    assert array.shape[1:] == (28, 28)
    # MNIST's own figures, over the first 10,000 images.
    assert array.mean() == pytest.approx(33.4, rel=0.15)
    assert (array > 0).mean() == pytest.approx(0.192, rel=0.15)
    assert (array > 127).mean() == pytest.approx(0.133, rel=0.15)
    rows, columns = np.indices((28, 28))
    for axis in (rows, columns):
        centres = (array * axis).sum((1, 2)) / array.sum((1, 2))
        assert np.abs(centres - 13.5).max() < 1
    assert not array[:, [0, -1]].any()  # strokes keep clear of the edge
    assert not array[:, :, [0, -1]].any()


# -- bad input


def _alter(path):
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", [TRAIN_FILE, TEST_FILE])
@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(path.read_bytes()[:-50]), _alter])
def test_truncated_or_altered_file_is_named(folder, name, spoil):
    spoil(folder / "mnist" / name)
    with pytest.raises(UserError, match="truncated or altered") as error:
        load_digits("mnist", "train" if name == TRAIN_FILE else "test", str(folder))
    assert str(folder / "mnist" / name) in str(error.value)
    assert "embedded" in str(error.value)


@pytest.mark.parametrize(
    "raw",
    [
        b"not gzip",
        gzip.compress(b"short"),
        gzip.compress(struct.pack(">4I", 0x801, 2, 28, 28) + bytes(2 * 28 * 28)),
        gzip.compress(struct.pack(">4I", 0x803, 3, 28, 28) + bytes(2 * 28 * 28)),
        idx(np.zeros((2, 28, 28), np.uint8))[:-9],
    ],
    ids=["not gzip", "too short", "labels", "too few images", "truncated"],
)
def test_file_of_another_format_is_named(folder, monkeypatch, raw):
    monkeypatch.setitem(digits.MNIST_MD5, TEST_FILE, hashlib.md5(raw).hexdigest())
    (folder / "mnist" / TEST_FILE).write_bytes(raw)
    with pytest.raises(UserError, match="idx file") as error:
        load_digits("mnist", "test", str(folder))
    assert TEST_FILE in str(error.value)


@pytest.mark.parametrize("missing", [TRAIN_FILE, TEST_FILE])
def test_missing_file_without_network_names_the_ways_out(folder, missing):
    (folder / "mnist" / missing).unlink()
    with pytest.raises(UserError) as error:
        load_digits("mnist", "val", str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert all(way in message for way in (missing, str(folder / "mnist"), "VSR_DATA_DIR", "digits=embedded"))


def test_unknown_digits_name_the_known_ones():
    with pytest.raises(UserError, match="mnist, embedded or auto"):
        load_digits("mmist", "train")


# -- getting them


def test_missing_files_are_downloaded_and_verified(folder, monkeypatch, tmp_path):
    def copy(url, path, url_infos, **kwargs):
        assert url in url_infos  # TFDS knows the checksum
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((folder / "mnist" / path.name).read_bytes())

    monkeypatch.setattr(digits, "download", copy)
    assert len(load_digits("mnist", "train", str(tmp_path / "new"))) == 15
    assert {path.name for path in (tmp_path / "new" / "mnist").iterdir()} == {TRAIN_FILE, TEST_FILE}


def test_downloads_never_go_to_the_environments_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("VSR_DATA_DIR", str(tmp_path / "shared"))
    paths = []
    monkeypatch.setattr(digits, "download", lambda url, path, *args, **kwargs: paths.append(path))
    digits.download_mnist()
    assert {str(path.parent) for path in paths} == {"data/mnist"}


@pytest.mark.parametrize(("dir", "choice"), [("here", "mnist"), ("nowhere", "embedded")])
def test_auto_says_what_it_took(folder, capsys, dir, choice):
    assert resolve_digits("auto", dir) == choice
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"digits: {choice}")
    assert stderr.count("\n") == 1


def test_a_choice_is_left_alone(capsys):
    assert resolve_digits("embedded") == "embedded"
    assert capsys.readouterr().err == ""
