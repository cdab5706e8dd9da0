"""The video DiT: where information flows, what its zero start means, and its embeddings value by value."""

import math

import pytest
import torch

from vsr_lightning.errors import UserError
from vsr_lightning.models.vae import VAE
from vsr_lightning.models.video_dit import (
    EPS,
    ROPE_BASE,
    Attention,
    VideoDiT,
    attend,
    axial_rope,
    prepare,
    rotate,
    rotations,
    sincos_2d,
    timestep_embedding,
)

FRAMES, CHANNELS, SIZE = 10, 2, 3
KINDS = ["full", "factorized"]


def make(attention: str, prediction: str = "v", *, trained: bool = True) -> VideoDiT:
    """A tiny network; `trained` moves every weight away from its zero start."""
    torch.manual_seed(0)
    dit = VideoDiT(CHANNELS, FRAMES, SIZE, width=32, depth=2, heads=2, attention=attention, prediction=prediction)
    if trained:
        for name, parameter in dit.named_parameters():
            if not name.endswith(("q_norm.weight", "k_norm.weight")):  # those start at one
                torch.nn.init.normal_(parameter, std=0.2)
    return dit.requires_grad_(False)


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, FRAMES, CHANNELS, SIZE, SIZE, generator=generator), torch.arange(batch) * 300 + 5


@pytest.mark.parametrize("attention", KINDS)
def test_autocast_changes_little(attention):
    dit = make(attention)
    z, t = inputs()
    expected = dit(z, t)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = dit(z, t)
    assert prediction.dtype == torch.float32
    assert (prediction - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(prediction, expected)


def test_norms_of_queries_and_keys_spare_small_ones():
    """By 1e-6, as the shipped priors were trained: numbers of 1e-3 are divided by the root of twice that."""
    qk = torch.full((1, 1, 2, 1, 4), 1e-3)
    torch.testing.assert_close(prepare(qk, torch.ones(2, 4), None, EPS), torch.full_like(qk, 0.5**0.5))


def test_attention_written_out_in_bf16_is_as_near_as_bf16_is():
    """To PyTorch's in float32; and its gradients."""
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, 40, 16) for _ in range(3)]

    def values_and_gradients(attention, dtype: torch.dtype) -> list[torch.Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in qkv]
        out = attention(*leaves)
        return [out, *torch.autograd.grad(out.float().square().sum(), leaves)]

    expected = values_and_gradients(torch.nn.functional.scaled_dot_product_attention, torch.float32)
    for found, wanted in zip(values_and_gradients(attend, torch.bfloat16), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found - wanted).norm() < 0.02 * wanted.norm()
    for found, wanted in zip(values_and_gradients(attend, torch.float32), expected, strict=True):
        assert torch.equal(found, wanted)


