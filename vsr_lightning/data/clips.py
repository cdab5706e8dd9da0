"""Clips on their way to the networks: pixels as video, batches that depend on the step alone, the one DataModule base.

B batch, F frames, C channels, H W pixels. Clips are uint8 (F, H, W, C); videos are float32 (B, F, C, H, W) in
[-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from vsr_lightning.errors import UserError


def to_video(clips: Tensor) -> Tensor:
    """uint8 (..., F, H, W, C) -> float32 (..., F, C, H, W) in [-1, 1]."""
    return clips.movedim(-1, -3).float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """The inverse of `to_video`, clamped and rounded: (..., F, C, H, W) -> uint8 (..., F, H, W, C)."""
    return ((video.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def stack(clips: Dataset[Tensor], indices: Iterable[int]) -> Tensor:
    """Some clips of a dataset as video, (B, F, C, H, W) in [-1, 1]."""
    return to_video(torch.stack([clips[index] for index in indices]))


class StepBatchSampler(Sampler[list[int]]):
    """Endless batches of indices in which the batch of step s is a function of (seed, s) alone.

    So a run resumed at `start_step` sees exactly what it would have seen. The order is one permutation of
    the items after another, each of its own seed; `num_items=None` counts upwards for ever. Step s takes the
    next `batch_size * world_size` indices of that order, and rank r the r-th part of them.
    """

    def __init__(
        self,
        num_items: int | None,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_items == 0:
            raise UserError("no training clips: the dataset is empty")
        if batch_size < 1:
            raise UserError(f"data.batch_size: must be at least 1, not {batch_size}")
        self.num_items = num_items
        self.batch_size = batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch_at(step)
            step += 1

    def batch_at(self, step: int) -> list[int]:
        """The indices of this rank at a global step."""
        first = (step * self.world_size + self.rank) * self.batch_size
        places = np.arange(first, first + self.batch_size)
        if self.num_items is None:
            return places.tolist()
        epochs, places = np.divmod(places, self.num_items)
        parts = [
            self._permute(epoch, self.num_items)[places[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)
        ]
        return np.concatenate(parts).tolist()

    def _permute(self, epoch: int, num_items: int) -> np.ndarray:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(num_items)
        return self._permutation


def collate(clips: Tensor | Sequence[Tensor]) -> Tensor:
    """Stack clips to a batch; one that `__getitems__` already made passes through."""
    return clips if isinstance(clips, Tensor) else torch.stack(list(clips))


class ClipDataModule(lightning.LightningDataModule, ABC):
    """The base of every dataset: subclasses say what the clips are, this class brings them to the device.

    Loaders yield uint8 (B, F, H, W, C), a quarter of the bytes; on the device that becomes float32 video
    (B, F, C, H, W) in [-1, 1]. The Trainer must have `use_distributed_sampler=False`.

    Args:
        batch_size: clips per step and device.
        num_workers: processes that prepare clips, per device.
        seed: of the training clips and their order.
        val_videos: size of the validation set; it is the same clips in the same order, always.
        num_frames: frames per clip.
        dir: where stores are written and first looked for; see `vsr_lightning.data.fetching.read_dirs`.
        source: a local archive, file or folder to use in place of a download.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        num_workers: int = 4,
        seed: int = 0,
        val_videos: int = 256,
        num_frames: int = 10,
        dir: str = "",
        source: str = "",
    ) -> None:
        super().__init__()
        for key, value in {
            "batch_size": batch_size,
            "val_videos": val_videos,
            "num_frames": num_frames,
        }.items():
            if value < 1:
                raise UserError(f"data.{key}: must be at least 1, not {value}")
        if num_workers < 0:
            raise UserError(f"data.num_workers: must not be negative, not {num_workers}")
        if seed < 0:
            raise UserError(f"data.seed: must not be negative, not {seed}")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_videos = val_videos
        self.num_frames = num_frames
        self.dir = dir
        self.source = source

    @abstractmethod
    def train_clips(self) -> Dataset[Tensor]:
        """Training clips, each uint8 (F, H, W, C); endless where the dataset says `endless = True`."""

    @abstractmethod
    def val_clips(self) -> Dataset[Tensor]:
        """Validation clips, at least the first `val_videos`."""

    @abstractmethod
    def test_clips(self) -> Dataset[Tensor]:
        """Test clips; nothing is trained or tuned on them."""

    def held_out_clips(self, split: str) -> Dataset[Tensor]:
        """The clips that a sweep restores, of the split `val` or `test`."""
        return self.val_clips() if split == "val" else self.test_clips()

    @abstractmethod
    def clips_name(self, split: str) -> str:
        """What the clips of a split are, in a few words: the `dataset` of a result."""

    def verify(self, split: str) -> None:
        """Raise UserError if the stored clips of a split are not what was stored; there may be none."""

    def fingerprint(self, split: str) -> str:
        """Tells the clips of a split from any others under the same name; empty where the settings do."""
        return ""

    @abstractmethod
    def fetch(self) -> None:
        """Get, verify and convert the data, printing what was done: the `data` command."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        clips = self.train_clips()
        rank, world_size, start_step = 0, 1, 0
        if self.trainer is not None:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
            # global_step counts optimiser steps, the sampler counts batches.
            start_step = self.trainer.global_step * self.trainer.accumulate_grad_batches
        num_items = None if getattr(clips, "endless", False) else len(clips)  # type: ignore[arg-type]
        sampler = StepBatchSampler(num_items, self.batch_size, self.seed, start_step, rank, world_size)
        return self._loader(clips, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader[Tensor]:
        clips = self.val_clips()
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        count = min(self.val_videos, len(clips))  # type: ignore[arg-type]
        # No clip twice, and no rank with a batch more than another: it would wait for them for ever.
        count -= count % world_size
        if count == 0:
            raise UserError(f"data.val_videos: fewer validation clips than the {world_size} devices")
        return self._loader(Subset(clips, range(rank, count, world_size)), batch_size=self.batch_size)

    def validation_clips(self, count: int) -> Tensor:
        """The first validation clips as video, (count, F, C, H, W) in [-1, 1]."""
        clips = self.val_clips()
        return stack(clips, range(min(count, self.val_videos, len(clips))))  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return to_video(batch)

    def _loader(self, clips: Dataset[Tensor], **batches: Any) -> DataLoader[Tensor]:
        return DataLoader(
            clips,
            **batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=4 if self.num_workers > 0 else None,
            pin_memory=torch.cuda.is_available(),
        )
