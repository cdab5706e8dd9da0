"""The GPU kernels of DiT and decoder by tile, beside what `torch.compile` makes of their formula: ms, GB/s, the error.

    python tests/bench_kernels.py --batch 80

Each kernel's shipped tile comes first. GB/s are of what must be read and written once. Errors are relative to the
formula in float32, over a few samples. By Triton's interpreter (TRITON_INTERPRET=1, small shapes) it runs without a
GPU, and its times then say nothing.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from bench import describe_run, positive
from torch import Tensor
from torch.nn import functional

from vsr_lightning.errors import UserError
from vsr_lightning.files import write_json, write_table
from vsr_lightning.models import fused_norm, fused_qk, video_dit
from vsr_lightning.models.layers import NormSiLU
from vsr_lightning.models.prior import Prior, load_prior
from vsr_lightning.models.vae import RECOMPUTED

QK_TILES = [fused_qk.Tile(tokens, samples) for tokens, samples in itertools.product((8, 16, 32, 64), (8, 16, 32))]
NORM_TILES = [
    fused_norm.Tile(numbers, warps, stages)
    for (numbers, warps), stages in itertools.product(((2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16)), (1, 3))
]
REPEATS = 20  # on a GPU; a batch of 80 does not fit into its cache
CHECKED = 2  # samples of which the error is taken
COMPILED = "torch.compile"


class Kernel(NamedTuple):
    """One kernel on one input."""

    name: str
    module: ModuleType
    tile: str  # its name in the module
    work: Callable[[], tuple[Tensor, ...]]
    formula: Callable[[], tuple[Tensor, ...]]
    exact: tuple[Tensor, ...]  # of the first samples
    traffic: int  # bytes


def qk_kernels(prior: Prior, batch: int, device: torch.device) -> Iterator[Kernel]:
    """Those that a prior's DiT, which is on the CPU, needs for so many videos."""
    yield from kernels_of_qk(batch, prior.dit.rope.to(device), prior.dit.blocks[0].attention.heads, device)


def norm_kernels(prior: Prior, batch: int, device: torch.device) -> Iterator[Kernel]:
    """Those that a prior's decoder, which is on the CPU, needs for so many videos."""
    for norm, shape in norms(prior):
        yield from kernels_of_norm(norm, (batch * prior.latent_shape[0], *shape), device)


