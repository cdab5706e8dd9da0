"""Observed frames: nested, of their own for each video, reproducible; and the mask that keeps them."""

import pytest
import torch

from vsr_lightning.degradation.frame_mask import frame_mask, mask_frames, observed_frames
from vsr_lightning.errors import UserError

TOTAL = 10


def test_sequential_takes_the_first_frames() -> None:
    assert observed_frames(3, TOTAL, "sequential", seed=0, video=5) == [0, 1, 2]


@pytest.mark.parametrize("order", ["sequential", "random"])
def test_nested_from_the_first_frame_to_all(order: str) -> None:
    lists = [observed_frames(n, TOTAL, order, seed=1, video=2) for n in range(1, TOTAL + 1)]
    assert lists[0] == [0]
    assert sorted(lists[-1]) == list(range(TOTAL))
    for shorter, longer in zip(lists, lists[1:], strict=False):
        assert longer[: len(shorter)] == shorter


def test_random_order_belongs_to_seed_and_video() -> None:
    def orders(seed: int) -> list[list[int]]:
        return [observed_frames(TOTAL, TOTAL, "random", seed, video) for video in range(8)]

    assert orders(0) == orders(0)
    assert len({tuple(order) for order in orders(0) + orders(1)}) == 16


def test_random_order_favours_no_frame() -> None:
    second = [observed_frames(2, TOTAL, "random", 0, video)[1] for video in range(900)]
    # Each of the nine frames comes second 100 times on average, with a standard deviation of 9.4.
    assert all(60 < second.count(frame) < 140 for frame in range(1, TOTAL))


def test_a_clip_of_one_frame() -> None:
    assert observed_frames(1, 1, "random", seed=0, video=0) == [0]


def test_mask_marks_the_observed_frames_of_each_sample() -> None:
    mask = frame_mask([[0], [0, 3, 1]], total=4)
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 0, 1]]


def test_masking_zeros_the_others_and_their_gradient() -> None:
    y = torch.randn(2, 4, 3, 5, 6, requires_grad=True)
    mask = frame_mask([[0], [0, 3, 1]], total=4)
    masked = mask_frames(y, mask)
    assert torch.equal(masked[mask == 1], y[mask == 1])
    assert not masked[mask == 0].any()
    masked.sum().backward()
    assert torch.equal(y.grad, mask[:, :, None, None, None].expand_as(y))


@pytest.mark.parametrize(
    ("key", "num_frames", "order"),
    [
        ("grid.num_frames", 0, "sequential"),
        ("grid.num_frames", -1, "random"),
        ("grid.num_frames", TOTAL + 1, "random"),
        ("grid.order", 3, "backwards"),
    ],
)
def test_bad_value_names_its_key(key: str, num_frames: int, order: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=[^\n]*$"):
        observed_frames(num_frames, TOTAL, order, seed=0, video=0)
