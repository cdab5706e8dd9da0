"""Clips cut from the trajectories of a store, and the DataModule base of robot pushing, real and simulated.

F frames of a clip, H W pixels, C channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vsr_lightning.data.clip_store import ClipStore
from vsr_lightning.data.clips import ClipDataModule
from vsr_lightning.data.fetching import find_file, read_dirs
from vsr_lightning.data.splits import SPLITS
from vsr_lightning.errors import UserError

OFFSETS = ("fixed", "random")


class TrajectoryClips(Dataset[Tensor]):
    """Clips of consecutive frames, each uint8 (F, H, W, C), cut from the trajectories of a store.

    Fixed offsets cut each trajectory into as many clips as it holds without overlap: all first cuts, then all second
    ones, …; so neighbouring indices are different trajectories. Random offsets are endless: every epoch is a
    permutation of the trajectories, with a uniform offset in each, both functions of (seed, index) alone.

    Args:
        store: of trajectories.
        num_frames: F.
        offsets: `fixed` or `random`.
        seed: of random offsets.
    """

    def __init__(self, store: ClipStore, num_frames: int = 10, offsets: str = "fixed", seed: int = 0) -> None:
        if offsets not in OFFSETS:
            raise UserError(f"data.offsets: '{offsets}' is not 'fixed' or 'random'")
        num_trajectories, trajectory_frames = store.shape[:2]
        if num_trajectories == 0:
            raise UserError(f"{store.path}: holds no trajectories; delete and rebuild it")
        if not 1 <= num_frames <= trajectory_frames:
            raise UserError(f"data.num_frames: trajectories in {store.path} have {trajectory_frames}, not {num_frames}")
        self.store = store
        self.num_frames = num_frames
        self.num_trajectories = num_trajectories
        self.trajectory_frames = trajectory_frames
        self.endless = offsets == "random"
        self.seed = seed
        self._epoch, self._order, self._starts = -1, np.empty(0, np.int64), np.empty(0, np.int64)

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("an endless dataset has no length")
        return self.trajectory_frames // self.num_frames * self.num_trajectories

    def __getitem__(self, index: int) -> Tensor:
        trajectory, start = self.place(index)
        return self.store.frames(trajectory, start, self.num_frames)

    def __getitems__(self, indices: list[int]) -> Tensor:
        """A whole batch of clips: uint8 (B, F, H, W, C)."""
        batch = torch.empty(len(indices), self.num_frames, *self.store.shape[2:], dtype=torch.uint8)
        for row, index in zip(batch, indices, strict=True):
            row.copy_(self[index])
        return batch

    def place(self, index: int) -> tuple[int, int]:
        """The trajectory that a clip is cut from, and the clip's first frame in it."""
        if index < 0 or not (self.endless or index < len(self)):
            raise IndexError(index)
        round_, position = divmod(index, self.num_trajectories)
        if not self.endless:
            return position, round_ * self.num_frames
        self._draw(round_)
        return int(self._order[position]), int(self._starts[position])

    def _draw(self, epoch: int) -> None:
        """Draw the order and the first frames of an epoch, unless they are the last ones drawn."""
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._order = generator.permutation(self.num_trajectories)
            self._starts = generator.integers(
                self.trajectory_frames - self.num_frames, size=self.num_trajectories, endpoint=True
            )
            self._epoch = epoch


class TrajectoryDataModule(ClipDataModule):
    """Clips from the stores `<store_name>-{train,val,test}.h5`, which a subclass's `fetch` makes.

    Args:
        offsets: of training clips, see `TrajectoryClips`; those of validation and test are always fixed.
        num_clips: take just the first so many training clips, which then repeat; None is all.
        camera: that the stores must be of; empty is any.
        **common: the keys of `ClipDataModule`.
    """

    store_name: str
    ways_out: str  # how to get the stores, in words that end a line about a missing one
    left_out: str = ""  # the same where another split's store is there, if the source can lack a split

    def __init__(
        self, *, offsets: str = "fixed", num_clips: int | None = None, camera: str = "", **common: Any
    ) -> None:
        super().__init__(**common)
        if offsets not in OFFSETS:
            raise UserError(f"data.offsets: '{offsets}' is not 'fixed' or 'random'")
        if num_clips is not None and num_clips < 1:
            raise UserError(f"data.num_clips: must be at least 1, not {num_clips}")
        self.offsets = offsets
        self.num_clips = num_clips
        self.camera = camera

    def train_clips(self) -> Dataset[Tensor]:
        clips = TrajectoryClips(self._open("train"), self.num_frames, self.offsets, self.seed)
        if self.num_clips is None:
            return clips
        if not clips.endless and self.num_clips > len(clips):
            raise UserError(f"data.num_clips: {clips.store.path} has {len(clips):,}, not {self.num_clips:,}")
        return Subset(clips, range(self.num_clips))

    def val_clips(self) -> Dataset[Tensor]:
        return TrajectoryClips(self._open("val"), self.num_frames)

    def test_clips(self) -> Dataset[Tensor]:
        return TrajectoryClips(self._open("test"), self.num_frames)

    def clips_name(self, split: str) -> str:
        return f"{self.store_name} {split}"

    def verify(self, split: str) -> None:
        self._open(split).verify()

    def fingerprint(self, split: str) -> str:
        """Eight hex digits of the store's checksum."""
        return self._open(split).attributes["sha256"][:8]

    def store_file(self, split: str) -> str:
        """The name of a split's store."""
        return f"{self.store_name}-{split}.h5"

    def find_store(self, split: str) -> Path | None:
        """The store of a split, if it has been made."""
        return find_file(self.store_file(split), self.dir)

    def store_here(self, split: str) -> Path | None:
        """The store that `fetch` need not make. With `data.dir` only one there counts: others may differ."""
        path = self.find_store(split)
        return path if path and not self._is_elsewhere(path) else None

    def open_store(self, path: Path) -> ClipStore:
        """A store, or a UserError where its trajectories are another camera's."""
        store = ClipStore(path)
        camera = store.attributes["camera"]
        if self.camera and camera != self.camera:
            raise UserError(
                f"{path}: is of camera '{camera}', not '{self.camera}'; set data.camera={camera}, or move or delete "
                "the stores and make them again"
            )
        return store

    def _open(self, split: str) -> ClipStore:
        path = self.find_store(split)
        if path is None:
            raise UserError(self._missing(split, read_dirs(self.dir)))
        try:
            return self.open_store(path)
        except UserError as error:
            if not self._is_elsewhere(path):
                raise
            reason = str(error).partition("; ")[0]  # without its ways out, which are those of a store in its place
            raise UserError(f"{self._missing(split, [Path(self.dir)])}; the one found instead, {reason}") from error

    def _is_elsewhere(self, path: Path) -> bool:
        """Whether a store lies in another folder than `data.dir`, which was named."""
        return bool(self.dir) and path.parent != Path(self.dir)

    def _missing(self, split: str, folders: Sequence[Path]) -> str:
        line = f"{self.store_file(split)}: not in {', '.join(map(str, folders))}"
        others = [path for other in SPLITS if (path := self.find_store(other)) and path.parent in folders]
        if others and self.left_out:
            return f"{line}, where {others[0].name} is; {self.left_out}"
        there = f"; with data.dir={self.dir} and the same other keys it is made there" if self.dir else ""
        return f"{line}; {self.ways_out}{there}"
