"""Group normalisation and SiLU of a frozen network on a GPU, by Triton kernels, forward and back.

What `torch.compile` makes of the formula works a group's terms out anew for each number. Here a program has one image,
works its groups' terms out once, and looks at its pixels twice, the second time backwards, as a cache has what was seen
last, and registers the last tile.

Kernels are compiled for each size of images. Shapes: N images, C channels, H W pixels; channels last in memory. `by_x`
is the gradient by x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """What a program works on at once: some pixels, with all their channels."""

    numbers: int  # channels counted up to a power of 2
    warps: int
    stages: int  # tiles under way: one that is worked on, and others that are being loaded


# Of those tried on an H200 with 160 videos, the least time for all of the shipped decoder's norms
# (experiments/results/bench/h200_kernels/norm.csv).
FORWARD = Tile(numbers=4096, warps=4, stages=3)
BACKWARD = Tile(numbers=2048, warps=4, stages=3)


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
    tile_pixels: tl.constexpr,
    width: tl.constexpr,
    last: tl.constexpr,
    stages: tl.constexpr,
    biased: tl.constexpr,
):
    """See `group_norm_silu`. Sums are of differences from the first pixel: squares of large means drown all else."""
    start, channel, owned, tile, in_last = _begin(pixels, channels, tile_pixels, width, last)
    x += start
    y += start
    first = tl.load(x + channel, owned, 0.0).to(tl.float32)[None, :]
    sums = tl.zeros((tile_pixels, width), tl.float32)
    squares = tl.zeros((tile_pixels, width), tl.float32)
    for pixel in tl.range(0, last, tile_pixels, num_stages=stages):
        difference = tl.load(x + pixel * channels + tile, owned[None, :], 0.0).to(tl.float32) - first
        sums += difference
        squares += difference * difference
    kept = tl.load(x + last * channels + tile, in_last, first).to(tl.float32)
    difference = kept - first
    sums += difference
    squares += difference * difference

    difference = tl.sum(sums, 0) / pixels
    channel_variance = tl.sum(squares, 0) / pixels - difference * difference
    channel_mean = tl.sum(first, 0) + difference
    added = tl.zeros_like(channel_mean)
    if biased:
        added = tl.load(before + channel, owned, 0.0).to(tl.float32)
    group_mean = _over_groups(channel_mean + added, channel, owned, channels, groups)
    apart = channel_mean + added - group_mean
    variance = _over_groups(channel_variance + apart * apart, channel, owned, channels, groups)
    scale = tl.rsqrt(tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL) + eps)
    centre = group_mean - added
    statistics += tl.program_id(0).to(tl.int64) * 2 * channels + channel
    tl.store(statistics, centre, owned)
    tl.store(statistics + channels, scale, owned)

    scale *= tl.load(weight + channel, owned, 0.0).to(tl.float32)
    shift = (tl.load(bias + channel, owned, 0.0).to(tl.float32) - centre * scale)[None, :]
    scale = scale[None, :]
    normed = kept * scale + shift
    tl.store(y + last * channels + tile, normed * _sigmoid(normed), in_last)
    for back in tl.range(tile_pixels, last + tile_pixels, tile_pixels, num_stages=stages):
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
    tile_pixels: tl.constexpr,
    width: tl.constexpr,
    last: tl.constexpr,
    stages: tl.constexpr,
):
    """The gradient by x: scale (weight g - mean(weight g) - n mean(weight g n)), means over a group.

    n is x without its group's mean, times scale, and g = by_y silu'(weight n + bias).
    """
    start, channel, owned, tile, in_last = _begin(pixels, channels, tile_pixels, width, last)
    x += start
    by_y += start
    by_x += start
    statistics += tl.program_id(0).to(tl.int64) * 2 * channels + channel
    scale = tl.load(statistics + channels, owned, 0.0)
    shift = -tl.load(statistics, owned, 0.0) * scale
    weight = tl.load(weight + channel, owned, 0.0).to(tl.float32)
    bias = tl.load(bias + channel, owned, 0.0).to(tl.float32)
    sums = tl.zeros((tile_pixels, width), tl.float32)
    products = tl.zeros((tile_pixels, width), tl.float32)
    for pixel in tl.range(0, last, tile_pixels, num_stages=stages):
        place = pixel * channels + tile
        n, g = _by_normed(by_y + place, x + place, owned[None, :], scale, shift, weight, bias)
        sums += g
        products += g * n
    place = last * channels + tile
    n, g = _by_normed(by_y + place, x + place, in_last, scale, shift, weight, bias)
    sums += g
    products += g * n

    mean = _over_groups(weight * tl.sum(sums, 0) / pixels, channel, owned, channels, groups)
    slope = _over_groups(weight * tl.sum(products, 0) / pixels, channel, owned, channels, groups)
    mean, slope, factor = (scale * mean)[None, :], (scale * slope)[None, :], (scale * weight)[None, :]
    tl.store(by_x + place, factor * g - (n * slope + mean), in_last)
    for back in tl.range(tile_pixels, last + tile_pixels, tile_pixels, num_stages=stages):
        place = (last - back) * channels + tile
        n, g = _by_normed(by_y + place, x + place, owned[None, :], scale, shift, weight, bias)
        tl.store(by_x + place, factor * g - (n * slope + mean), owned[None, :])


@triton.jit
def _begin(
    pixels: tl.constexpr, channels: tl.constexpr, tile_pixels: tl.constexpr, width: tl.constexpr, last: tl.constexpr
):
    """Where a program's image starts; its channels, up to `width`; which of them there are; a tile's places in it.

    And which numbers of the last tile there are.
    """
    start = tl.program_id(0).to(tl.int64) * (pixels * channels)
    channel = tl.arange(0, width)
    owned = channel < channels
    pixel = tl.arange(0, tile_pixels)[:, None]
    return start, channel, owned, pixel * channels + channel[None, :], owned[None, :] & (pixel < pixels - last)


@triton.jit
def _over_groups(values, channel, owned, channels: tl.constexpr, groups: tl.constexpr):
    """The mean of each channel's group, of values by channel."""
    per_group: tl.constexpr = channels // groups
    member = (channel[:, None] // per_group == tl.arange(0, groups)[None, :]) & owned[:, None]
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


def _sizes(x: Tensor, groups: int, tile: Tile) -> dict[str, int]:
    """What kernels are compiled for."""
    pixels, channels = x.shape[2] * x.shape[3], x.shape[1]
    width = triton.next_power_of_2(channels)
    tile_pixels = max(1, min(tile.numbers // width, triton.next_power_of_2(pixels)))
    last = (pixels - 1) // tile_pixels * tile_pixels  # the first pixel of the last tile
    sizes = {"pixels": pixels, "channels": channels, "groups": groups, "tile_pixels": tile_pixels, "width": width}
    return sizes | {"last": last, "stages": tile.stages, "num_warps": tile.warps}


# Flexible: `force_layout_optimization` makes x channels last, whatever strides it was traced with, and it is not to be
# copied back to those.
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
        groups: a power of 2 that divides C; a few, as a program has a table of channels and groups.
        eps: added to variances.

    Raises:
        ValueError: groups do not divide C, or sizes are not C.
    """
    _check(x, groups, *(each for each in (before, weight, bias) if each is not None))
    x, weight, bias = _channels_last(x), weight.contiguous(), bias.contiguous()
    added = bias if before is None else before.contiguous()
    y, statistics = torch.empty_like(x), _statistics(x)
    sizes = _sizes(x, groups, FORWARD)
    _forward[(len(x),)](x, added, weight, bias, y, statistics, eps, **sizes, biased=before is not None)
    return y, statistics


@group_norm_silu.register_fake
def _(x: Tensor, before: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.channels_last), _statistics(x)


@torch.library.custom_op("vsr_lightning::group_norm_silu_backward", mutates_args=(), tags=(torch.Tag.flexible_layout,))
def backward(by_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, groups: int) -> Tensor:
    """The gradient by x, channels last, from that by the result of `group_norm_silu`."""
    by_y, x = _channels_last(by_y), _channels_last(x)
    by_x = torch.empty_like(x)
    vectors = (each.contiguous() for each in (weight, bias, statistics))
    _backward[(len(x),)](by_y, x, *vectors, by_x, **_sizes(x, groups, BACKWARD))
    return by_x


@backward.register_fake
def _(by_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, groups: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _check(x: Tensor, groups: int, *vectors: Tensor) -> None:
    """What a kernel would read beyond is an error."""
    channels = x.shape[1]
    if groups & (groups - 1) or channels % groups:
        raise ValueError(f"groups: {groups} is not a power of 2 that divides {channels} channels")
    if any(vector.shape != (channels,) for vector in vectors):
        raise ValueError(f"before, weight and bias are not {channels} numbers each, one for each channel")


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
    if any(ctx.needs_input_grad[1:4]):
        raise RuntimeError("group_norm_silu has a gradient by x alone: freeze before, weight and bias")
    return backward(by_y, *ctx.saved_tensors, ctx.groups), None, None, None, None, None


group_norm_silu.register_autograd(_differentiate, setup_context=_setup)
