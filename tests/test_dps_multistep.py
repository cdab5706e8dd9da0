"""The second-order solver: to first order it is DDPM's and DDIM's step; its order shows on a path in closed form."""

import pytest
import torch
from test_dps import SHAPE, GaussianPrior, noise_source, seen

from vsr_lightning.inference.dps_multistep import dps_multistep_sample, log_snr, weights
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.models.schedule import LinearSchedule


@pytest.mark.parametrize("stochastic", [True, False])
def test_to_first_order_a_step_is_ddpms_or_ddims(stochastic):
    for step in LinearSchedule().respaced(25, eta=float(stochastic))[:-1]:
        h = log_snr(step.alpha_bar_prev) - log_snr(step.alpha_bar_t)
        expected = step.z_t_weight, step.z0_weight, step.sigma_t
        assert weights(step, h, stochastic) == pytest.approx(expected, abs=1e-9)


class Shifted(GaussianPrior):
    """z_0 ~ N(m, s^2), all numbers alike: the probability flow takes z_T to m + s z_T in closed form."""

    mean, std = 1.5, 0.3

    def eps(self, z_t, t):
        bar = self.schedule.alpha_bar[t].double().view(-1, 1, 1, 1, 1)
        variance = bar * self.std**2 + 1 - bar
        return (1 - bar).sqrt() * (z_t - bar.sqrt() * self.mean) / variance


def final_error(sampler, steps, **options):
    """Root mean square distance from where the exact flow ends."""
    prior, batch = Shifted(), 64
    observation = seen(torch.zeros(batch, 1, *SHAPE[1:], dtype=torch.float64))
    z_0 = sampler(prior, observation, noise_source(batch), steps=steps, zeta=0.0, start=1.0, **options)
    z_T, first = noise_source(batch)(), prior.schedule.alpha_bar[-1].double()
    normal = (z_T - first.sqrt() * prior.mean) / (first * prior.std**2 + 1 - first).sqrt()
    return (z_0 - (prior.mean + prior.std * normal)).square().mean().sqrt().item()


def test_few_steps_follow_the_flow_better_than_first_order():
    first = [final_error(dps_polyak_sample, steps, eta=0.0, spacing="log_snr") for steps in (20, 40)]
    second = [final_error(dps_multistep_sample, steps, stochastic=False, spacing="log_snr") for steps in (20, 40)]
    assert first[1] == pytest.approx(first[0] / 2, rel=0.25)
    assert second[1] < second[0] / 3
    assert second[0] < first[0] / 3


def test_stochastic_steps_keep_the_variance():
    prior, batch = Shifted(), 2000
    observation = seen(torch.zeros(batch, 1, *SHAPE[1:], dtype=torch.float64))
    options = {"steps": 60, "zeta": 0.0, "start": 1.0, "spacing": "log_snr"}
    values = dps_multistep_sample(prior, observation, noise_source(batch), **options).flatten()
    assert values.mean().item() == pytest.approx(prior.mean, abs=0.02)
    assert values.std().item() == pytest.approx(prior.std, rel=0.05)
