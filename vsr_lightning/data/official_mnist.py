"""The official test sequences of Moving MNIST, `mnist_test_seq.npy`, and the clip store made of them.

N sequences, F frames of a clip.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vsr_lightning.data.clip_store import ClipStore, write_store
from vsr_lightning.data.fetching import download, find_file, write_dir
from vsr_lightning.data.moving_digits import FRAME_SIZE
from vsr_lightning.errors import UserError

OFFICIAL_FILE, OFFICIAL_STORE = "mnist_test_seq.npy", "moving-mnist-official.h5"
OFFICIAL_URL = "http://www.cs.toronto.edu/~nitish/unsupervised_video/" + OFFICIAL_FILE  # as TFDS has it
OFFICIAL_SHA256 = "c2a3e8d3939c001ab77bf543f130157424efa486bb4d0974d2cebb773b13f8b3"
OFFICIAL_FRAMES = 20


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


def fetch_official(source: str, dir: str) -> str:
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
