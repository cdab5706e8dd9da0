"""Polyak's step size: where its limit is known in closed form, and beside Algorithm 1 at equal steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from test_dps import SHAPE, SIZE, CurvedPrior, GaussianPrior, first_frame, noise_source, normal, replay, seen
from torch import Tensor

from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.errors import UserError
from vsr_lightning.inference.ancestral import ancestral_sample
from vsr_lightning.inference.dps import Observation, dps_sample
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.inference.guidance import estimate, polyak_move
from vsr_lightning.models.schedule import LinearSchedule


@pytest.fixture
def problem() -> tuple[CurvedPrior, Tensor, Tensor]:
    """A prior, observations of 4 videos, and the sampler's draws."""
    return CurvedPrior(LinearSchedule(60, 1e-3, 0.2)), normal(4, 1, *SHAPE[1:], seed=1), normal(31, 4, *SHAPE, seed=2)


@pytest.mark.parametrize(
    ("zeta_end", "momentum", "blur"), [(None, 0.0, 0.0), (0.1, 0.0, 0.0), (None, 0.6, 0.0), (0.7, 0.3, 1.2)]
)
def test_step_by_step_in_numpy(zeta_end, momentum, blur):
    """A Gaussian prior and a linear decoder: z0_hat = sqrt(alpha_bar) z_t, and all gradients by hand."""
    schedule, steps, zeta, noise_norm = LinearSchedule(30, 1e-3, 0.2), 6, 0.4, 0.3
    decoder = normal(SIZE, SIZE, seed=3)
    draws, y = normal(steps + 1, 2, *SHAPE, seed=4), normal(2, 1, *SHAPE[1:], seed=5)
    A = decoder.numpy()[: SIZE // 2]  # decoding, then frame 0 alone
    alpha_bars = np.cumprod(1 - np.linspace(1e-3, 0.2, 30))
    timesteps = np.round(np.linspace(round(0.9 * 29), 0, steps)).astype(int)

    z = draws[0].flatten(1).numpy()
    moved = np.zeros_like(z)
    for index, t in enumerate(timesteps):
        bar = alpha_bars[t]
        bar_prev = alpha_bars[timesteps[index + 1]] if index + 1 < steps else 1.0
        z0_hat = bar**0.5 * z
        residual = y.flatten(1).numpy() - z0_hat @ A.T
        norm = np.linalg.norm(residual, axis=1)
        width = blur * np.clip((t - 6) / (17 - 6), 0, 1)
        gradient = -(bar**0.5) * residual @ blurred(A, width) / norm[:, None]
        slope = np.linalg.norm(gradient, axis=1)
        share = zeta if zeta_end is None else zeta_end + (1 - bar) ** 0.5 * (zeta - zeta_end)
        share /= overshoot(width)
        length = np.minimum(share * np.maximum(norm - noise_norm, 0) / slope, 0.2 * math.sqrt(SIZE))
        moved = (length / slope)[:, None] * gradient + momentum * moved
        alpha = bar / bar_prev
        mean = alpha**0.5 * (1 - bar_prev) / (1 - bar) * z + bar_prev**0.5 * (1 - alpha) / (1 - bar) * z0_hat
        sigma = ((1 - alpha) * (1 - bar_prev) / (1 - bar)) ** 0.5
        z = mean + sigma * draws[index + 1].flatten(1).numpy() - moved

    x_hat = dps_polyak_sample(
        GaussianPrior(schedule, decoder), seen(y, noise_norm=noise_norm), replay(draws),
        steps=steps, zeta=zeta, start=0.9, max_move=0.2, zeta_end=zeta_end, momentum=momentum,
        gradient_blur=blur, gradient_blur_from=17 / 29, gradient_blur_until=6 / 29,
    )  # fmt: skip
    np.testing.assert_allclose(x_hat.flatten(1), z0_hat @ decoder.numpy().T, atol=1e-6)


def overshoot(width: float) -> float:
    """b(0) / (b * b)(0) of a blur of the middle of a frame, in two dimensions."""
    if width == 0:
        return 1.0
    middle = np.eye(SHAPE[-1])[SHAPE[-1] // 2]
    seen_by = gaussian_filter(middle, width, mode="reflect")
    return ((middle @ seen_by) / (seen_by @ seen_by)) ** 2


def blurred(A: np.ndarray, width: float) -> np.ndarray:
    """The frame (H, W) that each column of A (H W, n) is, blurred."""
    frames = A.reshape(*SHAPE[2:], -1)
    return gaussian_filter(frames, width, mode="reflect", axes=(0, 1)).reshape(A.shape) if width > 0 else A


def test_the_gradient_is_no_wider_than_a_blur_that_is_as_wide(problem):
    """Each video's own blur counts: 0, 1.2 and 2 px, where at least 1.5 is asked for."""
    prior, y, draws = problem
    step, z_t = prior.schedule.respaced(1)[0], draws[0]
    narrow = estimate(prior, seen(y), z_t, step).gradient
    blur = [0.0, 1.2, 2.0, 0.0]
    found = estimate(prior, replace(seen(y), blur=blur), z_t, step, 1.5).gradient
    for b, missing in enumerate([1.5, (1.5**2 - 1.2**2) ** 0.5, 0.0, 1.5]):
        expected = estimate(prior, seen(y), z_t, step, missing).gradient[b] if missing else narrow[b]
        torch.testing.assert_close(found[b], expected, rtol=1e-6, atol=1e-6)
        assert torch.allclose(found[b], narrow[b], rtol=1e-3) == (missing == 0)


@pytest.mark.parametrize(("own", "least"), [(0, 0.3), (0, 1.5), (0, 2), (0.5, 2), (1, 2), (1.9, 2), (2, 2)])
def test_a_step_removes_its_share_of_the_misfit_however_wide_the_gradient(own, least):
    """Decoding is the identity, and every 16th pixel is seen: the misfit is linear in z, and no pixels overlap."""
    zeta, noise_norm = 0.4, torch.tensor([0.3], dtype=torch.float64)
    step = LinearSchedule().respaced(1)[0]
    z_t, y = normal(1, 1, 1, 64, 64, seed=6), normal(1, 1, 1, 4, 4, seed=7)
    observation = Observation(y, Downsample(factor=16).operator([own], 64, 64), noise_norm, [own])
    guess = estimate(GaussianPrior(), observation, z_t, step, least)
    moved = z_t - polyak_move(guess, noise_norm, torch.tensor(zeta), math.inf)
    left = estimate(GaussianPrior(), observation, moved, step).residual
    assert ((guess.residual - left) / (guess.residual - noise_norm)).item() == pytest.approx(zeta, rel=0.01)
    assert guess.overshoot.item() == pytest.approx(2 * least**2 / (own**2 + least**2), rel=0.02 if least > 1 else 1)


def test_blur_is_told_for_every_video(problem):
    prior, y, draws = problem
    with pytest.raises(ValueError, match="blur: 3 widths for 4 videos"):
        estimate(prior, replace(seen(y), blur=[2.0] * 3), draws[0], prior.schedule.respaced(1)[0])


def test_a_wider_gradient_reaches_an_edge_beside_the_pixel_that_is_seen():
    """An edge between black and white, whose place is what is sought; at the pixel seen nothing changes with it."""

    class Edge(GaussianPrior):
        def decode(self, z: Tensor) -> Tensor:
            """z, as shifted copies: frames (8, 1) that are black above the row that z says."""
            rows = torch.arange(8, dtype=z.dtype).view(8, 1)
            return (rows - 4 - z.mean(dim=(-2, -1), keepdim=True)).clamp(-0.5, 0.5)

    z_t = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)
    white = Observation(torch.full((1, 1, 1, 1, 1), 0.5, dtype=torch.float64), lambda x: x[..., 1:2, :], torch.zeros(1))
    step = LinearSchedule().respaced(1)[0]
    narrow, wide = (estimate(Edge(), white, z_t, step, blur) for blur in (0.0, 2.0))
    assert narrow.residual == wide.residual == 1.0
    assert narrow.gradient == 0
    assert wide.gradient > 0  # subtracted, it moves the edge up, to the pixel


def test_ends_at_the_size_of_the_noise_in_few_steps():
    """Twenty steps: no constant scale takes Algorithm 1 as near to the observation."""
    batch, sigma_y = 500, 0.1
    y = torch.tensor([2.0, -1.5, 1.0, -2.5], dtype=torch.float64).view(1, 1, 1, 2, 2).expand(batch, -1, -1, -1, -1)
    observation = seen(y, noise_norm=2 * sigma_y)  # four numbers are seen

    def final_rms(sampler, zeta: float) -> float:
        residuals: list[Tensor] = []
        sampler(
            GaussianPrior(), observation, noise_source(batch), steps=20, zeta=zeta,
            on_step=lambda index, step, residual: residuals.append(residual),
        )  # fmt: skip
        return (residuals[-1].square().mean() / 4).sqrt().item()

    assert 0.8 * sigma_y < final_rms(dps_polyak_sample, 0.8) < 1.2 * sigma_y
    assert min(final_rms(dps_sample, zeta) for zeta in (0.1, 0.4, 0.8, 2.0)) > 2 * sigma_y


def test_nothing_observed_is_the_unguided_sampler(problem):
    prior, y, draws = problem
    nothing = seen(torch.zeros_like(y), lambda x: 0 * first_frame(x))
    guided = dps_polyak_sample(prior, nothing, replay(draws), steps=30, start=1.0)
    assert torch.equal(guided, prior.decode(ancestral_sample(prior, replay(draws), steps=30)))


def test_a_fit_within_the_noise_is_left_alone(problem):
    prior, y, draws = problem
    guided = dps_polyak_sample(prior, seen(y, noise_norm=1e3), replay(draws), steps=30, start=1.0)
    assert torch.equal(guided, prior.decode(ancestral_sample(prior, replay(draws), steps=30)))


def test_no_step_is_longer_than_allowed(problem):
    prior, y, draws = problem
    free = dps_polyak_sample(prior, seen(1e3 * y), replay(draws), steps=1, max_move=math.inf)
    assert free.isfinite().all()
    states = []
    for limit in (0.0, 0.05):
        heard: list[float] = []
        schedule_eps = prior.eps

        def watch(z_t: Tensor, t: Tensor, eps=schedule_eps, heard=heard) -> Tensor:
            heard.append(z_t.detach().clone())
            return eps(z_t, t)

        prior.eps = watch
        dps_polyak_sample(prior, seen(1e3 * y), replay(draws), steps=2, max_move=limit)
        prior.eps = schedule_eps
        states.append(heard[1])
    moved = (states[1] - states[0]).flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.05), atol=1e-6, rtol=0)


