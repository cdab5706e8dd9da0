"""Moving MNIST (Srivastava et al., 2015): two handwritten digits that drift and bounce in a 64 x 64 frame."""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vsr_lightning.config import UserError
from vsr_lightning.data.clip_store import ClipStore, write_store
from vsr_lightning.data.clips import ClipDataModule
from vsr_lightning.data.digits import load_digits, resolve_digits
from vsr_lightning.data.fetching import download, find_file, write_dir
from vsr_lightning.data.splits import SPLITS

FRAME_SIZE = 64
STEP_LENGTH = 0.1  # per frame, of the range of positions: 3.6 pixels a frame for digits of 28 pixels

OFFICIAL_FILE, OFFICIAL_STORE = "mnist_test_seq.npy", "moving-mnist-official.h5"
OFFICIAL_URL = "http://www.cs.toronto.edu/~nitish/unsupervised_video/" + OFFICIAL_FILE  # as TFDS has it
OFFICIAL_SHA256 = "c2a3e8d3939c001ab77bf543f130157424efa486bb4d0974d2cebb773b13f8b3"
OFFICIAL_FRAMES = 20

# ---------------------------------------------------------------------------------------------------------
# The generator


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


def draw_clips(digits: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Paste digits (N, K, h, w) along paths (N, K, F, 2) in [0, 1]^2, by maximum: uint8 (N, F, H, W, 1)."""
    num_clips, num_digits, height, width = digits.shape
    num_frames = path.shape[2]
    frames = np.zeros((num_clips * num_frames, FRAME_SIZE, FRAME_SIZE), np.uint8)
    # (frame, top, left) -> a view of the (h, w) pixels there. Frames differ, so no two writes overlap.
    windows = sliding_window_view(frames, (height, width), axis=(1, 2), writeable=True)
    place = np.arange(num_clips * num_frames)
    span = np.array([FRAME_SIZE - height, FRAME_SIZE - width])
    for k in range(num_digits):
        # Truncated to whole pixels, as the original does.
        top, left = (path[:, k] * span).astype(np.int64).reshape(-1, 2).T
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
        places = np.asarray(indices, np.int64)
        if places.min() < 0 or (self.num_videos is not None and places.max() >= self.num_videos):
            raise IndexError(f"clip index out of range 0..{self.num_videos}")
        # Which digits; then for each of the two: identity, start (2), direction.
        which, *draws = np.split(uniforms(self.seed, places, 9), [1, 3, 7], axis=1)
        identity, start, direction = draws
        chosen = self._choose(which, identity)
        path = trajectories(start.reshape(-1, 2), 2 * np.pi * direction.reshape(-1), self.num_frames)
        path = path.reshape(len(places), 2, self.num_frames, 2)
        return torch.from_numpy(draw_clips(self.digits[chosen], path))

    def _choose(self, which: np.ndarray, identity: np.ndarray) -> np.ndarray:
        """Digit numbers (B, 2) from uniform numbers (B, 1) and (B, 2)."""
        is_other = which < self.other_share
        first = np.where(is_other, self.num_main, 0)
        count = np.where(is_other, len(self.digits) - self.num_main, self.num_main)
        return first + (identity * count).astype(np.int64)


# ---------------------------------------------------------------------------------------------------------
# The official test sequences


class OfficialSequences(Dataset[Tensor]):
    """`mnist_test_seq.npy`, uint8 (20, N, 64, 64), cut into clips: all first cuts, then all second ones, …

    In that order two clips of one sequence, with the same digits, are N apart.
    """

    endless = False

    def __init__(self, path: str | Path, num_frames: int = 10) -> None:
        if not 1 <= num_frames <= OFFICIAL_FRAMES:
            raise UserError(f"data.num_frames: {path} has {OFFICIAL_FRAMES} frames, not {num_frames}")
        self.path = Path(path)
        self.num_frames = num_frames
        self._num_sequences = self._sequences().shape[1]

    def __len__(self) -> int:
        return OFFICIAL_FRAMES // self.num_frames * self._num_sequences

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return torch.from_numpy(self._cut(index // self._num_sequences, index % self._num_sequences, 1)[0])

    def chunks(self, size: int = 500) -> Iterator[np.ndarray]:
        """All clips in order, uint8 (n, F, 64, 64, 1) at a time with n up to `size`."""
        for cut in range(OFFICIAL_FRAMES // self.num_frames):
            for first in range(0, self._num_sequences, size):
                yield self._cut(cut, first, size)

    def _cut(self, cut: int, first: int, count: int) -> np.ndarray:
        frames = slice(cut * self.num_frames, (cut + 1) * self.num_frames)
        clips = self._sequences()[frames, first : first + count]
        return np.ascontiguousarray(clips.swapaxes(0, 1)[..., None])

    def _sequences(self) -> np.ndarray:
        # Mapped anew at each use: cheap, and nothing to pickle or to share between processes.
        try:
            sequences = np.load(self.path, mmap_mode="r")
        except (OSError, EOFError, ValueError) as error:
            raise UserError(f"{self.path}: missing, truncated or not a .npy file") from error
        size = (FRAME_SIZE, FRAME_SIZE)
        shape = sequences.shape
        if sequences.dtype != np.uint8 or shape[0] != OFFICIAL_FRAMES or shape[2:] != size:
            raise UserError(f"{self.path}: {sequences.dtype} {shape}, not the official uint8 (20, N, 64, 64)")
        return sequences


def open_official(source: str, num_frames: int) -> Dataset[Tensor]:
    """The official clips from `mnist_test_seq.npy` or from the store that `fetch` makes of it."""
    if not Path(source).is_file():
        raise UserError(f"data.source: {source} is not there; give {OFFICIAL_FILE} or {OFFICIAL_STORE}")
    if Path(source).suffix == ".npy":
        return OfficialSequences(source, num_frames)
    store = ClipStore(source)
    expected = (num_frames, FRAME_SIZE, FRAME_SIZE, 1)
    if store.shape[1:] != expected:
        raise UserError(f"data.source: clips in {source} are {store.shape[1:]} (F, H, W, C), not {expected}")
    return store


# ---------------------------------------------------------------------------------------------------------
# The data module


class MovingMNIST(ClipDataModule):
    """Moving MNIST clips, 64 x 64, one channel, generated as they are needed.

    `seed` changes the training clips alone: validation and test clips are the same for every run.

    Args:
        digits: `mnist`, `embedded` or `auto`; see `vsr_lightning.data.digits`.
        embedded_share: share of training clips made of embedded digits, so that a prior knows them too.
        num_videos: training clips, which then repeat (the paper has 20,000); None is endless.
        test_videos: number of test clips.
        source: take test clips from this `mnist_test_seq.npy` or `moving-mnist-official.h5`.
        **common: the keys of `ClipDataModule`.
    """

    def __init__(
        self,
        *,
        digits: str = "mnist",
        embedded_share: float = 0.0,
        num_videos: int | None = None,
        test_videos: int = 64,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        if not 0 <= embedded_share <= 1:
            raise UserError(f"data.embedded_share: must be between 0 and 1, not {embedded_share}")
        for key, value in {"num_videos": num_videos, "test_videos": test_videos}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{key}: must be at least 1, not {value}")
        self.digits = digits
        self.embedded_share = embedded_share
        self.num_videos = num_videos
        self.test_videos = test_videos

    @functools.cached_property
    def digits_name(self) -> str:
        """`mnist` or `embedded`: what `auto` turned out to be."""
        return resolve_digits(self.digits, self.dir)

    def prepare_data(self) -> None:
        # Lightning calls this in one process of a node: a download happens here, once.
        load_digits(self.digits_name, "val", self.dir)

    def train_clips(self) -> Dataset[Tensor]:
        others = load_digits("embedded", "train") if self.embedded_share > 0 else None
        return MovingMNISTClips(
            load_digits(self.digits_name, "train", self.dir),
            _stream("train", self.seed),
            self.num_frames,
            self.num_videos,
            others,
            self.embedded_share,
        )

    def val_clips(self) -> Dataset[Tensor]:
        digits = load_digits(self.digits_name, "val", self.dir)
        return MovingMNISTClips(digits, _stream("val"), self.num_frames, self.val_videos)

    def test_clips(self) -> Dataset[Tensor]:
        if self.source:
            official = open_official(self.source, self.num_frames)
            return Subset(official, range(min(self.test_videos, len(official))))  # type: ignore[arg-type]
        digits = load_digits(self.digits_name, "test", self.dir)
        return MovingMNISTClips(digits, _stream("test"), self.num_frames, self.test_videos)

    def clips_name(self, split: str) -> str:
        made_of = Path(self.source).name if self.source and split == "test" else self.digits_name
        return f"moving_mnist {made_of} {split}"

    def fetch(self) -> None:
        """Get and verify the digits, and make the store of the official sequences where they can be had."""
        for split in SPLITS:
            print(f"{self.digits_name} digits, {split}: {len(load_digits(self.digits_name, split, self.dir)):,}")
        try:
            print(f"official sequences: {_fetch_official(self.source, self.dir)}")
        except UserError as error:
            if self.source:  # the user's own file must not be passed over
                raise
            print(f"official sequences: skipped, since only data.source needs them ({error})")


def _stream(split: str, seed: int = 0) -> int:
    """A seed of its own for each split."""
    return seed * len(SPLITS) + SPLITS.index(split)


def _fetch_official(source: str, dir: str) -> str:
    """Make the official store unless it is there; returns what was done, in words."""
    if store := find_file(OFFICIAL_STORE, dir):
        ClipStore(store).verify()
        return f"{store} is there and verified"
    store = write_dir(dir) / OFFICIAL_STORE
    local = Path(source) if source else find_file(OFFICIAL_FILE, dir)
    if local is not None:
        _convert_official(local, store)
        return f"{local} made into {store}"

    from tensorflow_datasets.video.moving_mnist import MovingMnist

    downloaded = write_dir(dir) / OFFICIAL_FILE
    download(OFFICIAL_URL, downloaded, MovingMnist.url_infos)
    _convert_official(downloaded, store)
    downloaded.unlink()
    return f"downloaded and made into {store}"


def _convert_official(npy: Path, store: Path) -> None:
    sequences = OfficialSequences(npy)
    with npy.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != OFFICIAL_SHA256:
            raise UserError(f"{npy}: not the official file, or altered (wrong sha256); delete or replace it")
    chunks = _with_progress(sequences.chunks(), len(sequences))
    write_store(store, chunks, name="moving-mnist-official", source=OFFICIAL_URL)


def _with_progress(chunks: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    from tqdm import tqdm

    with tqdm(total=total, desc="official sequences", unit=" clips") as bar:
        for chunk in chunks:
            yield chunk
            bar.update(len(chunk))
