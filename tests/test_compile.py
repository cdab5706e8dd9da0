"""Compiled networks restore what plain ones do (float32, on a CPU; needs a C++ compiler, as torch.compile does)."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.inference.dps import Observation, dps_sample
from vsr_lightning.inference.noise import SamplerNoise
from vsr_lightning.metrics import psnr
from vsr_lightning.models.layers import Conv2d, Linear, NormSiLU, PixelShuffle, SubpixelConv2d
from vsr_lightning.models.prior import load_prior
from vsr_lightning.models.video_dit import Attention


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("mean", "spread", "tolerance"), [(0.5, 1.0, 1e-4), (1000.0, 0.1, 5e-3), (123.456, 0.0, 1e-4)])
def test_compiled_group_norm_is_pytorchs(mean, spread, tolerance, with_bias):
    """Values and all gradients, even with a mean that is large beside the spread, against float64."""
    torch.manual_seed(0)
    x = (mean + spread * torch.randn(3, 16, 5, 7)).to(memory_format=torch.channels_last)
    before = [torch.randn(16)] if with_bias else []
    ours, reference = NormSiLU(4, 16), nn.GroupNorm(4, 16)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    ours.load_state_dict(reference.state_dict())

    def pytorchs(x: torch.Tensor, *before: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(reference(x + before[0][:, None, None] if before else x))

    assert torch.equal(ours(x, *before), pytorchs(x, *before))  # not compiled: the same kernels

    def results(norm: Callable, parameters: nn.Module, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (x, *before)]
        parameters.to(dtype)
        out = norm(*leaves)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), [*leaves, *parameters.parameters()])]

    try:
        ours.compile(dynamic=False)
        compiled = results(ours, ours)
    finally:
        torch.compiler.reset()
    plain = results(pytorchs, reference)
    for found, expected in zip(compiled, results(pytorchs, reference, torch.float64), strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm() + 1e-6
    assert spread == 0 or not torch.equal(compiled[0], plain[0])  # another way


@pytest.mark.parametrize("bias", [True, False])
def test_shuffled_pixels_are_where_they_belong(bias):
    network = nn.Sequential(SubpixelConv2d(8, 12, 1, bias=bias), PixelShuffle())
    x = torch.randn(2, 8, 4, 6)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x))


def values_and_gradients(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    return [out, *torch.autograd.grad(out.sin().sum(), [leaf, *module.parameters()])]


@pytest.mark.parametrize(
    ("ours", "pytorchs", "sizes", "shape"),
    [
        (Conv2d, nn.Conv2d, {"stride": 1, "bias": True}, (2, 5, 6, 8)),
        (Conv2d, nn.Conv2d, {"stride": 2, "bias": False}, (2, 5, 6, 8)),
        (Linear, nn.Linear, {}, (2, 4, 6, 5)),
        (Linear, nn.Linear, {}, (2, 5)),
    ],
)
def test_a_bias_added_apart_is_pytorchs(ours, pytorchs, sizes, shape):
    """Values and all gradients; it is apart only when compiled."""
    arguments = (5, 3, 3) if ours is Conv2d else (5, 3)
    reference, network = pytorchs(*arguments, **sizes), ours(*arguments, **sizes)
    network.load_state_dict(reference.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), reference(x))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    for found, expected in zip(values_and_gradients(compiled, x), values_and_gradients(reference, x), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("trained", [True, False])
def test_a_bias_of_values_that_goes_around_attention_is_the_same(trained):
    """Values and all gradients; it goes around only when compiled for training."""
    torch.manual_seed(0)
    attention = Attention(width=24, heads=3)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    x = torch.randn(2, 5, 24)
    expected = values_and_gradients(attention, x)
    attention.requires_grad_(trained)
    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    if trained:
        found = values_and_gradients(compiled, x)
        assert not torch.equal(found[0], expected[0])  # another order of sums
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(compiled(x), expected[0])


def test_compiled_and_plain_agree(tiny_prior):
    prior = load_prior(tiny_prior)
    x = MovingMNIST(digits="embedded", batch_size=1).validation_clips(2)
    operator = Downsample(factor=8).operator([2.0, 2.0], 64, 64)
    observation = Observation(operator(x), operator, torch.zeros(2))

    def restore() -> torch.Tensor:
        noise = SamplerNoise([(0, 0, 0), (0, 1, 0)], prior.latent_shape)
        return dps_sample(prior, observation, noise, steps=8, zeta=1.0)

    plain = restore()
    try:
        prior.compile_for_sampling()
        counters.clear()
        compiled = restore()
        assert counters["stats"]["unique_graphs"] == 2  # each network once: the first draw has the shape of all others
    finally:
        torch.compiler.reset()
    assert (psnr(compiled, x) - psnr(plain, x)).abs().max() < 0.05
    assert (compiled - plain).abs().max() < 1e-3
    assert not torch.equal(compiled, plain)  # other kernels: else nothing was compiled
