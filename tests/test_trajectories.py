"""Clips cut from trajectories, and the data module of robot pushing, on stores whose pixels say what they are of."""

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from vsr_lightning.data.clip_store import ClipStore, write_store
from vsr_lightning.data.trajectories import TrajectoryClips, TrajectoryDataModule
from vsr_lightning.errors import UserError

TRAJECTORIES, FRAMES = 5, 8


def make_store(path, trajectories=TRAJECTORIES, frames=FRAMES, first=0, camera="front"):
    """Every pixel of frame f of trajectory n is (first + n, f, 0)."""
    video = np.zeros((trajectories, frames, 4, 4, 3), np.uint8)
    video[..., 0] = np.arange(first, first + trajectories)[:, None, None, None]
    video[..., 1] = np.arange(frames)[:, None, None]
    write_store(path, [video], name=path.stem, source="test", camera=camera)
    return ClipStore(path)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path / "toy-train.h5")


def places(clips: torch.Tensor) -> list[tuple[int, int]]:
    """(trajectory, first frame) of each clip (B, F, H, W, C), which must be consecutive frames of one trajectory."""
    trajectory, frame = clips[..., 0, 0, 0].int(), clips[..., 0, 0, 1].int()
    assert (clips[..., :2] == clips[:, :, :1, :1, :2]).all()
    assert (trajectory == trajectory[:, :1]).all()
    assert (frame == frame[:, :1] + torch.arange(clips.shape[1])).all()
    return list(zip(trajectory[:, 0].tolist(), frame[:, 0].tolist(), strict=True))


# -- fixed offsets


def test_fixed_offsets_are_all_first_cuts_then_all_second_ones(store):
    clips = TrajectoryClips(store, num_frames=3)
    expected = [(trajectory, start) for start in (0, 3) for trajectory in range(TRAJECTORIES)]
    assert not clips.endless
    assert len(clips) == len(expected)
    assert places(clips.__getitems__(list(range(len(clips))))) == expected
    assert places(torch.stack([clips[index] for index in range(len(clips))])) == expected
    assert (clips[0].shape, clips[0].dtype) == ((3, 4, 4, 3), torch.uint8)
    for index in (-1, len(clips)):
        with pytest.raises(IndexError):
            clips[index]


def test_three_clips_of_ten_frames_of_each_trajectory_of_bair():
    clips = TrajectoryClips(SimpleNamespace(path="bair", shape=(43_264, 30, 64, 64, 3)), num_frames=10)
    assert len(clips) == 129_792  # as in the paper
    cuts = {clips.place(index) for index in range(len(clips))}
    assert cuts == {(trajectory, start) for trajectory in range(43_264) for start in (0, 10, 20)}


# -- random offsets


def test_random_offsets_are_functions_of_seed_and_index(store):
    clips = TrajectoryClips(store, 3, "random", seed=7)
    assert clips.endless
    with pytest.raises(TypeError):
        len(clips)
    indices = [1_000_003, 4, 0, 12, 4]
    drawn = places(clips.__getitems__(indices))
    assert drawn == [places(TrajectoryClips(store, 3, "random", seed=7)[index][None])[0] for index in indices]
    others = [TrajectoryClips(store, 3, "random", seed=seed).__getitems__(list(range(20))) for seed in (7, 8)]
    assert places(others[0]) != places(others[1])


def test_every_epoch_has_every_trajectory_and_offsets_are_uniform(store):
    clips = TrajectoryClips(store, 3, "random", seed=0)
    epochs = 2000
    drawn = np.array([clips.place(index) for index in range(epochs * TRAJECTORIES)]).reshape(epochs, TRAJECTORIES, 2)
    assert (np.sort(drawn[..., 0]) == np.arange(TRAJECTORIES)).all()
    assert len({tuple(order) for order in drawn[..., 0]}) == 120  # all the permutations of 5
    counts = np.zeros((TRAJECTORIES, FRAMES - 3 + 1))
    np.add.at(counts, tuple(drawn.reshape(-1, 2).T), 1)
    # Binomial, of n = epochs and p = 1 / 6 for each trajectory and offset; 5 standard deviations.
    assert np.abs(counts - epochs / 6).max() < 5 * np.sqrt(epochs * 5 / 36)
    following = drawn[1:, :, 1] == drawn[:-1, :, 1]
    assert abs(following.mean() - 1 / 6) < 5 * np.sqrt(5 / 36 / following.size)


def test_a_clip_may_be_the_whole_trajectory(store):
    for offsets in ("fixed", "random"):
        clips = TrajectoryClips(store, FRAMES, offsets)
        assert sorted(places(clips.__getitems__(list(range(5))))) == [(trajectory, 0) for trajectory in range(5)]


@pytest.mark.parametrize("num_frames", [0, FRAMES + 1])
def test_clips_longer_than_trajectories_are_refused(store, num_frames):
    with pytest.raises(UserError, match=f"data.num_frames: .*toy-train.h5 have {FRAMES}, not {num_frames}"):
        TrajectoryClips(store, num_frames)


