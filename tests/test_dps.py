"""Algorithm 1 and the unguided sampler, under priors whose best `eps` is known in closed form.

For z_0 ~ N(0, I), z_t is N(0, I) too, and E[eps | z_t] = sqrt(1 - alpha_bar_t) z_t.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from vsr_lightning.inference.ancestral import ancestral_sample
from vsr_lightning.inference.dps import Observation, dps_sample
from vsr_lightning.models.schedule import LinearSchedule

SHAPE = (2, 1, 2, 2)  # (F, c, h, w): 8 numbers
SIZE = math.prod(SHAPE)


class GaussianPrior:
    """z_0 ~ N(0, I), exactly; `decode` is a linear map of each video's numbers, or the identity."""

    def __init__(self, schedule: LinearSchedule | None = None, decoder: Tensor | None = None) -> None:
        self.schedule, self.decoder = schedule or LinearSchedule(), decoder

    def eps(self, z_t: Tensor, t: Tensor) -> Tensor:
        return (1 - self.schedule.alpha_bar[t]).sqrt().view(-1, 1, 1, 1, 1) * z_t

    def decode(self, z: Tensor) -> Tensor:
        return z if self.decoder is None else (z.flatten(1) @ self.decoder.T).view_as(z)


class CurvedPrior:
    """A bent N(0, I) and a bent decoder, so that no gradient is constant. In float64: curves amplify rounding."""

    def __init__(self, schedule: LinearSchedule) -> None:
        self.schedule = schedule
        generator = torch.Generator().manual_seed(5)
        self.a, self.b = torch.randn(2, SIZE, SIZE, generator=generator, dtype=torch.float64) / SIZE**0.5

    def eps(self, z_t: Tensor, t: Tensor) -> Tensor:
        bend = torch.tanh(z_t.flatten(1) @ self.a + 0.01 * t[:, None]).view_as(z_t)
        return (1 - self.schedule.alpha_bar[t]).sqrt().view(-1, 1, 1, 1, 1) * (z_t + 0.2 * bend)

    def decode(self, z: Tensor) -> Tensor:
        return z + torch.sin(z.flatten(1) @ self.b).view_as(z)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noise_source(batch: int, seed: int = 0) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64)


def replay(draws: Tensor) -> Callable[[], Tensor]:
    iterator: Iterator[Tensor] = iter(draws)
    return lambda: next(iterator)


def first_frame(x: Tensor) -> Tensor:
    return x[:, :1]


def seen(y: Tensor, degrade: Callable[[Tensor], Tensor] = first_frame, noise_norm: float = 0.0) -> Observation:
    return Observation(y, degrade, torch.full((len(y),), noise_norm, dtype=y.dtype))


# Unguided: the variance under the exact prior


def closed_form_variance(steps: int) -> float:
    """Variance of the final z0_hat, by recursion over the (respaced) reverse steps, from betas alone."""
    alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[np.round(np.linspace(999, 0, steps)).astype(int)]
    variance = 1.0
    for now, then in zip(alpha_bars, alpha_bars[1:], strict=False):
        alpha = now / then
        gain = alpha**0.5 * (1 - then) / (1 - now) + then**0.5 * (1 - alpha) / (1 - now) * now**0.5
        variance = gain**2 * variance + (1 - alpha) * (1 - then) / (1 - now)
    return alpha_bars[-1] * variance


@pytest.mark.parametrize(("steps", "rounded"), [(1000, 0.991), (250, 0.966), (100, 0.921)])
def test_unguided_variance_is_the_closed_form(steps, rounded):
    """The sampler is linear here. Video i gets 1 as its draw i and 0 as all others, and so measures that draw's gain;
    the variance is the sum of the squared gains."""
    expected = closed_form_variance(steps)
    assert expected == pytest.approx(rounded, abs=5e-4)
    impulses = torch.eye(steps + 1, dtype=torch.float64).view(steps + 1, steps + 1, 1, 1, 1, 1)
    gains = ancestral_sample(GaussianPrior(), replay(impulses), steps=steps)
    assert gains.square().sum().item() == pytest.approx(expected, rel=1e-4)


def test_unguided_variance_of_samples():
    expected, videos = closed_form_variance(100), 4_000
    values = ancestral_sample(GaussianPrior(), noise_source(videos), steps=100).flatten()
    n = len(values)
    assert abs(values.var().item() - expected) < 3 * expected * (2 / n) ** 0.5
    assert abs(values.mean().item()) < 3 * (expected / n) ** 0.5


