"""The noise schedule against closed forms in float64, and its reverse steps against plain Gaussian conditioning."""

import numpy as np
import pytest
import torch

from vsr_lightning.errors import UserError
from vsr_lightning.models.schedule import LinearSchedule, Step

BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHA_BARS = np.exp(np.log1p(-BETAS).cumsum())


def conditional(alpha_bar_t: float, alpha_bar_prev: float) -> tuple[float, float, float]:
    """Weights of z_t and z_0 in E[z_{t-1} | z_t, z_0], and the standard deviation, from their joint covariance."""
    alpha_t = alpha_bar_t / alpha_bar_prev
    var_z0 = 3.7  # the conditional does not depend on it
    # Rows z_0, z_{t-1}, z_t; columns z_0 and the noises of the jumps 0 -> t-1 and t-1 -> t.
    rows = np.zeros((3, 3))
    rows[0, 0] = var_z0**0.5
    rows[1] = alpha_bar_prev**0.5 * rows[0]
    rows[1, 1] = (1 - alpha_bar_prev) ** 0.5
    rows[2] = alpha_t**0.5 * rows[1]
    rows[2, 2] = (1 - alpha_t) ** 0.5
    covariance = rows @ rows.T
    given = [2, 0]
    weights = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, 1])
    variance = covariance[1, 1] - weights @ covariance[given, 1]
    return weights[0], weights[1], max(variance, 0.0) ** 0.5


def test_alpha_bar_is_the_product_of_alphas():
    np.testing.assert_allclose(LinearSchedule().alpha_bar, ALPHA_BARS, rtol=1e-6)


def test_full_steps_are_ddpm():
    steps = LinearSchedule().respaced(1000)
    assert [step.t for step in steps] == list(range(999, -1, -1))
    for step in steps[:-1]:
        t = step.t
        ddpm_variance = BETAS[t] * (1 - ALPHA_BARS[t - 1]) / (1 - ALPHA_BARS[t])
        assert step.beta_t == pytest.approx(BETAS[t], rel=1e-9)
        assert step.sigma_t**2 == pytest.approx(ddpm_variance, rel=1e-9)


@pytest.mark.parametrize("num_steps", [1000, 250, 100, 7])
def test_reverse_step_is_the_gaussian_conditional(num_steps):
    for step in LinearSchedule().respaced(num_steps)[:-1]:
        expected = conditional(step.alpha_bar_t, step.alpha_bar_prev)
        assert (step.z_t_weight, step.z0_weight, step.sigma_t) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_steps_of_any_eta_keep_the_marginals(eta):
    """Given the true z_0, z_{t-1} has the mean and variance of q(z_{t-1} | z_0) (DDIM, Lemma 1)."""
    for step in LinearSchedule().respaced(50, eta=eta):
        signal = step.z_t_weight * step.alpha_bar_t**0.5 + step.z0_weight
        variance = step.z_t_weight**2 * (1 - step.alpha_bar_t) + step.sigma_t**2
        assert signal == pytest.approx(step.alpha_bar_prev**0.5, rel=1e-12)
        assert variance == pytest.approx(1 - step.alpha_bar_prev, abs=1e-12)
        assert step.sigma_t == pytest.approx(eta * Step(step.t, step.alpha_bar_t, step.alpha_bar_prev).sigma_t)


@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "karras"])
def test_steps_that_stop_early_lead_to_a_noise_level(spacing):
    steps = LinearSchedule().respaced(20, spacing, start=0.8, stop=0.3)
    timesteps = [step.t for step in steps]
    assert len(set(timesteps)) == 20
    assert timesteps == sorted(timesteps, reverse=True)
    assert (timesteps[0], min(timesteps) > 300) == (799, True)
    assert steps[-1].alpha_bar_prev == pytest.approx(ALPHA_BARS[300], rel=1e-9)
    with pytest.raises(UserError, match="as many as there are timesteps from 799 down to 301"):
        LinearSchedule().respaced(500, spacing, start=0.8, stop=0.3)


