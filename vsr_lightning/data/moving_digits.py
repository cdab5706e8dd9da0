"""The generator of Moving MNIST: two digits that drift and bounce in a frame, each clip a function of (seed, index).

N clips (B of a batch) of F frames, K digits of h w pixels in each, H W pixels of a frame.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import Dataset

FRAME_SIZE = 64
STEP_LENGTH = 0.1  # per frame, of the range of positions: 3.6 pixels a frame for digits of 28 pixels


def uniforms(seed: int, indices: np.ndarray, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1) for each index: float64 (N, count), a function of (seed, index).

    This is SplitMix64 (Steele et al., 2014) addressed by counter, so that a batch costs one array operation.
    """
    start = _splitmix(np.array([seed % 2**64], np.uint64))
    counters = indices.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
    return (_splitmix(start + counters * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(11)) * 2.0**-53


def _splitmix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64, on uint64 that wraps around."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def trajectories(start: np.ndarray, angle: np.ndarray, num_frames: int) -> np.ndarray:
    """Positions (N, F, 2) in [0, 1]^2 of points that start at (N, 2), head for (N,) radians, and bounce.

    As in the original GetRandomTrajectory: step, clamp to the wall, turn that component of the velocity.
    """
    position = start.copy()
    velocity = STEP_LENGTH * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
    path = np.empty((len(start), num_frames, 2))
    for frame in range(num_frames):
        position += velocity
        velocity = np.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = position.clip(0, 1)
        path[:, frame] = position
    return path


def top_left(path: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top and left pixels (..., 2), int64, of digits of that size on paths (..., 2) in [0, 1]^2."""
    # Truncated to whole pixels, as the original does.
    return (path * np.array([FRAME_SIZE - height, FRAME_SIZE - width])).astype(np.int64)


def draw_clips(digits: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Paste digits (N, K, h, w) along paths (N, K, F, 2) in [0, 1]^2, by maximum: uint8 (N, F, H, W, 1)."""
    num_clips, num_digits, height, width = digits.shape
    num_frames = path.shape[2]
    frames = np.zeros((num_clips * num_frames, FRAME_SIZE, FRAME_SIZE), np.uint8)
    # (frame, top, left) -> a view of the (h, w) pixels there. Frames differ, so no two writes overlap.
    windows = sliding_window_view(frames, (height, width), axis=(1, 2), writeable=True)
    place = np.arange(num_clips * num_frames)
    for k in range(num_digits):
        top, left = top_left(path[:, k], height, width).reshape(-1, 2).T
        digit = np.repeat(digits[:, k], num_frames, axis=0)
        windows[place, top, left] = digit if k == 0 else np.maximum(windows[place, top, left], digit)
    return frames.reshape(num_clips, num_frames, FRAME_SIZE, FRAME_SIZE, 1)


class MovingMNISTClips(Dataset[Tensor]):
    """Clips of two digits; clip i is a function of (seed, i), whatever the batch it is made in.

    Args:
        digits: uint8 (N, h, w), to choose from with equal chance.
        seed: of the digits chosen and of their paths.
        num_frames: F.
        num_videos: length of the dataset; None is endless.
        other_digits: uint8 (M, h, w); the share `other_share` of clips takes both digits from these.
    """

    def __init__(
        self,
        digits: np.ndarray,
        seed: int,
        num_frames: int = 10,
        num_videos: int | None = None,
        other_digits: np.ndarray | None = None,
        other_share: float = 0.0,
    ) -> None:
        others = digits[:0] if other_digits is None else other_digits
        self.digits = np.concatenate([digits, others])
        self.num_main = len(digits)
        self.seed = seed
        self.num_frames = num_frames
        self.num_videos = num_videos
        self.other_share = other_share if len(others) else 0.0

    @property
    def endless(self) -> bool:
        """Whether every index has a clip."""
        return self.num_videos is None

    def __len__(self) -> int:
        if self.num_videos is None:
            raise TypeError("an endless dataset has no length")
        return self.num_videos

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch of clips: uint8 (B, F, 64, 64, 1)."""
        return torch.from_numpy(draw_clips(*self._draw(indices)))

    def corners(self, index: int) -> np.ndarray:
        """Where the two digits of a clip are: the top and left pixel of each in each frame, int64 (2, F, 2)."""
        _, path = self._draw([index])
        return top_left(path[0], *self.digits.shape[1:])

    def _draw(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The digits (B, 2, h, w) of clips and their paths (B, 2, F, 2) in [0, 1]^2."""
        places = np.asarray(indices, np.int64)
        if places.min() < 0 or (self.num_videos is not None and places.max() >= self.num_videos):
            raise IndexError(f"clip index out of range 0..{self.num_videos}")
        # Which digits; then for each of the two: identity, start (2), direction.
        which, *draws = np.split(uniforms(self.seed, places, 9), [1, 3, 7], axis=1)
        identity, start, direction = draws
        path = trajectories(start.reshape(-1, 2), 2 * np.pi * direction.reshape(-1), self.num_frames)
        return self.digits[self._choose(which, identity)], path.reshape(len(places), 2, self.num_frames, 2)

    def _choose(self, which: np.ndarray, identity: np.ndarray) -> np.ndarray:
        """Digit numbers (B, 2) from uniform numbers (B, 1) and (B, 2)."""
        is_other = which < self.other_share
        first = np.where(is_other, self.num_main, 0)
        count = np.where(is_other, len(self.digits) - self.num_main, self.num_main)
        return first + (identity * count).astype(np.int64)