def influence(dit: VideoDiT) -> torch.Tensor:
    """(output frame, input frame): the largest change of one when the other changes."""
    z, t = inputs(1)
    rows = []
    for frame in range(FRAMES):
        other = z.clone()
        other[:, frame] += 1
        rows.append((dit(other, t) - dit(z, t))[0].flatten(1).abs().amax(1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("attention", KINDS)
def test_shapes(attention, prediction):
    dit = make(attention, prediction)
    z, t = inputs()
    out = dit(z, t)
    assert dit.latent_shape == z.shape[1:]
    assert out.shape == z.shape
    assert out.dtype == torch.float32
    assert out.std() > 0.01


@pytest.mark.parametrize("attention", KINDS)
def test_starts_as_the_identity_and_predicts_zero(attention):
    dit = make(attention, trained=False)
    z, t = inputs()
    seen = []
    for block in dit.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    assert dit(z, t).abs().max() == 0
    assert len(seen) == 2
    for before, after in seen:
        assert before.std() > 0.1
        assert torch.equal(before, after)


@pytest.mark.parametrize("attention", KINDS)
def test_every_frame_sees_every_other(attention):
    assert influence(make(attention)).min() > 1e-4


def test_factorized_frames_meet_in_time_attention_alone():
    dit = make("factorized")
    for block in dit.blocks:
        block.time_attention.out.weight.zero_()
    across = influence(dit)
    assert across.diagonal().min() > 1e-3
    assert (across - across.diagonal().diag()).abs().max() == 0


@pytest.mark.parametrize("attention", KINDS)
def test_every_cell_sees_every_other(attention):
    dit = make(attention)
    z, t = inputs(1)
    other = z.clone()
    other[0, 0, :, 0, 0] += 1
    assert (dit(other, t) - dit(z, t)).abs().amax(dim=(0, 2)).min() > 1e-5


@pytest.mark.parametrize("attention", KINDS)
def test_order_of_frames_matters(attention):
    """Rotary positions are the only thing that tells frames apart."""
    dit = make(attention)
    z, t = inputs(1)
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))
    assert (dit(z[:, order], t) - dit(z, t)[:, order]).abs().max() > 1e-3
    dit.rope.copy_(rotations(torch.zeros(dit.rope.shape[1], dit.rope.shape[2] // 2)))
    if attention == "factorized":  # in full attention they tell cells apart too, so only here is it exact
        torch.testing.assert_close(dit(z[:, order], t), dit(z, t)[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", KINDS)
def test_samples_do_not_interact(attention):
    dit = make(attention)
    z, t = inputs(3)
    together = dit(z, t)
    for b in range(3):
        torch.testing.assert_close(dit(z[b : b + 1], t[b : b + 1]), together[b : b + 1], atol=1e-5, rtol=0)
    assert (dit(z, t.flip(0)) - together)[0].abs().max() > 1e-3  # and t is each sample's own


@pytest.mark.parametrize("turned", [True, False])
def test_attention_is_that_of_its_projection_norms_and_rotation_one_by_one(turned):
    torch.manual_seed(0)
    attention = Attention(width=32, heads=2)
    for parameter in attention.parameters():  # the norms' too, so that q's is not k's
        torch.nn.init.normal_(parameter)
    x = torch.randn(3, 5, 32)
    rope = rotations(torch.randn(5, 8)) if turned else None
    q, k, v = (part.unflatten(-1, (2, 16)) for part in attention.qkv(x).chunk(3, dim=-1))
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = rotate(q, rope), rotate(k, rope)
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 16**0.5).softmax(dim=-1)
    expected = attention.out(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    torch.testing.assert_close(attention(x, rope), expected, rtol=1e-4, atol=1e-4)


def test_rotation_keeps_norms_and_knows_relative_positions_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    rope = rotations(axial_rope((10,), 16).double())
    rotated_q, rotated_k = (rotate(x.expand(10, 1, 16), rope)[:, 0] for x in (q, k))
    torch.testing.assert_close(rotated_q.norm(dim=1), q.norm().expand(10))
    scores = rotated_q @ rotated_k.T
    for offset in range(-9, 10):
        diagonal = scores.diagonal(offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores[0].unique().numel() == 10
    torch.testing.assert_close(scores[0, 0], q @ k)


def test_rotation_turns_pairs_as_complex_numbers():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 3, 8, generator=generator, dtype=torch.float64)  # (batch, tokens, heads, numbers)
    angles = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    torch.testing.assert_close(rotate(x, rotations(angles)), torch.cat((turned.real, turned.imag), dim=-1))


@pytest.mark.parametrize(("axes", "head_width"), [((10,), 16), ((4, 3, 2), 16), ((4, 3, 2), 12)])
def test_axial_rope_values(axes, head_width):
    angles = axial_rope(axes, head_width)
    pairs = head_width // 2
    shares = [pairs // len(axes)] * len(axes)
    shares[0] = pairs - sum(shares[1:])
    assert angles.shape == (math.prod(axes), pairs)
    strides = [math.prod(axes[i + 1 :]) for i in range(len(axes))]
    for n in range(len(angles)):
        position = [n // stride % length for stride, length in zip(strides, axes, strict=True)]
        pairs_of = zip(position, shares, strict=True)
        expected = [place / ROPE_BASE ** (i / share) for place, share in pairs_of for i in range(share)]
        assert angles[n].tolist() == pytest.approx(expected, rel=1e-5)


def test_full_attention_rope_follows_the_order_of_tokens():
    """Token n of (F, h, w) flattened turns by its own frame, row and column."""
    dit = make("full")
    assert dit.rope.shape == (2, FRAMES * SIZE * SIZE, 16)
    cos, sin = dit.rope[:, :, 8:]
    grid = torch.atan2(sin, cos).remainder(2 * math.pi).view(FRAMES, SIZE, SIZE, 8)
    time, row, column = grid[..., 0], grid[..., 4], grid[..., 6]
    assert time[:, 1, 2].tolist() == pytest.approx([frame % (2 * math.pi) for frame in range(FRAMES)])
    assert row[3, :, 1].tolist() == pytest.approx(list(range(SIZE)))
    assert column[3, 1, :].tolist() == pytest.approx(list(range(SIZE)))


def test_space_embedding_values():
    embedding = sincos_2d(3, 16)
    assert embedding.shape == (9, 16)
    for cell in range(9):
        for half, position in enumerate((cell // 3, cell % 3)):
            angles = [position / 10000 ** (i / 4) for i in range(4)]
            expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert embedding[cell, 8 * half : 8 * half + 8].tolist() == pytest.approx(expected, abs=1e-6)


def test_timestep_embedding_values():
    embedding = timestep_embedding(torch.tensor([0, 7, 999]), size=8)
    for row, t in zip(embedding.tolist(), [0, 7, 999], strict=True):
        angles = [t / 10000 ** (i / 4) for i in range(4)]
        assert row == pytest.approx([math.cos(a) for a in angles] + [math.sin(a) for a in angles], abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"attention": "window"}, "dit.attention: 'window'"),
        ({"prediction": "x0"}, "dit.prediction: 'x0'"),
        ({"width": 100, "heads": 6}, "dit.width: 100"),
        ({"heads": 0}, "dit.heads: 0"),
        ({"num_frames": 0}, "dit.num_frames: 0"),
    ],
)
def test_bad_parameters(arguments, named):
    with pytest.raises(UserError, match=named):
        VideoDiT(**arguments)


def test_default_sizes_fit_into_the_shipped_prior():
    """36 MB of bf16 is what the repository may carry."""
    with torch.device("meta"):
        models = VAE(latent_channels=8), VideoDiT(latent_channels=8)
    assert sum(2 * value.numel() for model in models for value in model.state_dict().values()) <= 36e6