def test_a_store_without_trajectories_is_refused():
    with pytest.raises(UserError, match="toy.h5: holds no trajectories"):
        TrajectoryClips(SimpleNamespace(path="toy.h5", shape=(0, 30, 64, 64, 3)))


# -- the data module


class Toy(TrajectoryDataModule):
    store_name = "toy"
    ways_out = "make toys"

    def fetch(self):
        pass


@pytest.fixture
def stores(tmp_path, monkeypatch, store):
    """Stores of the three splits in `tmp_path`; returns a maker of data modules on them."""
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "toy-val.h5", trajectories=3, first=10)
    make_store(tmp_path / "toy-test.h5", trajectories=2, first=20)
    return lambda **keys: Toy(**{"batch_size": 4, "num_workers": 0, "num_frames": 3, "dir": str(tmp_path), **keys})


def test_splits_have_their_own_stores_and_names(stores):
    data = stores(offsets="random")
    splits = {"train": data.train_clips(), "val": data.val_clips(), "test": data.test_clips()}
    for (split, clips), first in zip(splits.items(), (0, 10, 20), strict=True):
        assert clips[0][0, 0, 0, 0] // 10 * 10 == first
        assert data.clips_name(split) == f"toy {split}"
    assert splits["train"].endless
    assert places(data.val_clips().__getitems__([0, 3])) == [(10, 0), (10, 3)]  # always fixed
    assert len(splits["test"]) == 4


def test_the_first_clips_alone(stores):
    assert places(torch.stack(list(stores(num_clips=2).train_clips()))) == [(0, 0), (1, 0)]
    few, all_ = stores(num_clips=7, offsets="random").train_clips(), stores(offsets="random").train_clips()
    assert len(few) == 7
    assert all(torch.equal(few[index], all_[index]) for index in range(7))
    with pytest.raises(UserError, match="data.num_clips: .*toy-train.h5 has 10, not 11"):
        stores(num_clips=11).train_clips()


@pytest.mark.parametrize("offsets", ["fixed", "random"])
def test_workers_change_nothing(stores, offsets):
    def drawn(num_workers):
        batches = iter(stores(offsets=offsets, num_workers=num_workers).train_dataloader())
        return [places(next(batches)) for _ in range(6)]

    assert drawn(2) == drawn(0)


def test_random_offsets_are_drawn_in_order_whatever_the_batch(stores):
    def drawn(batch_size, batches):
        loader = iter(stores(offsets="random", batch_size=batch_size).train_dataloader())
        return sum((places(next(loader)) for _ in range(batches)), [])

    assert drawn(4, 6) == drawn(12, 2) == [stores(offsets="random").train_clips().place(index) for index in range(24)]


def test_batches_reach_the_device_as_video(stores):
    data = stores()
    video = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert video.shape == (4, 3, 3, 4, 4)
    assert video.dtype == torch.float32


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_missing_store_is_one_line_with_the_way_out(stores, tmp_path, split):
    (tmp_path / f"toy-{split}.h5").unlink()
    with pytest.raises(UserError, match=f"^toy-{split}.h5: not in {tmp_path}, .*data; make toys; with data.dir="):
        getattr(stores(), f"{split}_clips")()
    with pytest.raises(UserError, match=f"^toy-{split}.h5: not in .*data; make toys$"):
        getattr(stores(dir=""), f"{split}_clips")()


def test_a_store_of_another_folder_serves_or_is_second_to_what_data_dir_lacks(stores, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "toy-val.h5").rename(tmp_path / "data/toy-val.h5")
    assert len(stores(dir="mine").val_clips()) == 6
    assert stores(dir="mine").store_here("val") is None
    assert stores(dir="data").store_here("val") == stores(dir="").store_here("val") == Path("data/toy-val.h5")
    with pytest.raises(UserError) as refused:
        stores(dir="mine", camera="side").val_clips()
    assert str(refused.value) == (
        "toy-val.h5: not in mine; make toys; with data.dir=mine and the same other keys it is made there; "
        "the one found instead, data/toy-val.h5: is of camera 'front', not 'side'"
    )


def test_a_store_of_another_camera_or_version_is_refused(stores, tmp_path):
    assert len(stores(camera="front").val_clips()) == 6
    with pytest.raises(UserError, match="toy-val.h5: is of camera 'front', not 'side'; set data.camera=front"):
        stores(camera="side").val_clips()
    with h5py.File(tmp_path / "toy-val.h5", "a") as file:
        file.attrs["format"] = 2
    with pytest.raises(UserError, match="toy-val.h5: written by another version"):
        stores().val_clips()


@pytest.mark.parametrize("wrong", [{"offsets": "any"}, {"num_clips": 0}])
def test_bad_values_name_the_key(wrong):
    with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
        Toy(batch_size=1, **wrong)