@pytest.mark.parametrize("num_steps", [1000, 250, 100, 2])
def test_respaced_steps_chain_from_noise_to_data(num_steps):
    steps = LinearSchedule().respaced(num_steps)
    assert len(steps) == num_steps
    assert (steps[0].t, steps[-1].t) == (999, 0)
    for step, following in zip(steps, steps[1:], strict=False):
        assert step.alpha_bar_prev == following.alpha_bar_t == pytest.approx(ALPHA_BARS[following.t], rel=1e-9)
        # One step of the respaced chain is many of the full one.
        assert step.alpha_t == pytest.approx(np.prod(1 - BETAS[following.t + 1 : step.t + 1]), rel=1e-9)
    last = steps[-1]
    assert (last.alpha_bar_prev, last.sigma_t, last.z_t_weight) == (1, 0, 0)
    assert last.z0_weight == pytest.approx(1)


def test_no_timestep_is_repeated_whatever_the_number_of_steps():
    schedule = LinearSchedule(num_steps=60)
    for num_steps in range(1, 61):
        timesteps = [step.t for step in schedule.respaced(num_steps)]
        assert len(timesteps) == num_steps
        assert timesteps == sorted(set(timesteps), reverse=True)


def test_noise_and_velocity():
    schedule = LinearSchedule()
    z0, eps = torch.randn(2, 5, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    t = torch.tensor([0, 1, 300, 998, 999])
    z_t, v = schedule.add_noise(z0, eps, t), schedule.velocity(z0, eps, t)
    for b, alpha_bar in enumerate(ALPHA_BARS[t]):
        angle = np.arccos(alpha_bar**0.5)  # (z_t, v) is (z_0, eps) turned by it
        torch.testing.assert_close(z_t[b], np.cos(angle) * z0[b] + np.sin(angle) * eps[b], atol=1e-5, rtol=0)
        torch.testing.assert_close(v[b], np.cos(angle) * eps[b] - np.sin(angle) * z0[b], atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.eps_from_velocity(v, z_t, t), eps, atol=2e-6, rtol=0)


def test_scalars_stay_precise_where_alpha_bar_is_nearly_one():
    step = LinearSchedule().respaced(1000)[-1]
    assert isinstance(step, Step)
    assert 1 - step.alpha_bar_t == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize(
    "arguments", [{"num_steps": 0}, {"beta_start": 0.0}, {"beta_start": 0.5, "beta_end": 0.1}, {"beta_end": 1.0}]
)
def test_bad_schedules(arguments):
    with pytest.raises(UserError, match="schedule"):
        LinearSchedule(**arguments)


@pytest.mark.parametrize("num_steps", [0, 1001])
def test_bad_number_of_steps(num_steps):
    with pytest.raises(UserError, match=r"sampler\.steps: .*1000"):
        LinearSchedule().respaced(num_steps)


SIGMAS = np.sqrt((1 - ALPHA_BARS) / ALPHA_BARS)
COORDINATES = {
    "uniform": np.arange(1000.0),
    "log_snr": np.log(ALPHA_BARS / (1 - ALPHA_BARS)),
    "karras": SIGMAS ** (1 / 7),
}


@pytest.mark.parametrize("spacing", COORDINATES)
@pytest.mark.parametrize(("num_steps", "start"), [(1, 1.0), (2, 0.5), (10, 1.0), (100, 0.85), (500, 0.5), (1000, 1.0)])
def test_every_spacing_goes_down_to_zero_without_repeats(spacing, num_steps, start):
    timesteps = [step.t for step in LinearSchedule().respaced(num_steps, spacing, start)]
    assert len(set(timesteps)) == num_steps
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[0] == round(start * 999)
    assert timesteps[-1] == 0 or num_steps == 1


@pytest.mark.parametrize("spacing", COORDINATES)
def test_spacings_are_even_in_their_coordinate(spacing):
    timesteps = [step.t for step in LinearSchedule().respaced(12, spacing, 0.9)]
    places = COORDINATES[spacing][timesteps]
    wanted = np.linspace(places[0], places[-1], 12)
    # Timesteps are whole numbers: half of one is the best that can be had. At the noiseless end there are too few.
    rounding = np.abs(np.gradient(COORDINATES[spacing]))[timesteps]
    free = np.diff(timesteps, append=-9) < -1
    assert (np.abs(places - wanted)[free] <= 0.6 * rounding[free]).all()


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ((851, "uniform", 0.85), "sampler.steps"),
        ((10, "cosine"), "sampler.spacing"),
        ((1, "uniform", 0.0), "sampler.start"),
        ((1, "uniform", 1.1), "sampler.start"),
    ],
)
def test_bad_respacing_names_the_key(arguments, key):
    with pytest.raises(UserError, match=key):
        LinearSchedule().respaced(*arguments)
