"""The kernels that prepare queries and keys, on a GPU or by Triton's interpreter, against the formula."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")  # torch for CUDA brings it, CI installs it

import bench_kernels

from vsr_lightning.models import fused_qk, layers, video_dit
from vsr_lightning.models.video_dit import Attention, VideoDiT, axial_rope, fuses, rotations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # by the interpreter: see conftest
EPS = 0.1  # as large as to be seen
# Tokens and samples that do not fill the last of several programs; heads that no tile of two divides, and several do.
SHAPES = [(3, (10,), 3, 8), (3, (2, 2, 3), 4, 4), (5, (7,), 2, 16), (2, (3,), 1, 2)]
SHIPPED = fused_qk.FORWARD, fused_qk.BACKWARD, fused_qk.BACKWARD_WITH_PARAMETERS


def use_tiles(monkeypatch, tiles):
    for name, tile in zip(("FORWARD", "BACKWARD", "BACKWARD_WITH_PARAMETERS"), tiles, strict=True):
        monkeypatch.setattr(fused_qk, name, tile)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """The interpreter takes its time for each token and sample."""
    use_tiles(monkeypatch, [fused_qk.Tile(tokens, samples=2) for tokens in (8, 4, 4)])


def inputs(samples, axes, heads, channels, trained=("bias", "weight")):
    generator = torch.Generator(DEVICE).manual_seed(0)
    rope = rotations(axial_rope(axes, channels)).to(DEVICE)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE)

    qk = draw(samples, rope.shape[1], 2, heads, channels).requires_grad_()
    bias = draw(2 * heads * channels).requires_grad_("bias" in trained)
    weight = (1 + 0.3 * draw(2, channels)).requires_grad_("weight" in trained)
    return qk, bias, weight, rope


def formula(qk, bias, weight, rope):
    return video_dit.prepare(qk + bias.view(qk.shape[2:]), weight, rope, EPS).unbind(2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_are_the_formula(shape):
    qk, bias, weight, rope = inputs(*shape)
    ours, expected = fused_qk.prepare(qk, bias, weight, rope, EPS), formula(qk, bias, weight, rope)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.randn_like(each) for each in expected]
    wanted = (qk, bias, weight)
    found, known = (torch.autograd.grad(each, wanted, gradients) for each in (ours, expected))
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-4)


def test_kernels_are_the_formula_with_the_tiles_that_they_have(monkeypatch):
    use_tiles(monkeypatch, SHIPPED)
    test_kernels_are_the_formula((2, (7,), 2, 4))


@pytest.mark.parametrize("trained", [(), ("bias",), ("weight",)])
def test_gradients_by_some_of_the_inputs(trained, monkeypatch):
    """Of a frozen network, as in sampling, no sums are made that nobody asks for."""
    asked, backward = [], fused_qk.backward
    monkeypatch.setattr(fused_qk, "backward", lambda *arguments: asked.append(arguments[-1]) or backward(*arguments))
    qk, bias, weight, rope = inputs(*SHAPES[0], trained)
    ours, expected = fused_qk.prepare(qk, bias, weight, rope, EPS), formula(qk, bias, weight, rope)
    gradients = [torch.randn_like(each) for each in expected]
    wanted = [each for each in (qk, bias, weight) if each.requires_grad]
    found, known = (torch.autograd.grad(each, wanted, gradients) for each in (ours, expected))
    torch.testing.assert_close(found, known)
    assert asked == [bool(trained)]


@pytest.mark.parametrize("half_parameters", [False, True])
def test_bf16_is_rounded_at_the_end(half_parameters):
    """Queries, keys and their gradient to one place, as the interpreter cuts off; sums of many of them are float32."""
    qk, bias, weight, rope = (each.detach() for each in inputs(*SHAPES[1]))
    given = [qk.bfloat16(), *((each.bfloat16() if half_parameters else each) for each in (bias, weight))]
    leaves, exact = ([each.to(kind).requires_grad_() for each in given] for kind in (None, torch.double))
    ours, expected = fused_qk.prepare(*leaves, rope, EPS), formula(*exact, rope.double())
    gradients = [torch.randn_like(each).bfloat16() for each in expected]
    found = torch.autograd.grad(ours, leaves, gradients)
    known = torch.autograd.grad(expected, exact, [each.double() for each in gradients])
    for each, double in zip((*ours, found[0]), (*expected, known[0]), strict=True):
        assert each.dtype == torch.bfloat16
        torch.testing.assert_close(each.double(), double, atol=1e-5, rtol=2**-7)
    for each, double, leaf in zip(found[1:], known[1:], leaves[1:], strict=True):
        assert each.dtype == leaf.dtype
        torch.testing.assert_close(each.double(), double, atol=1e-4, rtol=2**-7 if half_parameters else 1e-4)


def test_strides_do_not_matter():
    qk, bias, weight, rope = inputs(*SHAPES[0])
    turned = qk.transpose(0, 1).contiguous().transpose(0, 1)
    assert not turned.is_contiguous()
    expected = fused_qk.prepare(qk, bias, weight, rope, EPS)
    torch.testing.assert_close(fused_qk.prepare(turned, bias, weight, rope, EPS), expected, rtol=0, atol=0)


@pytest.mark.parametrize("trained", [(), ("bias", "weight")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_operators_are_what_compilers_take_them_for(kind, trained):
    qk, bias, weight, rope = inputs(*SHAPES[1], trained)
    qk = qk.detach().to(kind).requires_grad_()
    torch.library.opcheck(fused_qk.prepare, (qk, bias, weight, rope, EPS))
    by_q, by_k = (torch.randn_like(qk[:, :, part]) for part in (0, 1))
    detached = [each.detach() for each in (by_q, by_k, qk, bias, weight, rope)]
    torch.library.opcheck(fused_qk.backward, (*detached, EPS, bool(trained)))


def test_attention_is_the_same_with_kernels(monkeypatch):
    torch.manual_seed(0)
    attention = Attention(width=24, heads=3).to(DEVICE)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, mean=0.2)
    x, rope = torch.randn(2, 5, 24, device=DEVICE).requires_grad_(), rotations(axial_rope((5,), 8)).to(DEVICE)
    wanted = (x, *attention.parameters())
    plain = attention(x, rope)
    expected = torch.autograd.grad(plain.square().sum(), wanted)
    unrotated = attention(x)
    monkeypatch.setattr(video_dit, "fuses", lambda x, channels: True)
    ours = attention(x, rope)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), wanted), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(attention(x), unrotated)  # for which there is no kernel


@pytest.mark.parametrize("kind", ["full", "factorized"])
def test_a_dit_compiles_with_kernels(kind, monkeypatch):
    torch.manual_seed(0)
    dit = VideoDiT(num_frames=3, latent_size=2, width=32, depth=2, heads=2, attention=kind).to(DEVICE)
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    z, t = torch.randn(2, *dit.latent_shape, device=DEVICE), torch.tensor([3, 700], device=DEVICE)
    expected = torch.autograd.grad(dit(z, t).square().sum(), [*dit.parameters()])
    monkeypatch.setattr(video_dit, "fuses", lambda x, channels: True)
    launched, launch = [], fused_qk._launch
    monkeypatch.setattr(fused_qk, "_launch", lambda *arguments: launched.append(1) or launch(*arguments))
    compiled = torch.compile(dit, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(z, t).square().sum(), [*dit.parameters()])
    assert launched
    for ours, plain in zip(found, expected, strict=True):
        assert (ours - plain).norm() <= 1e-4 * plain.norm()


@pytest.mark.parametrize(("channels", "fits"), [(8, True), (64, True), (24, False), (48, False)])
def test_kernels_are_for_powers_of_two_compiled_for_a_gpu(channels, fits, monkeypatch):
    on_gpu, on_cpu = SimpleNamespace(is_cuda=True), SimpleNamespace(is_cuda=False)
    assert not fuses(on_gpu, channels)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fuses(on_gpu, channels) == fits
    assert not fuses(on_cpu, channels)
    monkeypatch.setattr(layers, "HAS_TRITON", False)
    assert not fuses(on_gpu, channels)


def test_their_benchmark_has_every_kernel_by_tile_beside_the_formula():
    rope = rotations(axial_rope((5,), 4)).to(DEVICE)
    kernels = list(bench_kernels.kernels_of_qk(3, rope, 2, torch.device(DEVICE)))
    rows = [row for kernel in kernels for row in bench_kernels.measure(kernel, [fused_qk.Tile(2, samples=1)])]
    names = ["qk, forward", "qk, backward", "qk, backward, parameters too"]
    shipped = dict(zip(names, (8, 4, 4), strict=True))
    tiles = {name: ["torch.compile", f"{shipped[name]} tokens, 2 samples", "2 tokens, 1 samples"] for name in names}
    assert [(row["kernel"], row["tile"]) for row in rows] == [(name, tile) for name in names for tile in tiles[name]]
    assert all(row["ms"] > 0 and row["error"] < (0.01 if DEVICE == "cuda" else 1e-5) for row in rows)
    (exact, *_), *_ = (kernel.exact for kernel in kernels)
    assert bench_kernels.relative_error(1.5 * exact, exact) == pytest.approx(0.5)
