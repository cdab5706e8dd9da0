"""The kernels of group normalisation and SiLU, on a GPU or by Triton's interpreter, against PyTorch's."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

pytest.importorskip("triton")  # torch for CUDA brings it, CI installs it

import bench_kernels

from vsr_lightning.models import fused_norm, layers
from vsr_lightning.models.layers import NormSiLU
from vsr_lightning.models.prior import load_prior
from vsr_lightning.models.vae import Decoder, Encoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # by the interpreter: see conftest
EPS = 0.1  # as large as to be seen
# Images, channels, height, width, groups: channels that are no power of 2, pixels that fill no last tile, one pixel.
SHAPES = [(2, 16, 4, 4, 8), (3, 24, 5, 3, 4), (2, 112, 3, 2, 8), (2, 10, 4, 5, 1), (3, 8, 1, 1, 4)]
SHIPPED = fused_norm.FORWARD, fused_norm.BACKWARD


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """An image is many tiles."""
    use_tiles(monkeypatch, [fused_norm.Tile(numbers=64, warps=1, stages=2)] * 2)


def use_tiles(monkeypatch, tiles):
    for name, tile in zip(("FORWARD", "BACKWARD"), tiles, strict=True):
        monkeypatch.setattr(fused_norm, name, tile)


def inputs(images, channels, height, width, mean=0.0, kind=torch.float32):
    generator = torch.Generator(DEVICE).manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE)

    x = (mean + draw(images, channels, height, width)).to(kind, memory_format=torch.channels_last).requires_grad_()
    return x, *(draw(channels) for _ in range(3))


def formula(x, before, weight, bias, groups):
    x = x if before is None else x + before[:, None, None]
    return functional.silu(functional.group_norm(x, groups, weight, bias, EPS))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_are_the_formula(shape, biased):
    *sizes, groups = shape
    x, before, weight, bias = inputs(*sizes)
    before = before if biased else None
    ours, _ = fused_norm.group_norm_silu(x, before, weight, bias, groups, EPS)
    expected = formula(x, before, weight, bias, groups)
    torch.testing.assert_close(ours, expected)
    gradient = torch.randn_like(ours)
    found, known = (torch.autograd.grad(each, x, gradient)[0] for each in (ours, expected))
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)


def test_kernels_are_the_formula_with_the_tiles_that_they_have(monkeypatch):
    use_tiles(monkeypatch, SHIPPED)
    test_kernels_are_the_formula((2, 24, 5, 3, 4), biased=True)


def test_a_mean_far_from_zero_leaves_the_variance_exact():
    """Of squares, float32 would keep nothing: they are 10^8 times the variance."""
    x, before, weight, bias = inputs(2, 16, 4, 4, mean=1e4)
    ours, _ = fused_norm.group_norm_silu(x, before, weight, bias, 8, EPS)
    expected = formula(*(each.double() for each in (x, before, weight, bias)), 8)
    # Not nearer, as the result is x scale + shift, two numbers of 10^4 that cancel.
    torch.testing.assert_close(ours.double(), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:.*encountered")  # by the interpreter
@pytest.mark.parametrize("place", [(0, 0), (2, 1)], ids=["first pixel", "another"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_what_is_not_finite_is_not_finite_in_its_group_and_nowhere_else(value, place):
    x, before, weight, bias = inputs(2, 16, 4, 4)
    expected, _ = fused_norm.group_norm_silu(x, before, weight, bias, 8, EPS)
    with torch.no_grad():
        x[1, 5, *place] = value
    ours, _ = fused_norm.group_norm_silu(x, before, weight, bias, 8, EPS)
    assert ours[1, 4:6].isnan().all()
    assert torch.equal(ours[0], expected[0])
    assert torch.equal(ours[1, 6:], expected[1, 6:])


@pytest.mark.filterwarnings("ignore:.*encountered")
def test_a_constant_image_and_large_numbers_have_finite_gradients():
    x, before, weight, bias = inputs(2, 16, 4, 4)
    for image, gain in ((torch.zeros_like(x), 1.0), (x.detach(), 1e4), (x.detach(), -1e4)):
        leaf = image.requires_grad_()
        ours, _ = fused_norm.group_norm_silu(leaf, before, gain * weight, bias, 8, EPS)
        expected = formula(leaf, before, gain * weight, bias, 8)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
        found, known = (torch.autograd.grad(each.sum(), leaf)[0] for each in (ours, expected))
        torch.testing.assert_close(found, known, rtol=1e-4, atol=1e-3 * max(1, known.abs().max().item()))
        leaf.requires_grad_(False)


def test_bf16_is_rounded_at_the_end():
    """To one place, as the interpreter cuts off."""
    x, before, weight, bias = inputs(2, 16, 4, 4, kind=torch.bfloat16)
    ours, _ = fused_norm.group_norm_silu(x, before, weight, bias, 8, EPS)
    exact = x.detach().double().requires_grad_()
    expected = formula(exact, before.double(), weight.double(), bias.double(), 8)
    gradient = torch.randn_like(ours)
    (found,), (known,) = torch.autograd.grad(ours, x, gradient), torch.autograd.grad(expected, exact, gradient.double())
    for each, double in ((ours, expected), (found, known)):
        assert each.dtype == torch.bfloat16
        torch.testing.assert_close(each.double(), double, atol=1e-5, rtol=2**-7)


def test_strides_do_not_matter_and_channels_are_last_in_what_is_made():
    x, before, weight, bias = inputs(2, 16, 4, 3)
    turned = x.detach().contiguous().requires_grad_()
    assert not turned.is_contiguous(memory_format=torch.channels_last)
    outs = [fused_norm.group_norm_silu(each, before, weight, bias, 8, EPS)[0] for each in (x, turned)]
    gradient = torch.randn(2, 16, 4, 3, device=DEVICE)
    gradients = [torch.autograd.grad(out, each, gradient)[0] for out, each in zip(outs, (x, turned), strict=True)]
    for first, second in (outs, gradients):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert outs[1].is_contiguous(memory_format=torch.channels_last)


def test_strides_of_vectors_do_not_matter():
    x, before, weight, bias = inputs(2, 16, 4, 3)
    expected, _ = fused_norm.group_norm_silu(x, before, weight, bias, 8, EPS)
    spread = (torch.stack((each, -each), dim=1)[:, 0] for each in (before, weight, bias))
    found, _ = fused_norm.group_norm_silu(x, *spread, 8, EPS)
    gradients = [torch.autograd.grad(each.sum(), x)[0] for each in (found, expected)]
    for first, second in ((found, expected), gradients):
        torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("traced", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_operators_are_what_compilers_take_them_for(kind, traced):
    x, before, weight, bias = inputs(2, 16, 4, 3, kind=kind)
    x = x.detach().contiguous(memory_format=traced).requires_grad_()
    torch.library.opcheck(fused_norm.group_norm_silu, (x, before, weight, bias, 8, EPS))
    _, statistics = fused_norm.group_norm_silu(x, None, weight, bias, 8, EPS)
    torch.library.opcheck(fused_norm.backward, (torch.randn_like(x), x.detach(), weight, bias, statistics, 8))


def test_what_kernels_cannot_do_is_an_error():
    x, before, weight, bias = inputs(2, 12, 2, 2)
    for groups in (3, 8):
        with pytest.raises(ValueError, match=f"groups: {groups} is not a power of 2 that divides 12 channels"):
            fused_norm.group_norm_silu(x, before, weight, bias, groups, EPS)
    with pytest.raises(ValueError, match="are not 12 numbers each"):
        fused_norm.group_norm_silu(x, before[:4], weight, bias, 4, EPS)
    y, _ = fused_norm.group_norm_silu(x, before, weight.requires_grad_(), bias, 4, EPS)
    with pytest.raises(RuntimeError, match="by x alone"):
        y.sum().backward()


@pytest.mark.parametrize(("half", "shape"), [(Decoder, (2, 4, 2, 2)), (Encoder, (2, 1, 16, 16))])
def test_a_frozen_half_of_a_vae_compiles_with_kernels(half, shape, monkeypatch):
    torch.manual_seed(0)
    network = half(1, 4, [8, 16, 24], [1, 1, 1]).to(DEVICE).requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    z = torch.randn(shape, device=DEVICE).requires_grad_()
    plain = network(z)
    (expected,) = torch.autograd.grad(plain.square().sum(), z)
    monkeypatch.setattr(layers, "compiles_for_gpu", lambda x: torch.compiler.is_compiling())
    launched, sizes = [], fused_norm._sizes
    monkeypatch.setattr(fused_norm, "_sizes", lambda *arguments: launched.append(1) or sizes(*arguments))
    ours = torch.compile(network, backend="aot_eager", fullgraph=True)(z)
    (found,) = torch.autograd.grad(ours.square().sum(), z)
    norms = sum(isinstance(layer, NormSiLU) for layer in network.modules())
    assert len(launched) == 2 * norms  # forward and back
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * expected.abs().max().item())


def test_kernels_are_for_frozen_norms_compiled_for_a_gpu(monkeypatch):
    on_gpu, on_cpu, before = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False), torch.zeros(8)
    frozen = NormSiLU(8, 8).requires_grad_(False)
    assert not frozen._fuses(on_gpu, before)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert frozen._fuses(on_gpu, before)
    assert frozen._fuses(on_gpu, None)
    assert not frozen._fuses(on_cpu, before)
    assert not frozen._fuses(on_gpu, before.clone().requires_grad_())
    assert not NormSiLU(8, 8)._fuses(on_gpu, before)
    assert not NormSiLU(3, 6).requires_grad_(False)._fuses(on_gpu, None)
    monkeypatch.setattr(layers, "HAS_TRITON", False)
    assert not frozen._fuses(on_gpu, before)


def test_their_benchmark_has_both_for_every_shape_by_tile_beside_the_formula(tiny_prior):
    prior = load_prior(tiny_prior)
    assert [shape for _, shape in bench_kernels.norms(prior)] == [(8, 8, 8), (8, 16, 16), (8, 32, 32)]
    norm = NormSiLU(8, 8)
    tile = fused_norm.Tile(32, 2, 1)
    rows = []
    for kernel in bench_kernels.kernels_of_norm(norm, (2, 8, 3, 3), torch.device(DEVICE)):
        rows += bench_kernels.measure(kernel, [tile])
    tiles = [bench_kernels.COMPILED, bench_kernels.words(fused_norm.FORWARD), "32 numbers, 2 warps, 1 stages"]
    names = ["norm 8 x 3 x 3, forward", "norm 8 x 3 x 3, backward"]
    assert [(row["kernel"], row["tile"]) for row in rows] == [(name, tile) for name in names for tile in tiles]
    assert all(row["ms"] > 0 and row["error"] < (0.01 if DEVICE == "cuda" else 1e-5) for row in rows)
