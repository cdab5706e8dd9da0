"""The generator against the properties of the original sequences."""

import itertools

import numpy as np
import pytest
import torch

from vsr_lightning.data.moving_digits import MovingMNISTClips, draw_clips, trajectories, uniforms

DIGITS = np.random.default_rng(0).integers(1, 200, (6, 28, 28), np.uint8)
OTHERS = np.full((3, 28, 28), 255, np.uint8)


def paths(count=500, num_frames=20):
    draws = uniforms(1, np.arange(count), 3)
    return trajectories(draws[:, :2], 2 * np.pi * draws[:, 2], num_frames)


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


@pytest.mark.parametrize("digits", [DIGITS, DIGITS[:, :20, :9]])
def test_digits_pasted_at_their_corners_are_the_clip(digits):
    clips = MovingMNISTClips(digits, seed=3, num_frames=20, num_videos=8)
    for index in range(8):
        corners = clips.corners(index)
        assert (corners.shape, corners.dtype) == ((2, 20, 2), np.int64)
        pasted = (paste(pair, corners) for pair in itertools.product(digits, repeat=2))
        assert sum(np.array_equal(frames, clips[index][..., 0]) for frames in pasted) == 1  # which pair is not told
    with pytest.raises(IndexError):
        clips.corners(8)


def paste(pair, corners):
    frames = np.zeros((corners.shape[1], 64, 64), np.uint8)
    for digit, path in zip(pair, corners, strict=True):
        for frame, (top, left) in zip(frames, path, strict=True):
            window = frame[top : top + digit.shape[0], left : left + digit.shape[1]]
            np.maximum(window, digit, out=window)
    return frames


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
