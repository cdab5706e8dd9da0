"""Moving MNIST (Srivastava et al., 2015): two handwritten digits that drift and bounce in a 64 x 64 frame."""

import functools
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset

from vsr_lightning.data.clips import ClipDataModule
from vsr_lightning.data.digits import load_digits, resolve_digits
from vsr_lightning.data.moving_digits import MovingMNISTClips
from vsr_lightning.data.official_mnist import fetch_official, open_official
from vsr_lightning.data.splits import SPLITS
from vsr_lightning.errors import UserError


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
            print(f"official sequences: {fetch_official(self.source, self.dir)}")
        except UserError as error:
            if self.source:  # the user's own file must not be passed over
                raise
            print(f"official sequences: skipped, since only data.source needs them ({error})")


def _stream(split: str, seed: int = 0) -> int:
    """A seed of its own for each split."""
    return seed * len(SPLITS) + SPLITS.index(split)
