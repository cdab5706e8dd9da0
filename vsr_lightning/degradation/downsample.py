"""The spatial degradation y = L(x * h) of Eq. 11, and the bicubic baseline that undoes it.

Blur and decimation act on each axis alone, so one small matrix per axis is the whole operator,
`y = A_v x A_hᵀ`: exact, with an exact adjoint, and stackable over samples of different blur.

B batch, F frames, C channels, H W high-resolution (HR) pixels, h w low-resolution (LR) pixels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vsr_lightning.conditions import has_width
from vsr_lightning.errors import UserError

KERNELS = ("gaussian", "box", "bicubic")
TRUNCATE = 4.0  # Gaussian radius in standard deviations, as scipy.ndimage


@dataclass(frozen=True)
class Downsample:
    """Blur, then decimate (Eq. 11); the blur width `sigma_h` is a condition of each sample, not of the class.

    `gaussian` blurs with width `sigma_h`, then keeps pixels `factor // 2 + factor * j`; its border is
    half-sample symmetric (scipy's `reflect`). `box` is the mean of each block. `bicubic` is the antialiased
    cubic of Pillow and of Matlab's `imresize`; at the border it follows Pillow, which drops the taps outside
    the image and renormalises the rest.

    Raises:
        UserError: a value is out of range, or contradicts the kernel.
    """

    factor: int = 8
    """Scale: HR pixels per LR pixel, along each axis."""
    kernel: str = "gaussian"
    """One of `KERNELS`."""
    kernel_size: int | None = None
    """Taps of the Gaussian, odd; None truncates it at 4 sigma."""

    def __post_init__(self) -> None:
        if not isinstance(self.factor, int) or self.factor < 1:
            key = f"degradation.factor={self.factor}, or grid.factor"
            raise UserError(f"{key}: must be a whole number of at least 1, as in 8")
        if self.kernel not in KERNELS:
            known = ", ".join(KERNELS)
            raise UserError(f"degradation.kernel={self.kernel}, or grid.kernel: unknown; choose one of {known}")
        if self.kernel_size is None:
            return
        if self.kernel != "gaussian":
            raise UserError(f"degradation.kernel_size: has no meaning for {self.kernel}; leave it out")
        if not isinstance(self.kernel_size, int) or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise UserError(f"degradation.kernel_size={self.kernel_size}: must be odd and positive, or null")

    @property
    def has_width(self) -> bool:
        """Whether `sigma_h` means anything; without a width it is 0."""
        return has_width(self.kernel)

    @property
    def phase(self) -> float:
        """Centre of LR sample 0, in HR pixels: LR sample j sits at `phase + factor * j`."""
        return float(self.factor // 2) if self.kernel == "gaussian" else (self.factor - 1) / 2

    def matrix(self, size: int, sigma_h: float = 0.0) -> Tensor:
        """The operator along one axis, (size // factor, size) float64; every row sums to 1.

        Args:
            size: HR pixels along the axis.
            sigma_h: width of the Gaussian in HR pixels; 0 is no blur, the only value for box and bicubic.

        Raises:
            UserError: `factor` does not divide `size`, or `sigma_h` is negative or belongs to another kernel.
        """
        if size < 1 or size % self.factor:
            key = f"degradation.factor={self.factor}, or grid.factor"
            raise UserError(f"{key}: must divide the frame, {size} pixels on an axis")
        if not (sigma_h >= 0 and math.isfinite(sigma_h)):
            raise UserError(f"grid.sigma_h={sigma_h}: must be finite and at least 0 (HR pixels)")
        if self.has_width:
            return self._gaussian_matrix(size, sigma_h)
        if sigma_h != 0:
            raise UserError(f"grid.sigma_h={sigma_h}: {self.kernel} has no width; use 0 or the gaussian kernel")
        return self._box_matrix(size) if self.kernel == "box" else self._bicubic_matrix(size)

    def widths(self, size: int, sigma_h: Sequence[float]) -> list[float]:
        """How wide an LR sample's view is, for each video: the standard deviation of |weights| in mid-axis, HR pixels.

        Of the Gaussian that is `sigma_h`, less if it is truncated. Errors are those of `matrix`.
        """
        weights = self._stacked(size, sigma_h)[:, size // self.factor // 2].abs()
        weights = weights / weights.sum(dim=1, keepdim=True)
        pixels = torch.arange(size, dtype=weights.dtype)
        distances = pixels - (weights @ pixels)[:, None]
        return (weights * distances.square()).sum(dim=1).sqrt().tolist()

    def operator(
        self, sigma_h: Sequence[float], height: int, width: int, device: torch.device | str | None = None
    ) -> "SeparableOperator":
        """Operator for a batch; sample b is blurred by `sigma_h[b]` HR pixels, frames are (height, width)."""
        A_v, A_h = (self._stacked(size, sigma_h) for size in (height, width))
        return SeparableOperator(A_v, A_h).to(device)

    def _stacked(self, size: int, sigma_h: Sequence[float]) -> Tensor:
        """The matrix of each sample, (B, size // factor, size); a batch repeats few widths."""
        matrices = {width: self.matrix(size, float(width)) for width in set(sigma_h)}
        return torch.stack([matrices[width] for width in sigma_h])

    def _centres(self, size: int) -> Tensor:
        """Centres of the LR samples in HR pixels, (size // factor, 1) float64."""
        return self.phase + self.factor * torch.arange(size // self.factor, dtype=torch.float64)[:, None]

    def _gaussian_matrix(self, size: int, sigma_h: float) -> Tensor:
        radius = int(TRUNCATE * sigma_h + 0.5) if self.kernel_size is None else self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1) if sigma_h > 0 else torch.zeros(1, dtype=torch.long)
        taps = torch.exp(-0.5 * (offsets.double() / (sigma_h or 1.0)) ** 2)
        return _rows_from_taps(self._centres(size).long() + offsets, taps / taps.sum(), size)

    def _box_matrix(self, size: int) -> Tensor:
        eye = torch.eye(size // self.factor, dtype=torch.float64)
        return eye.repeat_interleave(self.factor, dim=1) / self.factor

    def _bicubic_matrix(self, size: int) -> Tensor:
        # Stretched by the factor, the cubic also removes what the LR grid cannot hold.
        weights = _cubic((torch.arange(size) - self._centres(size)) / self.factor)
        return weights / weights.sum(dim=1, keepdim=True)


class SeparableOperator(nn.Module):
    """The linear map y = A_v x A_hᵀ of every frame, and its adjoint.

    It computes in float32 under autocast too, so that residuals keep their precision.

    Args:
        A_v: (B, h, H), one matrix per sample; B = 1 serves a batch of any size.
        A_h: (B, w, W).
    """

    A_v: Tensor
    A_h: Tensor

    def __init__(self, A_v: Tensor, A_h: Tensor) -> None:
        super().__init__()
        self.register_buffer("A_v", A_v.float(), persistent=False)
        self.register_buffer("A_h", A_h.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, C, H, W) -> (B, F, C, h, w)."""
        return _apply_separable(self.A_v, self.A_h, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """(B, F, C, h, w) -> (B, F, C, H, W), such that <A x, y> = <x, Aᵀ y>."""
        return _apply_separable(self.A_v.mT, self.A_h.mT, y)


def upsample_bicubic(y: Tensor, degradation: Downsample) -> Tensor:
    """The bicubic baseline, (B, F, C, h, w) -> (B, F, C, H, W) float32.

    Interpolates at the operator's own phase: HR pixel i sits at LR coordinate `(i - phase) / factor`, which
    `F.interpolate` misses by half an HR pixel for the Gaussian. Cubic a = -0.5, half-sample symmetric border.
    """
    h, w = y.shape[-2:]
    A_v, A_h = _bicubic_up_matrix(h, degradation), _bicubic_up_matrix(w, degradation)
    return SeparableOperator(A_v[None], A_h[None]).to(y.device)(y)


def _bicubic_up_matrix(size: int, degradation: Downsample) -> Tensor:
    """Cubic interpolation from `size` LR samples, (size * factor, size) float64."""
    pixels = torch.arange(size * degradation.factor, dtype=torch.float64)
    position = ((pixels - degradation.phase) / degradation.factor)[:, None]
    columns = position.floor().long() + torch.arange(-1, 3)  # the four nearest LR samples
    return _rows_from_taps(columns, _cubic(position - columns), size)


def _apply_separable(A_v: Tensor, A_h: Tensor, x: Tensor) -> Tensor:
    """A_v x A_hᵀ per frame, in the matrices' precision whatever autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        x = torch.einsum("bip,bfcpq->bfciq", A_v, x.to(A_v.dtype))
        return torch.einsum("bjq,bfciq->bfcij", A_h, x)


def _rows_from_taps(columns: Tensor, taps: Tensor, size: int) -> Tensor:
    """Rows (n, size) with `taps` at `columns` (n, k), those past an end folded back: b a | a b c | c b."""
    columns = columns % (2 * size)
    columns = torch.minimum(columns, 2 * size - 1 - columns)
    rows = torch.zeros(len(columns), size, dtype=torch.float64)
    return rows.scatter_add_(1, columns, taps.expand(columns.shape))


def _cubic(u: Tensor, a: float = -0.5) -> Tensor:
    """Keys' cubic convolution kernel, support |u| < 2; a = -0.5 as Pillow and Matlab."""
    u = u.abs()
    inner = ((a + 2) * u - (a + 3)) * u**2 + 1
    outer = a * (((u - 5) * u + 8) * u - 4)
    return torch.where(u < 1, inner, torch.where(u < 2, outer, 0.0))