def norms(prior: Prior) -> list[tuple[NormSiLU, tuple[int, ...]]]:
    """One of the decoder's norms for each shape (C, H, W) that they have."""
    found: dict[tuple[int, ...], NormSiLU] = {}

    def note(norm: NormSiLU, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.setdefault(tuple(output.shape[1:]), norm)

    layers = [layer for layer in prior.vae.decoder.modules() if isinstance(layer, NormSiLU)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        prior.vae.decoder(torch.zeros(1, *prior.latent_shape[1:]))
    for hook in hooks:
        hook.remove()
    return [(norm, shape) for shape, norm in found.items()]


def kernels_of_norm(norm: NormSiLU, shape: tuple[int, ...], device: torch.device) -> Iterator[Kernel]:
    """Those of `fused_norm` for a norm of random weights, in bf16 on a GPU, for images (N, C, H, W)."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    channels = shape[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    x, gradient = (draw(*shape).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    before, weight, bias = draw(channels), 1 + 0.3 * draw(channels), draw(channels)
    layer = NormSiLU(norm.num_groups, channels, norm.eps).to(device).requires_grad_(False)
    layer.load_state_dict({"weight": weight, "bias": bias})

    def formula(x: Tensor) -> Tensor:  # as in a decoder without kernels
        return functional.silu(layer._normalise(x + before.to(x.dtype)[:, None, None]))

    few = x[:CHECKED].float().requires_grad_()
    exact = layer(few, before)
    (by_few,) = torch.autograd.grad(exact, few, gradient[:CHECKED].float())
    compiled = torch.compile(formula, dynamic=False, options=RECOMPUTED, disable=device.type == "cpu")
    name = f"norm {channels} x {shape[2]} x {shape[3]}"
    arguments = (x, before, weight, bias, norm.num_groups, norm.eps)
    _, statistics = fused_norm.group_norm_silu(*arguments)
    yield Kernel(
        f"{name}, forward",
        fused_norm,
        "FORWARD",
        lambda: fused_norm.group_norm_silu(*arguments)[:1],
        lambda: (compiled(x),),
        (exact.detach(),),
        2 * x.nbytes,
    )
    leaf = x.detach().requires_grad_()
    out = compiled(leaf)
    yield Kernel(
        f"{name}, backward",
        fused_norm,
        "BACKWARD",
        lambda: (fused_norm.backward(gradient, x, weight, bias, statistics, norm.num_groups),),
        lambda: torch.autograd.grad(out, leaf, gradient, retain_graph=True),
        (by_few,),
        3 * x.nbytes,
    )


def kernels_of_qk(batch: int, rope: Tensor, heads: int, device: torch.device) -> Iterator[Kernel]:
    """Those of `fused_qk`, in bf16 on a GPU; rope: `rotations` (2, N, k)."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens, channels = rope.shape[1:]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    qk, bias = draw(batch, tokens, 2, heads, channels).to(dtype), draw(2 * heads * channels)
    weight = 1 + 0.3 * draw(2, channels)
    gradient = draw(*qk.shape).to(dtype)
    by_q, by_k = gradient.unbind(2)
    by_q, by_k = by_q.contiguous(), by_k.contiguous()

    def formula(qk: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        return video_dit.prepare(qk + bias.view(2, heads, channels), weight, rope, video_dit.EPS).to(qk.dtype)

    few = qk[:CHECKED].float().requires_grad_()
    exact = formula(few, bias, weight)
    (by_few,) = torch.autograd.grad(exact, few, gradient[:CHECKED].float())
    compiled = torch.compile(formula, dynamic=False, disable=device.type == "cpu")
    yield Kernel(
        "qk, forward",
        fused_qk,
        "FORWARD",
        partial(fused_qk.prepare, qk, bias, weight, rope, video_dit.EPS),
        lambda: compiled(qk, bias, weight).unbind(2),
        exact.detach().unbind(2),
        2 * qk.nbytes,
    )
    for parameters in (False, True):
        inputs = [qk.detach().requires_grad_(), *(each.detach().requires_grad_(parameters) for each in (bias, weight))]
        arguments = (by_q, by_k, qk, bias, weight, rope, video_dit.EPS, parameters)
        wanted = inputs[: 3 if parameters else 1]
        yield Kernel(
            "qk, backward, parameters too" if parameters else "qk, backward",
            fused_qk,
            "BACKWARD_WITH_PARAMETERS" if parameters else "BACKWARD",
            partial(fused_qk.backward, *arguments),
            partial(torch.autograd.grad, compiled(*inputs), wanted, gradient, retain_graph=True),
            (by_few,),
            3 * qk.nbytes,
        )


def measure(kernel: Kernel, tiles: Sequence[NamedTuple]) -> Iterator[dict[str, Any]]:
    """A row for the compiled formula, then one for every tile, the shipped one first."""
    shipped = getattr(kernel.module, kernel.tile)
    yield {"kernel": kernel.name, "tile": COMPILED, **timed(kernel.formula, kernel)}
    for tile in dict.fromkeys((shipped, *tiles)):
        with mock.patch.object(kernel.module, kernel.tile, tile):
            yield {"kernel": kernel.name, "tile": words(tile), **timed(kernel.work, kernel)}


def words(tile: NamedTuple) -> str:
    return ", ".join(f"{value} {name}" for name, value in tile._asdict().items())


def timed(work: Callable[[], tuple[Tensor, ...]], kernel: Kernel) -> dict[str, float]:
    ms = milliseconds(work, kernel.exact[0].device)
    errors = [relative_error(a[:CHECKED], b) for a, b in zip(work(), kernel.exact, strict=False)]
    return {"ms": ms, "gb_per_second": kernel.traffic / ms / 1e6, "error": max(errors)}


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Mean time of a call; on a GPU that of its kernels alone, which are shorter than it takes to launch them."""
    if device.type == "cuda":
        work()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            for _ in range(REPEATS):
                work()
            torch.cuda.synchronize(device)
        return sum(event.self_device_time_total for event in profiler.key_averages()) / REPEATS / 1e3
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def relative_error(found: Tensor, exact: Tensor) -> float:
    return ((found.float() - exact).norm() / exact.norm()).item()


KERNELS = {"qk": (qk_kernels, QK_TILES), "norm": (norm_kernels, NORM_TILES)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="data/checkpoints/moving_mnist", help="whose shapes are taken")
    parser.add_argument("--batch", type=positive, default=80, help="videos (%(default)s)")
    parser.add_argument("--only", choices=KERNELS, help="queries and keys, or norms")
    parser.add_argument("--output", type=Path, default=Path("runs/bench_kernels"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not triton.knobs.runtime.interpret:
        parser.error("a GPU is needed, or TRITON_INTERPRET=1 with a small --prior and --batch")
    try:
        prior = load_prior(options.prior)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    rows = []
    for make, tiles in (KERNELS[name] for name in ([options.only] if options.only else KERNELS)):
        for kernel in make(prior, options.batch, device):
            for row in measure(kernel, tiles):
                rows.append(row)
                print(line(row), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    write_table(options.output / "kernels.csv", list(rows[0]), rows)
    write_json(options.output / "machine.json", describe_run())
    print(options.output / "kernels.csv")


def line(row: dict[str, Any]) -> str:
    numbers = f"{row['ms']:8.4f} ms, {row['gb_per_second']:6.0f} GB/s, error {row['error']:.5f}"
    return f"{row['kernel']:28} {row['tile']:42}: {numbers}"


if __name__ == "__main__":
    main()
