"""The VAE: shapes, frames on their own, the latent normalisation, and the gradient that guidance needs."""

import pytest
import torch

from vsr_lightning.errors import UserError
from vsr_lightning.models.vae import VAE


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    vae = VAE(in_channels=3, latent_channels=2, widths=[8, 16, 24])
    for parameter in vae.parameters():  # the zero-initialised convolutions too
        torch.nn.init.normal_(parameter, std=0.1)
    vae.latent_mean.copy_(torch.tensor([0.5, -2.0]))
    vae.latent_std.copy_(torch.tensor([3.0, 0.1]))
    return vae


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 3, 32, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes(vae, x):
    mean, log_variance = vae.moments(x)
    z = vae.encode(x)
    assert mean.shape == log_variance.shape == z.shape == (2, 3, 2, 4, 2)
    assert vae.decode(z).shape == x.shape


def test_frames_are_coded_independently(vae, x):
    order = torch.tensor([2, 0, 1])
    z = vae.encode(x)
    torch.testing.assert_close(vae.encode(x[:, order]), z[:, order], atol=1e-5, rtol=0)
    torch.testing.assert_close(vae.decode(z[:, order]), vae.decode(z)[:, order], atol=1e-5, rtol=0)
    other = x.clone()
    other[0, 1] = 0
    changed = (vae.encode(other) - z).flatten(2).abs().amax(2) > 1e-4
    assert changed.nonzero().tolist() == [[0, 1]]


def test_normalisation(vae, x):
    mean, _ = vae.moments(x)
    z = vae.encode(x)
    for channel, (centre, scale) in enumerate([(0.5, 3.0), (-2.0, 0.1)]):
        torch.testing.assert_close(z[:, :, channel] * scale + centre, mean[:, :, channel])
    torch.testing.assert_close(vae.decode(z), vae.decode_raw(mean), atol=1e-5, rtol=0)  # decode undoes it


def test_normalisation_is_saved_with_the_weights(vae):
    other = VAE(in_channels=3, latent_channels=2, widths=[8, 16, 24])
    other.load_state_dict(vae.state_dict())
    assert other.latent_mean.tolist() == vae.latent_mean.tolist()
    assert other.latent_std.tolist() == vae.latent_std.tolist()
    assert "latent_std" not in dict(vae.named_parameters())  # not trained by gradient


def test_log_variance_is_bounded(vae, x):
    vae.encoder.layers[-1].bias.data[2:] = torch.tensor([1e4, -1e4])
    _, log_variance = vae.moments(x)
    assert log_variance[:, :, 0].unique().tolist() == [10]
    assert log_variance[:, :, 1].unique().tolist() == [-20]


def test_gradient_reaches_the_latent_of_its_frame_only(vae, x):
    z = vae.requires_grad_(False).encode(x).requires_grad_()
    (gradient,) = torch.autograd.grad(vae.decode(z)[1, 2].square().sum(), z)
    reached = gradient.flatten(2).abs().amax(2) > 0
    assert reached.nonzero().tolist() == [[1, 2]]


def test_gradient_of_decode_is_its_slope(vae, x):
    z = vae.encode(x).detach()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    _, slope = torch.func.jvp(vae.decode, (z,), (direction,))
    h = 1e-2
    difference = (vae.decode(z + h * direction) - vae.decode(z - h * direction)) / (2 * h)
    assert (slope - difference).norm() < 1e-2 * slope.norm()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"widths": [8, 8]}, "three numbers"),
        ({"encoder_blocks": [1]}, "three numbers"),
        ({"decoder_blocks": [1, 1, 1, 1]}, "three numbers"),
        ({"widths": [8, 12, 16]}, "multiples of 8"),
    ],
)
def test_bad_sizes(arguments, named):
    with pytest.raises(UserError, match=f"vae.*{named}"):
        VAE(**arguments)