def test_without_guidance_dps_is_the_unguided_sampler():
    schedule = LinearSchedule(40, 1e-3, 0.2)
    for prior in (GaussianPrior(schedule), CurvedPrior(schedule)):
        y = normal(3, 1, *SHAPE[1:])
        guided = dps_sample(prior, seen(y), noise_source(3), steps=30, zeta=0.0)
        unguided = ancestral_sample(prior, noise_source(3), steps=30)
        torch.testing.assert_close(guided, prior.decode(unguided), atol=1e-12, rtol=0)


# Guided: the algorithm, its gradient, and the posterior


@pytest.mark.parametrize("steps", [20, 7])
def test_algorithm_1_line_by_line(steps):
    """Written again from the paper: score, squared norm with eta_t = zeta / (2 norm), one video at a time."""
    betas = np.linspace(1e-3, 0.3, 20)
    all_alpha_bars = np.cumprod(1 - betas)
    timesteps = np.round(np.linspace(19, 0, steps)).astype(int)
    prior = CurvedPrior(LinearSchedule(20, 1e-3, 0.3))
    y, draws, zetas = normal(3, 1, *SHAPE[1:]), normal(steps + 1, 3, *SHAPE, seed=1), [0.25, 1.0, 2.5]

    restored = []
    for b, zeta in enumerate(zetas):
        z = draws[0, b : b + 1]
        for i, t in enumerate(timesteps):
            bar = all_alpha_bars[t]
            bar_prev = all_alpha_bars[timesteps[i + 1]] if i + 1 < steps else 1.0
            alpha = bar / bar_prev
            beta = 1 - alpha
            sigma = math.sqrt(beta * (1 - bar_prev) / (1 - bar))
            z = z.detach().clone().requires_grad_()
            score = -prior.eps(z, torch.tensor([t])) / math.sqrt(1 - bar)
            z0_hat = (z + (1 - bar) * score) / math.sqrt(bar)
            squared = ((y[b : b + 1] - prior.decode(z0_hat)[:, :1]) ** 2).sum()
            squared.backward()
            mean = math.sqrt(alpha) * (1 - bar_prev) / (1 - bar) * z + math.sqrt(bar_prev) * beta / (1 - bar) * z0_hat
            eta = zeta / (2 * math.sqrt(squared.item()))
            z = (mean + sigma * draws[i + 1, b]).detach() - eta * z.grad
        restored.append(prior.decode(z0_hat).detach())

    x_hat = dps_sample(prior, seen(y), replay(draws), steps=steps, zeta=torch.tensor(zetas))
    torch.testing.assert_close(x_hat, torch.cat(restored), atol=1e-9, rtol=0)


