"""The kernels that prepare queries and keys, on a GPU or by Triton's interpreter, against the formula."""

import pytest
import torch

from vsr_lightning.models import fused_qk, video_dit
from vsr_lightning.models.video_dit import Attention, axial_rope, rotations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # by the interpreter: see conftest
EPS = 1e-6
# Tokens and samples that do not fill the last program; heads that no tile of two divides.
SHAPES = [(3, (20,), 3, 8), (17, (7,), 2, 16), (2, (4, 2, 2), 1, 4)]


def inputs(samples, axes, heads, channels, parameters=True):
    generator = torch.Generator(DEVICE).manual_seed(0)
    rope = rotations(axial_rope(axes, channels)).to(DEVICE)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, device=DEVICE)

    qk = draw(samples, rope.shape[1], 2, heads, channels).requires_grad_()
    bias, weight = draw(2 * heads * channels), 1 + 0.3 * draw(2, channels)
    return qk, bias.requires_grad_(parameters), weight.requires_grad_(parameters), rope


def formula(qk, bias, weight, rope):
    return video_dit.prepare(qk + bias.view(qk.shape[2:]), weight, rope, EPS).unbind(2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_are_the_formula(shape):
    qk, bias, weight, rope = inputs(*shape)
    ours, expected = fused_qk.prepare(qk, bias, weight, rope, EPS), formula(qk, bias, weight, rope)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.randn_like(each) for each in expected]
    wanted = (qk, bias, weight)
    torch.testing.assert_close(
        torch.autograd.grad(ours, wanted, gradients), torch.autograd.grad(expected, wanted, gradients)
    )


def test_gradient_by_the_input_alone():
    qk, bias, weight, rope = inputs(*SHAPES[0], parameters=False)
    ours, expected = fused_qk.prepare(qk, bias, weight, rope, EPS), formula(qk, bias, weight, rope)
    gradients = [torch.randn_like(each) for each in expected]
    torch.testing.assert_close(torch.autograd.grad(ours, qk, gradients), torch.autograd.grad(expected, qk, gradients))


def test_bf16_is_rounded_at_the_end():
    qk, bias, weight, rope = inputs(*SHAPES[1])
    ours = fused_qk.prepare(qk.bfloat16(), bias, weight, rope, EPS)
    exact = formula(qk.bfloat16().double(), bias.double(), weight.double(), rope.double())
    for each, double in zip(ours, exact, strict=True):
        assert each.dtype == torch.bfloat16
        torch.testing.assert_close(each, double.bfloat16(), atol=0, rtol=2**-7)  # one place: the interpreter cuts off


@pytest.mark.parametrize("parameters", [True, False])
def test_operators_are_what_compilers_take_them_for(parameters):
    torch.library.opcheck(fused_qk.prepare, (*inputs(*SHAPES[1], parameters), EPS))


def test_attention_is_the_same_with_kernels(monkeypatch):
    torch.manual_seed(0)
    attention = Attention(width=24, heads=3).to(DEVICE)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, mean=0.2)
    x, rope = torch.randn(2, 5, 24, device=DEVICE).requires_grad_(), rotations(axial_rope((5,), 8)).to(DEVICE)
    wanted = (x, *attention.parameters())
    plain = attention(x, rope)
    expected = torch.autograd.grad(plain.square().sum(), wanted)
    monkeypatch.setattr(video_dit, "fuses", lambda x, channels: True)
    ours = attention(x, rope)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(torch.autograd.grad(ours.square().sum(), wanted), expected, rtol=1e-4, atol=1e-4)
