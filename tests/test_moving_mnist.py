"""The data module: which digits, which paths and which files its clips are made of."""

import numpy as np
import pytest
import torch

from vsr_lightning.data import moving_mnist
from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.errors import UserError

OTHERS = np.full((3, 28, 28), 255, np.uint8)


@pytest.fixture(autouse=True)
def _tiny_digits(monkeypatch, tmp_path):
    """Digits of a split share a brightness of its own, so that a clip tells where its digits come from."""
    values = {"train": 10, "val": 20, "test": 30}

    def load(name, split, dir=""):
        return OTHERS if name == "embedded" else np.full((4, 28, 28), values[split], np.uint8)

    monkeypatch.setattr(moving_mnist, "load_digits", load)
    monkeypatch.delenv("VSR_DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


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
