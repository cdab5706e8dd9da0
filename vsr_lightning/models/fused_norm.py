"""Group normalisation and SiLU of a frozen network on a GPU: one pass over memory, and one back, by Triton kernels.

What `torch.compile` makes of the formula reads an image for its statistics and again for what they are for, and works a
group's terms out anew for each number. Here a program has one image, or whole groups of its channels, works their terms
out once, and looks at its pixels twice: the second time in a cache, and at the last tile of them in registers.

Kernels are compiled for each size of images. Shapes: N images, C channels, H W pixels; channels last in memory. `by_x`
is the gradient by x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """How an image is divided."""

    parts: int  # of its channels, a program each; at most the groups
    numbers: int  # that a program works on at once
    warps: int
    stages: int  # tiles under way: one that is worked on, and others that are being loaded


# Of those tried on an H200 with 160 videos, the least time for all of the shipped decoder's norms
# (`tests/bench_kernels.py --only norm --batch 160`).
FORWARD = Tile(parts=1, numbers=4096, warps=4, stages=3)
BACKWARD = Tile(parts=1, numbers=2048, warps=4, stages=3)


@triton.jit
def _forward(
    x,
    before,
    weight,
    bias,
    y,
    statistics,
    eps,
    pixels: tl.constexpr,
    channels: tl.constexpr,
    groups: tl.constexpr,
    parts: tl.constexpr,
    in_tile: tl.constexpr,
    width: tl.constexpr,
    stages: tl.constexpr,
    biased: tl.constexpr,
):
    """See `group_norm_silu`. Sums are of what differs from the first pixel: squares of large means would drown it."""
    start, channel, owned, in_image, tile = _begin(pixels, channels, parts, in_tile, width)
    last: tl.constexpr = (pixels - 1) // in_tile * in_tile  # the first pixel of the last tile
    in_last = owned[None, :] & (tl.arange(0, in_tile)[:, None] < pixels - last)
    x += start
    y += start
    first = tl.load(x + channel, owned, 0.0)[None, :]
    sums = tl.zeros((in_tile, width), tl.float32)
    squares = tl.zeros((in_tile, width), tl.float32)
    for pixel in tl.range(0, last, in_tile, num_stages=stages):
        off = tl.load(x + pixel * channels + tile, owned[None, :], 0.0).to(tl.float32) - first
        sums += off
        squares += off * off
    kept = tl.load(x + last * channels + tile, in_last, first)
    off = kept.to(tl.float32) - first
    sums += off
    squares += off * off

    off = tl.sum(sums, 0) / pixels
    variance = tl.sum(squares, 0) / pixels - off * off
    mean = tl.sum(first.to(tl.float32), 0) + off
    added = tl.zeros_like(mean)
    if biased:
        added = tl.load(before + in_image, owned, 0.0).to(tl.float32)
    group_mean = _over_groups(mean + added, channel, owned, channels, groups, parts)
    apart = mean + added - group_mean
    variance = _over_groups(variance + apart * apart, channel, owned, channels, groups, parts)
    scale = tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    centre = group_mean - added
    statistics += tl.program_id(0).to(tl.int64) * 2 * channels + in_image
    tl.store(statistics, centre, owned)
    tl.store(statistics + channels, scale, owned)

    scale *= tl.load(weight + in_image, owned, 0.0).to(tl.float32)
    shift = (tl.load(bias + in_image, owned, 0.0).to(tl.float32) - centre * scale)[None, :]
    scale = scale[None, :]
    normed = kept.to(tl.float32) * scale + shift
    tl.store(y + last * channels + tile, normed * _sigmoid(normed), in_last)
    for back in tl.range(in_tile, last + in_tile, in_tile, num_stages=stages):  # a cache has what was seen last
        place = (last - back) * channels + tile
        normed = tl.load(x + place, owned[None, :], 0.0).to(tl.float32) * scale + shift
        tl.store(y + place, normed * _sigmoid(normed), owned[None, :])


@triton.jit
def _backward(
    by_y,
    x,
    weight,
    bias,
    statistics,
    by_x,
    pixels: tl.constexpr,
    channels: tl.constexpr,
    groups: tl.constexpr,
    parts: tl.constexpr,
    in_tile: tl.constexpr,
    width: tl.constexpr,
    stages: tl.constexpr,
):
    """The gradient by x: scale (weight g - mean(weight g) - n mean(weight g n)), means over a group.

    n is x without its group's mean, times scale, and g = by_y silu'(weight n + bias).
    """
    start, channel, owned, in_image, tile = _begin(pixels, channels, parts, in_tile, width)
    last: tl.constexpr = (pixels - 1) // in_tile * in_tile
    in_last = owned[None, :] & (tl.arange(0, in_tile)[:, None] < pixels - last)
    x += start
    by_y += start
    by_x += start
    statistics += tl.program_id(0).to(tl.int64) * 2 * channels + in_image
    scale = tl.load(statistics + channels, owned, 0.0)
    shift = -tl.load(statistics, owned, 0.0) * scale
    weight = tl.load(weight + in_image, owned, 0.0).to(tl.float32)
    bias = tl.load(bias + in_image, owned, 0.0).to(tl.float32)
    sums = tl.zeros((in_tile, width), tl.float32)
    products = tl.zeros((in_tile, width), tl.float32)
    for pixel in tl.range(0, last, in_tile, num_stages=stages):
        place = pixel * channels + tile
        n, g = _by_normed(by_y + place, x + place, owned[None, :], scale, shift, weight, bias)
        sums += g
        products += g * n
    place = last * channels + tile
    n, g = _by_normed(by_y + place, x + place, in_last, scale, shift, weight, bias)
    sums += g
    products += g * n

    mean = _over_groups(weight * tl.sum(sums, 0) / pixels, channel, owned, channels, groups, parts)
    slope = _over_groups(weight * tl.sum(products, 0) / pixels, channel, owned, channels, groups, parts)
    mean, slope, factor = (scale * mean)[None, :], (scale * slope)[None, :], (scale * weight)[None, :]
    tl.store(by_x + place, factor * g - (n * slope + mean), in_last)
    for back in tl.range(in_tile, last + in_tile, in_tile, num_stages=stages):
        place = (last - back) * channels + tile
        n, g = _by_normed(by_y + place, x + place, owned[None, :], scale, shift, weight, bias)
        tl.store(by_x + place, factor * g - (n * slope + mean), owned[None, :])


@triton.jit
def _begin(
    pixels: tl.constexpr, channels: tl.constexpr, parts: tl.constexpr, in_tile: tl.constexpr, width: tl.constexpr
):
    """Where a program's numbers are.

    Its first one; its channels, from 0 to a power of 2, which of these there are, and which of the image they are; and
    where the numbers of a tile are from its first.
    """
    own: tl.constexpr = channels // parts
    start = tl.program_id(0).to(tl.int64) * (pixels * channels) + tl.program_id(1) * own
    channel = tl.arange(0, width)
    tile = tl.arange(0, in_tile)[:, None] * channels + channel[None, :]
    return start, channel, channel < own, tl.program_id(1) * own + channel, tile


@triton.jit
def _over_groups(values, channel, owned, channels: tl.constexpr, groups: tl.constexpr, parts: tl.constexpr):
    """The mean of each channel's group, of values by channel."""
    per_group: tl.constexpr = channels // groups
    group = tl.arange(0, groups // parts)[None, :]
    member = (channel[:, None] // per_group == group) & owned[:, None]
    means = tl.sum(tl.where(member, values[:, None], 0.0), 0) / per_group
    return tl.sum(tl.where(member, means[None, :], 0.0), 1)


@triton.jit
def _by_normed(by_y, x, there, scale, shift, weight, bias):
    """n and g of `_backward`."""
    n = tl.load(x, there, 0.0).to(tl.float32) * scale[None, :] + shift[None, :]
    normed = n * weight[None, :] + bias[None, :]
    sigmoid = _sigmoid(normed)
    slope = sigmoid * (1.0 + normed * (1.0 - sigmoid))
    return n, tl.load(by_y, there, 0.0).to(tl.float32) * slope


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-x)), in fewer instructions than a division takes."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -1.4426950408889634))  # log2(e)
    return root * root


