"""Queries and keys on a GPU: bias, RMS norm and rotation in one pass over memory, and one back, by Triton kernels.

What `torch.compile` makes of the formula goes over the gradient three times: for the input, for the norms' weights and
for the bias. Here one kernel takes all three; such kernels wait for memory alone, so that is what counts.

Shapes: B batch, N tokens, k channels of a head. `by_x` is the gradient by x.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Tile(NamedTuple):
    """What one program works on."""

    tokens: int
    samples: int  # one after the other, so that it loads rotations and stores sums once


# Of those tried on an H200 with 256 samples, the fastest backwards, and nearly that forward (`tests/bench_kernels.py`);
# with sums to keep, a program has registers for fewer tokens.
FORWARD = BACKWARD = Tile(tokens=32, samples=16)
BACKWARD_WITH_PARAMETERS = Tile(tokens=8, samples=32)
HEADS = 2  # of a tile
WARPS = 4


@triton.jit
def _forward(
    qk,
    bias,
    weight,
    rope,
    q,
    k,
    samples,
    tokens,
    eps,
    heads: tl.constexpr,
    half: tl.constexpr,
    in_tile: tl.constexpr,
    in_heads: tl.constexpr,
    in_samples: tl.constexpr,
):
    """See `prepare`. A program makes a tile of tokens and heads, of queries or keys, in one sample after the other."""
    part, token, place_in_part, bias_1, bias_2, weight_1, weight_2, cos, sin = _begin(
        bias, weight, rope, tokens, heads, half, in_tile, in_heads
    )
    out = q
    if part == 1:
        out = k
    for turn in range(in_samples):
        sample = tl.program_id(2).to(tl.int64) * in_samples + turn
        there = token < tl.where(sample < samples, tokens, 0)
        place = ((sample * tokens + token) * 2 + part) * (heads * 2 * half) + place_in_part
        x_1, x_2, _ = _normalised(qk + place, there, bias_1, bias_2, eps, half)
        y_1, y_2 = x_1 * weight_1, x_2 * weight_2
        place = (sample * tokens + token) * (heads * 2 * half) + place_in_part
        tl.store(out + place, y_1 * cos - y_2 * sin, there)
        tl.store(out + place + half, y_2 * cos + y_1 * sin, there)


@triton.jit
def _backward(
    by_q,
    by_k,
    qk,
    bias,
    weight,
    rope,
    by_qk,
    by_bias,
    by_weight,
    samples,
    tokens,
    eps,
    heads: tl.constexpr,
    half: tl.constexpr,
    in_tile: tl.constexpr,
    in_heads: tl.constexpr,
    in_samples: tl.constexpr,
    parameters: tl.constexpr,
):
    """The gradient by qk; and by bias and the norms' weights, summed over this program's tokens and samples.

    With x = (qk + bias) / rms, the output R(weight x) and the gradient g by it, where R rotates and Rᵀ rotates back:
    the gradient by weight is x Rᵀg, and by qk, as by bias, (w - x mean(x w)) / rms for w = weight Rᵀg. `_1` and `_2`
    are the halves of a head's channels.
    """
    part, token, place_in_part, bias_1, bias_2, weight_1, weight_2, cos, sin = _begin(
        bias, weight, rope, tokens, heads, half, in_tile, in_heads
    )
    gradient = by_q
    if part == 1:
        gradient = by_k
    if parameters:
        bias_sum_1 = tl.zeros((in_tile, in_heads, half), tl.float32)
        bias_sum_2 = tl.zeros((in_tile, in_heads, half), tl.float32)
        weight_sum_1 = tl.zeros((in_tile, in_heads, half), tl.float32)
        weight_sum_2 = tl.zeros((in_tile, in_heads, half), tl.float32)
    for turn in range(in_samples):
        sample = tl.program_id(2).to(tl.int64) * in_samples + turn
        there = token < tl.where(sample < samples, tokens, 0)
        place = (sample * tokens + token) * (heads * 2 * half) + place_in_part
        g_1 = tl.load(gradient + place, there, 0.0).to(tl.float32)
        g_2 = tl.load(gradient + place + half, there, 0.0).to(tl.float32)
        place = ((sample * tokens + token) * 2 + part) * (heads * 2 * half) + place_in_part
        x_1, x_2, scale = _normalised(qk + place, there, bias_1, bias_2, eps, half)
        back_1, back_2 = g_1 * cos + g_2 * sin, g_2 * cos - g_1 * sin
        if parameters:
            weight_sum_1 += back_1 * x_1
            weight_sum_2 += back_2 * x_2
        w_1, w_2 = back_1 * weight_1, back_2 * weight_2
        mean = tl.sum(w_1 * x_1 + w_2 * x_2, 2, keep_dims=True) / (2 * half)
        by_1, by_2 = scale * (w_1 - x_1 * mean), scale * (w_2 - x_2 * mean)
        tl.store(by_qk + place, by_1, there)
        tl.store(by_qk + place + half, by_2, there)
        if parameters:
            bias_sum_1 += by_1
            bias_sum_2 += by_2
    if parameters:
        program = tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
        place = (program * 2 + part) * (heads * 2 * half) + place_in_part
        tl.store(by_bias + place, tl.sum(bias_sum_1, 0, keep_dims=True))
        tl.store(by_bias + place + half, tl.sum(bias_sum_2, 0, keep_dims=True))
        tl.store(by_weight + place, tl.sum(weight_sum_1, 0, keep_dims=True))
        tl.store(by_weight + place + half, tl.sum(weight_sum_2, 0, keep_dims=True))


@triton.jit
def _begin(
    bias, weight, rope, tokens, heads: tl.constexpr, half: tl.constexpr, in_tile: tl.constexpr, in_heads: tl.constexpr
):
    """What a program works on, and with.

    Its part (0: queries, 1: keys), tokens, and the first halves of its heads' channels; bias and weight, in halves;
    cosine and sine of the angles.
    """
    tiles = heads // in_heads
    part = tl.program_id(1) // tiles
    token = (tl.program_id(0) * in_tile + tl.arange(0, in_tile))[:, None, None]
    head = ((tl.program_id(1) % tiles) * in_heads + tl.arange(0, in_heads))[None, :, None]
    channel = tl.arange(0, half)[None, None, :]
    place_in_part = head * 2 * half + channel
    bias += part * heads * 2 * half
    bias_1 = tl.load(bias + place_in_part).to(tl.float32)
    bias_2 = tl.load(bias + place_in_part + half).to(tl.float32)
    weight += part * 2 * half
    weight_1 = tl.load(weight + channel).to(tl.float32)
    weight_2 = tl.load(weight + channel + half).to(tl.float32)
    place = token * 2 * half + channel
    cos = tl.load(rope + place, token < tokens, 0.0).to(tl.float32)
    sin = tl.load(rope + tokens * 2 * half + place + half, token < tokens, 0.0).to(tl.float32)  # has its sign here
    return part, token, place_in_part, bias_1, bias_2, weight_1, weight_2, cos, sin


@triton.jit
def _normalised(qk, there, bias_1, bias_2, eps, half: tl.constexpr):
    """qk plus bias over its root mean square, in halves; and the factor that this is."""
    x_1 = tl.load(qk, there, 0.0).to(tl.float32) + bias_1
    x_2 = tl.load(qk + half, there, 0.0).to(tl.float32) + bias_2
    scale = tl.rsqrt(tl.sum(x_1 * x_1 + x_2 * x_2, 2, keep_dims=True) / (2 * half) + eps)
    return x_1 * scale, x_2 * scale, scale


def _launch(qk: Tensor, tile: Tile) -> tuple[tuple[int, int, int], dict[str, int]]:
    """The grid of programs, and the sizes that kernels are compiled for."""
    samples, tokens, parts, heads, channels = qk.shape
    in_heads = next(count for count in (HEADS, 1) if heads % count == 0)
    grid = (triton.cdiv(tokens, tile.tokens), parts * heads // in_heads, triton.cdiv(samples, tile.samples))
    sizes = {"heads": heads, "half": channels // 2, "in_heads": in_heads}
    return grid, sizes | {"in_tile": tile.tokens, "in_samples": tile.samples, "num_warps": WARPS}


@torch.library.custom_op("vsr_lightning::prepare_qk", mutates_args=())
def prepare(qk: Tensor, bias: Tensor, weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, N, heads, k) each, in qk's type: bias, RMS norm times weight, rotation, in float32.

    Args:
        qk: (B, N, 2, heads, k); k a power of 2.
        bias: (2 heads k).
        weight: (2, k), of queries and of keys.
        rope: `rotations` (2, N, k).
        eps: of the RMS norm.
    """
    qk = qk.contiguous()
    q, k = (qk.new_empty(qk.shape[0], qk.shape[1], *qk.shape[3:]) for _ in range(2))
    grid, sizes = _launch(qk, FORWARD)
    _forward[grid](qk, bias, weight, rope, q, k, qk.shape[0], qk.shape[1], eps, **sizes)
    return q, k