def test_guidance_direction_of_a_linear_gaussian_model():
    """Two steps, so that what comes back shows what the first one did; the gradient is derived by hand."""
    schedule = LinearSchedule(30, 1e-3, 0.2)
    decoder, zeta = normal(SIZE, SIZE, seed=3), 0.75
    prior = GaussianPrior(schedule, decoder)
    draws, y = normal(3, 2, *SHAPE, seed=4), normal(2, 1, *SHAPE[1:], seed=5)
    first, last = (float(schedule.alpha_bar[t]) for t in (29, 0))
    A = decoder.numpy()[: SIZE // 2]  # decoding, then frame 0 alone

    z = draws[0].flatten(1).numpy()
    residual = y.flatten(1).numpy() - first**0.5 * z @ A.T  # z0_hat = sqrt(alpha_bar) z_t
    gradient = -(first**0.5) * residual @ A / np.linalg.norm(residual, axis=1, keepdims=True)
    alpha = first / last
    gain = alpha**0.5 * (1 - last) / (1 - first) + last**0.5 * (1 - alpha) / (1 - first) * first**0.5
    sigma = ((1 - alpha) * (1 - last) / (1 - first)) ** 0.5
    z = gain * z + sigma * draws[1].flatten(1).numpy() - zeta * gradient
    expected = last**0.5 * z @ decoder.numpy().T

    x_hat = dps_sample(prior, seen(y), replay(draws), steps=2, zeta=zeta)
    np.testing.assert_allclose(x_hat.flatten(1), expected, atol=1e-5)


def test_guided_samples_move_to_the_posterior():
    """y = A z + noise, A with orthonormal rows: the posterior mean of A z is y / (1 + sigma_y^2).

    DPS is no exact sampler: its spread where A sees is not the posterior's, so only its mean and the size of its
    residual are held to account. Where A does not see it must not act at all.
    """
    sigma_y, batch, steps = 0.1, 1000, 100
    basis = torch.linalg.qr(normal(SIZE, SIZE, seed=6))[0]
    A, unseen = basis[:4], basis[4:]
    y = torch.tensor([2.0, -1.5, 1.0, -2.5], dtype=torch.float64)
    residuals: list[Tensor] = []

    def project(x: Tensor) -> Tensor:
        return (x.flatten(1) @ A.T).view(-1, 1, 1, 2, 2)

    z = dps_sample(
        GaussianPrior(),
        seen(y.view(1, 1, 1, 2, 2).expand(batch, -1, -1, -1, -1), project),
        noise_source(batch),
        steps=steps,
        zeta=0.4,
        on_step=lambda index, step, residual: residuals.append(residual),
    ).flatten(1)

    mean = (z @ A.T).mean(0)
    posterior_mean = y / (1 + sigma_y**2)
    assert (mean - posterior_mean).norm() < 0.03 * posterior_mean.norm()
    rms = (torch.stack(residuals).square().mean(1) / len(y)).sqrt()
    assert rms[0] > 15 * sigma_y
    assert 0.5 * sigma_y < rms[-1] < 1.5 * sigma_y

    free, expected = z @ unseen.T, closed_form_variance(steps)
    assert (free.mean(0).abs() < 4 * (expected / batch) ** 0.5).all()
    assert abs(free.var().item() - expected) < 4 * expected * (2 / free.numel()) ** 0.5


def test_an_exact_fit_gives_no_guidance_and_no_nan():
    """The norm has no gradient at zero; nothing observed is such a case."""
    prior = CurvedPrior(LinearSchedule(20, 1e-3, 0.3))
    y = torch.zeros(2, *SHAPE, dtype=torch.float64)
    x_hat = dps_sample(prior, seen(y, lambda x: 0 * x), noise_source(2), steps=10, zeta=5.0)
    torch.testing.assert_close(x_hat, prior.decode(ancestral_sample(prior, noise_source(2), steps=10)))


# Samples do not interact


@pytest.fixture
def problem() -> tuple[CurvedPrior, Tensor, Tensor]:
    """A prior, observations of 4 videos, and the sampler's draws."""
    return CurvedPrior(LinearSchedule(60, 1e-3, 0.2)), normal(4, 1, *SHAPE[1:], seed=1), normal(31, 4, *SHAPE, seed=2)


# The interface


def test_zeta_is_a_number_or_one_for_each_sample(problem):
    prior, y, draws = problem
    number = dps_sample(prior, seen(y), replay(draws), steps=30, zeta=2)
    tensor = dps_sample(prior, seen(y), replay(draws), steps=30, zeta=torch.full((4,), 2.0))
    assert torch.equal(number, tensor)
    mixed = dps_sample(prior, seen(y), replay(draws), steps=30, zeta=torch.tensor([2.0, 0.0, 2.0, 0.0]))
    assert torch.equal(mixed[::2], number[::2])
    assert (mixed[1::2] - number[1::2]).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


def test_on_step_hears_every_step(problem):
    prior, y, draws = problem
    heard = []
    dps_sample(prior, seen(y), replay(draws), steps=30, on_step=lambda *args: heard.append(args))
    assert [index for index, _, _ in heard] == list(range(30))
    assert [step.t for _, step, _ in heard] == [step.t for step in prior.schedule.respaced(30)]
    assert all(residual.shape == (4,) and not residual.requires_grad for _, _, residual in heard)
    z_t = draws[0]
    alpha_bar = heard[0][1].alpha_bar_t
    z0_hat = (z_t - (1 - alpha_bar) ** 0.5 * prior.eps(z_t, torch.full((4,), 59))) / alpha_bar**0.5
    expected = (y - prior.decode(z0_hat)[:, :1]).square().sum(dim=(1, 2, 3, 4)).sqrt()
    torch.testing.assert_close(heard[0][2], expected)


def test_callers_need_no_gradients(problem):
    prior, y, draws = problem
    prior.a.requires_grad_()  # nor must a trainable prior leave a graph behind
    expected = dps_sample(prior, seen(y), replay(draws), steps=30)
    with torch.no_grad():
        without = dps_sample(prior, seen(y), replay(draws), steps=30)
        assert not torch.is_grad_enabled()
    with torch.inference_mode(False):
        outside = dps_sample(prior, seen(y), replay(draws), steps=30)
    for x_hat in (expected, without, outside):
        assert not x_hat.requires_grad
        assert torch.equal(x_hat, expected)
    assert not ancestral_sample(prior, replay(draws), steps=30).requires_grad
    assert prior.a.grad is None