def _launch(x: Tensor, groups: int, tile: Tile) -> tuple[tuple[int, int], dict[str, int]]:
    """The grid of programs, and the sizes that kernels are compiled for."""
    images, channels, height, width = x.shape
    parts, pixels = min(tile.parts, groups), height * width
    in_row = triton.next_power_of_2(channels // parts)
    sizes = {"pixels": pixels, "channels": channels, "groups": groups, "parts": parts, "width": in_row}
    sizes["in_tile"] = max(1, min(tile.numbers // in_row, triton.next_power_of_2(pixels)))
    return (images, parts), sizes | {"stages": tile.stages, "num_warps": tile.warps}


# Flexible: what Inductor passes is channels last, whatever strides it was traced with, and need not be copied to those.
@torch.library.custom_op("vsr_lightning::group_norm_silu", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def group_norm_silu(
    x: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """SiLU of group-normalised x (Wu & He 2018), of x's type, channels last; and the statistics that a gradient needs.

    Differentiable by x alone.

    Args:
        x: (N, C, H, W); copied, unless channels are last.
        before: (C), added to x first, if any.
        weight: (C), as bias.
        groups: a power of 2 that divides C.
        eps: added to variances.
    """
    x = _channels_last(x)
    y, statistics = torch.empty_like(x), _statistics(x)
    grid, sizes = _launch(x, groups, FORWARD)
    added = bias if before is None else before
    _forward[grid](x, added, weight, bias, y, statistics, eps, **sizes, biased=before is not None)
    return y, statistics


@group_norm_silu.register_fake
def _(x: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), _statistics(x)


@torch.library.custom_op("vsr_lightning::group_norm_silu_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def backward(by_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, groups: int) -> Tensor:
    """The gradient by x, channels last, from that by the result of `group_norm_silu`."""
    by_y, x = _channels_last(by_y), _channels_last(x)
    by_x = torch.empty_like(x)
    grid, sizes = _launch(x, groups, BACKWARD)
    _backward[grid](by_y, x, weight, bias, statistics, by_x, **sizes)
    return by_x


@backward.register_fake
def _(by_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, groups: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _statistics(x: Tensor) -> Tensor:
    """Room for each channel's mean of its group, less what is added to x before, and one over its deviation."""
    return x.new_empty(x.shape[0], 2, x.shape[1], dtype=torch.float32)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, weight, bias, ctx.groups, _ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, by_y: Tensor, by_statistics: Tensor | None) -> tuple[Tensor | None, ...]:
    return backward(by_y, *ctx.saved_tensors, ctx.groups), None, None, None, None, None


group_norm_silu.register_autograd(_differentiate, setup_context=_setup)
