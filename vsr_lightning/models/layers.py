"""Layers that compute the same by another formula where they are compiled.

Uncompiled, each is PyTorch's layer. Compiled, it is written so that `torch.compile` makes fewer passes over memory of
it, which is what all but matrix products wait for.

Shapes: N images, C channels, H W pixels, B samples.
"""

import math
from importlib.util import find_spec

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

GELU_SLOPE = 2 * math.sqrt(2 / math.pi)  # (1 + tanh(u)) / 2 = sigmoid(2 u)
SHUFFLE = 2  # pixels a side of the square that a pixel's channels are rearranged into
HAS_TRITON = find_spec("triton") is not None


def compiles_for_gpu(x: Tensor) -> bool:
    """Whether Triton kernels can take x in what is being compiled."""
    return torch.compiler.is_compiling() and x.is_cuda and HAS_TRITON


class Linear(nn.Linear):
    """A linear layer that, compiled for training, adds its bias sample by sample. x: (B, ..., in).

    So the bias' gradient begins as a sum over the tokens of each sample, as those of gates and shifts do, and Inductor
    takes all of them in one pass over the gradient.
    """

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` (out), if given, stands in for the layer's own."""
        bias = self.bias if bias is None else bias
        if bias is None or not trains_compiled(bias):
            return functional.linear(x, self.weight, bias)
        out = functional.linear(x, self.weight)
        return (out.float() + bias.expand(len(x), *[1] * (x.ndim - 2), -1)).to(out.dtype)


def trains_compiled(parameter: Tensor) -> bool:
    return torch.compiler.is_compiling() and parameter.requires_grad


class GELU(nn.Module):
    """GELU by its tanh formula (Hendrycks & Gimpel 2016); compiled, by the sigmoid that this is: a faster kernel."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return functional.gelu(x, approximate="tanh")
        u = x.float()
        return (u * torch.sigmoid(GELU_SLOPE * (u + 0.044715 * u**3))).to(x.dtype)


class NormSiLU(nn.GroupNorm):
    """Group normalisation (Wu & He 2018) and SiLU.

    Compiled for a GPU without gradients by parameters, it is one kernel, `fused_norm`. Compiled otherwise, statistics
    are taken by channel first, so that Inductor reduces the rows of a channels-last tensor, where it would else
    transpose it.
    """

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """x: (N, C, H, W), to which a bias `before` (C) is added first, if given (see `Conv2d.without_bias`)."""
        if self._fuses(x, before):
            from vsr_lightning.models import fused_norm  # only where Triton is

            return fused_norm.group_norm_silu(x, before, self.weight, self.bias, self.num_groups, self.eps)[0]
        if before is not None:
            x = x + before.to(x.dtype)[:, None, None]
        # Not compiled, PyTorch's own kernel is one pass.
        return functional.silu(self._normalise(x) if torch.compiler.is_compiling() else super().forward(x))

    def _fuses(self, x: Tensor, before: Tensor | None) -> bool:
        """Whether `fused_norm` takes x: compiled for a GPU, frozen, and with a power of 2 of groups."""
        trained = self.weight.requires_grad or self.bias.requires_grad or (before is not None and before.requires_grad)
        return compiles_for_gpu(x) and not trained and self.num_groups & (self.num_groups - 1) == 0

    def _normalise(self, x: Tensor) -> Tensor:
        # Squares of what is left of a pixel: a variance small beside the mean would drown in rounding.
        centred = x.float() - self._over_groups(x[:, :, :1, :1].detach().float())
        mean, square = self._over_groups(centred), self._over_groups(centred.square())
        scale = ((square - mean.square()).clamp_min(0) + self.eps).rsqrt() * self.weight[:, None, None]
        return ((centred - mean) * scale + self.bias[:, None, None]).to(x.dtype)

    def _over_groups(self, values: Tensor) -> Tensor:
        """The means (N, C, 1, 1) of values (N, C, H, W) over the group of each channel."""
        grouped = values.mean(dim=(2, 3), keepdim=True).unflatten(1, (self.num_groups, -1))
        return grouped.mean(dim=2, keepdim=True).expand_as(grouped).flatten(1, 2)


class Conv2d(nn.Conv2d):
    """A convolution whose bias, where it is compiled, is added by what reads the result: cuDNN makes another pass."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        out, bias = self.without_bias(x)
        return out if bias is None else out + bias.to(out.dtype)[:, None, None]

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The result, and the bias that it lacks, for what reads it to add; none, where nothing is compiled."""
        if not torch.compiler.is_compiling():
            return self(x), None
        return self._conv_forward(x, self.weight, None), self.bias


class SubpixelConv2d(Conv2d):
    """The convolution before a `PixelShuffle`. Compiled, it has the channels of one pixel after those of another.

    So all that reads or writes shuffled pixels moves vectors of channels, where it would else pick every fourth number.
    """

    def without_bias(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not torch.compiler.is_compiling():
            return super().without_bias(x)
        bias = None if self.bias is None else _pixel_by_pixel(self.bias)
        return self._conv_forward(x, _pixel_by_pixel(self.weight), None), bias


def _pixel_by_pixel(channels: Tensor) -> Tensor:
    """Channels (C 4, ...) as (4 C, ...)."""
    return channels.unflatten(0, (-1, SHUFFLE**2)).transpose(0, 1).flatten(0, 1)


class PixelShuffle(nn.PixelShuffle):
    """Rearrangement of a `SubpixelConv2d`'s channels into pixels (Shi et al. 2016); compiled, it stays channels last.

    So the gradient comes back to the convolution in the order that it works in, where it would else be copied.
    """

    def __init__(self) -> None:
        super().__init__(SHUFFLE)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            return super().forward(x)
        pixels = rearrange(x.permute(0, 2, 3, 1), "n h w (i j c) -> n (h i) (w j) c", i=SHUFFLE, j=SHUFFLE)
        return pixels.permute(0, 3, 1, 2)
