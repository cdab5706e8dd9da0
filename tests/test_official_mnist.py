"""The official file: cut into clips, made into a store, and every kind of bad file told."""

import hashlib

import numpy as np
import pytest
import torch

from vsr_lightning.data import moving_mnist, official_mnist
from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.data.official_mnist import OfficialSequences
from vsr_lightning.errors import UserError


@pytest.fixture(autouse=True)
def _tiny_digits(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise UserError("http://example.org: out of reach")

    monkeypatch.setattr(moving_mnist, "load_digits", lambda *args: np.zeros((4, 28, 28), np.uint8))
    monkeypatch.setattr(official_mnist, "download", no_network)
    monkeypatch.delenv("VSR_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file like the official one, with 6 sequences."""
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (20, 6, 64, 64), np.uint8))
    monkeypatch.setattr(official_mnist, "OFFICIAL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_official_sequences_are_cut_in_two(official):
    sequences, clips = np.load(official), OfficialSequences(official)
    assert len(clips) == 12
    assert np.array_equal(clips[2].numpy()[..., 0], sequences[:10, 2])
    assert np.array_equal(clips[8].numpy()[..., 0], sequences[10:, 2])
    chunks = np.concatenate(list(clips.chunks(size=4)))
    assert np.array_equal(chunks, np.stack([clips[i].numpy() for i in range(12)]))
    assert len(OfficialSequences(official, num_frames=20)) == 6


def test_fetch_makes_the_official_store_once(official, capsys):
    data = MovingMNIST(batch_size=2, dir="new", source=str(official))
    data.fetch()
    store = ClipStore("new/moving-mnist-official.h5")
    store.verify()
    assert len(store) == 12
    assert store.attributes["name"] == "moving-mnist-official"
    data.fetch()
    out = capsys.readouterr().out
    assert "made into new/moving-mnist-official.h5" in out
    assert "is there and verified" in out
    assert "mnist digits, train: 4" in out

    from_npy, from_store = (
        MovingMNIST(batch_size=2, source=str(source), test_videos=5).test_clips()
        for source in (official, "new/moving-mnist-official.h5")
    )
    assert len(from_npy) == len(from_store) == 5
    assert all(torch.equal(from_npy[i], from_store[i]) for i in range(5))


def test_fetch_without_the_official_sequences_is_one_line_and_no_error(capsys):
    MovingMNIST(batch_size=2).fetch()
    assert "official sequences: skipped" in capsys.readouterr().out


def test_fetch_refuses_an_altered_official_file(official, monkeypatch, tmp_path):
    monkeypatch.setattr(official_mnist, "OFFICIAL_SHA256", "0" * 64)
    with pytest.raises(UserError, match="altered"):
        MovingMNIST(batch_size=2, dir=str(tmp_path / "new"), source=str(official)).fetch()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "not there"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated"),
        (lambda path: np.save(path, np.zeros((2, 3), np.uint8)), "not the official"),
        (lambda path: path.write_bytes(b""), "not a .npy"),
    ],
)
def test_bad_official_file_is_named(official, spoil, message):
    spoil(official)
    with pytest.raises(UserError, match=message) as error:
        MovingMNIST(batch_size=2, source=str(official)).test_clips()
    assert official.name in str(error.value)


def test_official_clips_of_another_length_are_refused(official):
    with pytest.raises(UserError, match="num_frames"):
        MovingMNIST(batch_size=2, source=str(official), num_frames=21).test_clips()
    MovingMNIST(batch_size=2, source=str(official)).fetch()
    with pytest.raises(UserError, match="moving-mnist-official.h5"):
        MovingMNIST(batch_size=2, source="data/moving-mnist-official.h5", num_frames=5).test_clips()
