"""The generator against the properties of the original sequences, and the official file."""

import hashlib

import numpy as np
import pytest
import torch

from vsr_lightning.config import UserError
from vsr_lightning.data import moving_mnist
from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.data.moving_mnist import (
    MovingMNIST,
    MovingMNISTClips,
    OfficialSequences,
    draw_clips,
    trajectories,
    uniforms,
)

DIGITS = np.random.default_rng(0).integers(1, 200, (6, 28, 28), np.uint8)
OTHERS = np.full((3, 28, 28), 255, np.uint8)


@pytest.fixture(autouse=True)
def _tiny_digits(monkeypatch, tmp_path):
    """Digits of a split share a brightness of its own, so that a clip tells where its digits come from."""
    values = {"train": 10, "val": 20, "test": 30}

    def load(name, split, dir=""):
        return OTHERS if name == "embedded" else np.full((4, 28, 28), values[split], np.uint8)

    def no_network(*args, **kwargs):
        raise UserError("http://example.org: out of reach")

    monkeypatch.setattr(moving_mnist, "load_digits", load)
    monkeypatch.setattr(moving_mnist, "download", no_network)
    monkeypatch.delenv("VSR_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def paths(count=500, num_frames=20):
    draws = uniforms(1, np.arange(count), 3)
    return trajectories(draws[:, :2], 2 * np.pi * draws[:, 2], num_frames)


# -- the generator


def test_uniform_numbers_are_uniform_and_their_own():
    draws = uniforms(0, np.arange(20_000), 9)
    assert draws.min() >= 0
    assert draws.max() < 1
    # The standard errors are 1 / sqrt(12 n) of a mean and 1 / sqrt(n) of a correlation; 5 of them.
    assert np.abs(draws.mean(0) - 0.5).max() < 5 / np.sqrt(12 * 20_000)
    assert np.abs(np.corrcoef(draws, rowvar=False) - np.eye(9)).max() < 5 / np.sqrt(20_000)
    assert np.abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 5 / np.sqrt(20_000)
    assert len(np.unique(np.concatenate([draws.ravel(), uniforms(1, np.arange(20_000), 9).ravel()]))) == 360_000


def test_speed_is_three_point_six_pixels_a_frame_between_bounces():
    pixels = 36 * paths()
    speed = np.linalg.norm(np.diff(pixels, axis=1), axis=-1)
    inside = ((pixels > 0) & (pixels < 36)).all(-1)
    free = inside[:, 1:]  # a step that ends at a wall is cut short there
    assert speed[free] == pytest.approx(3.6)
    assert (speed <= 3.6 + 1e-9).all()
    assert 0.5 < free.mean() < 0.95


def test_motion_is_straight_between_bounces_and_mirrored_by_them():
    path = paths()
    steps = np.diff(path, axis=1)
    at_wall = (path[:, 1:-1] <= 0) | (path[:, 1:-1] >= 1)
    arrives = (path[:, 2:] <= 0) | (path[:, 2:] >= 1)
    # Per component: the same step again, or after a wall the opposite direction.
    straight = ~at_wall & ~arrives
    before_wall = np.concatenate([np.zeros_like(at_wall[:, :1]), at_wall[:, :-1]], axis=1)
    # A step that began at a wall may itself be whole: compare only where the earlier one was not cut.
    assert np.allclose(steps[:, 1:][straight & ~before_wall], steps[:, :-1][straight & ~before_wall])
    assert (steps[:, 1:] * steps[:, :-1])[at_wall].max() <= 0
    assert path.min() == 0
    assert path.max() == 1


def test_start_is_anywhere_in_the_frame():
    first = paths(5000, 1)[:, 0]
    assert np.abs(first.mean(0) - 0.5).max() < 0.02
    assert np.histogram(first[:, 0], bins=4, range=(0, 1))[0].min() > 1000


def test_digits_lie_at_whole_pixels_from_0_to_36():
    square = np.full((1, 28, 28), 255, np.uint8)
    path = paths(300, 10)
    clips = draw_clips(np.repeat(square[:, None], 300, axis=0), path[:, None])
    tops = clips[..., 0].any(-1).argmax(-1)
    lefts = clips[..., 0].any(-2).argmax(-1)
    assert np.array_equal(np.stack([tops, lefts], -1), np.floor(36 * path))
    assert (tops.min(), tops.max()) == (0, 36)
    assert ((clips > 0).sum((2, 3, 4)) == 28 * 28).all()


def test_pixels_are_combined_by_maximum():
    path = paths(8, 5).reshape(4, 2, 5, 2)
    two = DIGITS[np.arange(8) % 6].reshape(4, 2, 28, 28)
    alone = [draw_clips(two[:, [k]], path[:, [k]]) for k in range(2)]
    assert np.array_equal(draw_clips(two, path), np.maximum(*alone))


def test_clip_depends_on_seed_and_index_alone():
    clips = MovingMNISTClips(DIGITS, seed=5)
    batch = clips.__getitems__([7, 123_456_789, 0, 7])
    assert batch.shape == (4, 10, 64, 64, 1)
    assert batch.dtype == torch.uint8
    assert torch.equal(batch[0], clips[7])
    assert torch.equal(batch[1], clips[123_456_789])
    assert torch.equal(batch[0], batch[3])
    assert not torch.equal(batch[0], batch[2])
    assert not torch.equal(clips[7], MovingMNISTClips(DIGITS, seed=6)[7])
    assert torch.equal(clips[7], MovingMNISTClips(DIGITS, seed=5, num_videos=8)[7])


def test_fewer_frames_are_the_beginning_of_more():
    long, short = (MovingMNISTClips(DIGITS, 0, num_frames=frames)[3] for frames in (20, 4))
    assert torch.equal(long[:4], short)


def test_digits_of_any_size_and_number():
    assert MovingMNISTClips(np.full((1, 5, 9), 255, np.uint8), 0, num_frames=2)[0].any()


def test_both_digits_of_a_share_of_clips_come_from_elsewhere():
    clips = MovingMNISTClips(DIGITS, 0, num_frames=1, other_digits=OTHERS, other_share=0.25)
    drawn = clips.__getitems__(list(range(2000))).flatten(1)
    from_others = (drawn == 255).any(1)
    assert from_others.float().mean() == pytest.approx(0.25, abs=0.05)
    assert ((drawn > 0) & (drawn < 255))[from_others].sum() == 0  # never one of each


def test_length_and_range():
    fixed, endless = MovingMNISTClips(DIGITS, 0, num_videos=3), MovingMNISTClips(DIGITS, 0)
    assert len(fixed) == 3
    assert endless.endless
    assert not fixed.endless
    for index in (3, -1):
        with pytest.raises(IndexError):
            fixed[index]
    with pytest.raises(TypeError):
        len(endless)


# -- the official sequences


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A file like the official one, with 6 sequences."""
    path = tmp_path / "mnist_test_seq.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (20, 6, 64, 64), np.uint8))
    monkeypatch.setattr(moving_mnist, "OFFICIAL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
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
    monkeypatch.setattr(moving_mnist, "OFFICIAL_SHA256", "0" * 64)
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


# -- the data module


def test_splits_draw_on_their_own_digits():
    data = MovingMNIST(batch_size=2, num_videos=7, val_videos=5, test_videos=3)
    splits = {"train": data.train_clips(), "val": data.val_clips(), "test": data.test_clips()}
    assert [len(clips) for clips in splits.values()] == [7, 5, 3]
    for split, value in {"train": 10, "val": 20, "test": 30}.items():
        assert set(splits[split][0].unique().tolist()) == {0, value}
    # Nor do they share paths.
    assert not torch.equal(splits["train"][0] > 0, splits["val"][0] > 0)
    assert not torch.equal(splits["val"][0] > 0, splits["test"][0] > 0)


def test_seed_changes_training_clips_alone():
    first, second = (MovingMNIST(batch_size=2, seed=seed) for seed in (0, 1))
    assert not torch.equal(first.train_clips()[0], second.train_clips()[0])
    assert torch.equal(first.val_clips()[0], second.val_clips()[0])
    assert torch.equal(first.test_clips()[0], second.test_clips()[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_endless_loader_gives_the_clips_in_order(num_workers):
    data = MovingMNIST(batch_size=3, num_workers=num_workers, num_frames=2, embedded_share=0.5)
    batches = iter(data.train_dataloader())
    drawn = torch.cat([next(batches), next(batches)])
    assert torch.equal(drawn, data.train_clips().__getitems__(list(range(6))))
    video = data.on_after_batch_transfer(drawn, 0)
    assert video.shape == (6, 2, 1, 64, 64)
    assert video.min() == -1


def test_validation_loader_is_plain():
    data = MovingMNIST(batch_size=3, num_workers=0, num_frames=2, val_videos=7)
    batches = list(data.val_dataloader())
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat(batches), data.val_clips().__getitems__(list(range(7))))


def test_description_names_the_digits(monkeypatch):
    assert MovingMNIST(batch_size=2).clips_name("val") == "moving_mnist mnist val"
    monkeypatch.setattr(moving_mnist, "resolve_digits", lambda name, dir: "embedded")
    assert MovingMNIST(batch_size=2, digits="auto").clips_name("test") == "moving_mnist embedded test"
    official = MovingMNIST(batch_size=2, digits="embedded", source="data/moving-mnist-official.h5")
    assert official.clips_name("test") == "moving_mnist moving-mnist-official.h5 test"
    assert official.clips_name("val") == "moving_mnist embedded val"


@pytest.mark.parametrize("wrong", [{"embedded_share": 1.5}, {"num_videos": 0}, {"test_videos": 0}])
def test_bad_values_name_the_key(wrong):
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
        MovingMNIST(batch_size=2, **wrong)