def test_temperature_cools_the_noise_of_settled_samples_alone():
    """Unguided under a prior N(0, I), z is linear in its draws: the variance of every step is known."""
    schedule, batch, steps = LinearSchedule(60, 1e-3, 0.2), 4000, 30
    nothing = seen(torch.zeros(batch, 1, *SHAPE[1:]), lambda x: 0 * first_frame(x))
    free, cool = (
        dps_polyak_sample(
            GaussianPrior(schedule), nothing, noise_source(batch), steps=steps, start=1.0, temperature=temperature,
            cool_from=0.5,
        )
        for temperature in (1.0, 0.3)
    )  # fmt: skip
    variances = {1.0: 1.0, 0.3: 1.0}
    for temperature in variances:
        for step in schedule.respaced(steps):
            last = variances[temperature] * step.alpha_bar_t  # of z0_hat, at the last step what is decoded
            scale = step.sigma_t * (temperature if step.t <= 0.5 * 59 else 1.0)
            weight = step.z_t_weight + step.z0_weight * step.alpha_bar_t**0.5
            variances[temperature] = weight**2 * variances[temperature] + scale**2
        variances[temperature] = last
    assert variances[0.3] < 0.9 * variances[1.0]
    for found, expected in ((free, variances[1.0]), (cool, variances[0.3])):
        error = expected * (2 / found.numel()) ** 0.5
        assert abs(found.var().item() - expected) < 4 * error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"momentum": 1.0}, "momentum: 1.0"),
        ({"momentum": math.nan}, "momentum"),
        ({"zeta_end": -0.1}, "zeta_end: -0.1"),
        ({"zeta_end": math.inf}, "zeta_end: inf"),
        ({"gradient_blur": -1.0}, "gradient_blur: -1.0"),
        ({"gradient_blur": math.nan}, "gradient_blur: nan"),
        ({"gradient_blur_from": 1.5}, "gradient_blur_from: 1.5"),
        ({"gradient_blur_until": -0.1}, "gradient_blur_until: -0.1"),
        (
            {"gradient_blur_from": 0.3, "gradient_blur_until": 0.3},
            "gradient_blur_from: 0.3 is not above sampler.gradient_blur_until, 0.3",
        ),
    ],
)
def test_bad_settings_are_named(problem, wrong, message):
    prior, y, draws = problem
    with pytest.raises(UserError, match=message):
        dps_polyak_sample(prior, seen(y), replay(draws), steps=30, **wrong)