@prepare.register_fake
def _(qk: Tensor, bias: Tensor, weight: Tensor, rope: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return qk.new_empty(qk.shape[0], qk.shape[1], *qk.shape[3:]), qk.new_empty(qk.shape[0], qk.shape[1], *qk.shape[3:])


@torch.library.custom_op("vsr_lightning::prepare_qk_backward", mutates_args=())
def backward(
    by_q: Tensor, by_k: Tensor, qk: Tensor, bias: Tensor, weight: Tensor, rope: Tensor, eps: float, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by qk, bias and weight from those by queries and keys.

    Those by bias and weight are each program's own, (programs, 2, heads, k) float32: to be summed over programs, and
    the weight's over heads. Without `parameters` there are none, and no programs.
    """
    by_q, by_k, qk = by_q.contiguous(), by_k.contiguous(), qk.contiguous()
    by_qk = qk.new_empty(qk.shape)
    by_bias, by_weight = (_sums(qk, parameters) for _ in range(2))
    grid, sizes = _launch(qk, BACKWARD_WITH_PARAMETERS if parameters else BACKWARD)
    inputs = (by_q, by_k, qk, bias, weight, rope)
    _backward[grid](*inputs, by_qk, by_bias, by_weight, *qk.shape[:2], eps, **sizes, parameters=parameters)
    return by_qk, by_bias, by_weight


@backward.register_fake
def _(
    by_q: Tensor, by_k: Tensor, qk: Tensor, bias: Tensor, weight: Tensor, rope: Tensor, eps: float, parameters: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return qk.new_empty(qk.shape), _sums(qk, parameters), _sums(qk, parameters)


def _sums(qk: Tensor, parameters: bool) -> Tensor:
    """Where each program leaves a sum over its tokens and samples; for none, without `parameters`."""
    grid, _ = _launch(qk, BACKWARD_WITH_PARAMETERS)
    return qk.new_empty(grid[0] * grid[2] if parameters else 0, *qk.shape[2:], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, by_q: Tensor, by_k: Tensor) -> tuple[Tensor | None, ...]:
    _, bias, weight, _ = ctx.saved_tensors
    parameters = any(ctx.needs_input_grad[1:3])
    by_qk, by_bias, by_weight = backward(by_q, by_k, *ctx.saved_tensors, ctx.eps, parameters)
    if not parameters:
        return by_qk, None, None, None, None
    by_bias, by_weight = by_bias.sum(dim=0).flatten(), by_weight.sum(dim=0).sum(dim=1)
    return by_qk, by_bias.to(bias.dtype), by_weight.to(weight.dtype), None, None


prepare.register_autograd(_differentiate, setup_context=_setup)
