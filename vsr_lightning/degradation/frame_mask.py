"""Which frames of a video are observed, and the mask M(.) of Eq. 15 that hides the others.

B batch, F frames, C channels, h w low-resolution pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vsr_lightning.errors import UserError

ORDERS = ("sequential", "random")


def observed_frames(num_frames: int, total: int, order: str, seed: int, video: int) -> list[int]:
    """The `num_frames` observed frames out of `total`, in the order in which they join.

    `sequential` is 0, 1, 2, ...; `random` is the first frame, then a permutation of the others that belongs
    to (seed, video). Either way the list for n frames starts the list for n + 1, so the sets are nested.

    Raises:
        UserError: `num_frames` is below 1 or above `total`, or `order` is unknown.
    """
    if not 1 <= num_frames <= total:
        raise UserError(f"grid.num_frames={num_frames}: must lie between 1 and the {total} frames of a clip")
    if order not in ORDERS:
        raise UserError(f"grid.order={order}: unknown; choose one of {', '.join(ORDERS)}")
    if order == "sequential":
        return list(range(num_frames))
    # Permute all the others before cutting: that is what nests the sets.
    others = 1 + np.random.default_rng((seed, video)).permutation(total - 1)
    return [0, *others.tolist()][:num_frames]


def frame_mask(frames: Sequence[Sequence[int]], total: int) -> Tensor:
    """(B, F) float32: 1 at the observed frames of each sample, else 0; F = `total`."""
    mask = torch.zeros(len(frames), total)
    for row, observed in zip(mask, frames, strict=True):
        row[list(observed)] = 1.0
    return mask


def mask_frames(y: Tensor, mask: Tensor) -> Tensor:
    """M(y) of Eq. 15: zero the unobserved frames of y (B, F, C, h, w) by mask (B, F)."""
    return y * mask[:, :, None, None, None]
