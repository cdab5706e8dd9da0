"""Particles: with one it is Polyak's sampler, with several the best of independent descents goes on."""

from itertools import pairwise

import pytest
import torch
from test_dps import SHAPE, CurvedPrior, noise_source, normal, replay, seen

from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps_particles import dps_particles_sample
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.models.schedule import LinearSchedule

STEPS, PARTICLES, BATCH = 20, 3, 5


@pytest.fixture
def problem():
    return CurvedPrior(LinearSchedule(60, 1e-3, 0.2)), seen(normal(BATCH, 1, *SHAPE[1:], seed=1))


def test_one_particle_is_polyaks_sampler(problem):
    prior, observation = problem
    draws = normal(STEPS + 1, BATCH, *SHAPE, seed=2)
    alone = dps_particles_sample(prior, observation, replay(draws), steps=STEPS, particles=1)
    assert torch.equal(alone, dps_polyak_sample(prior, observation, replay(draws), steps=STEPS))


def test_one_particle_cools_and_looks_as_polyaks_sampler_does(problem):
    prior, observation = problem
    draws = normal(STEPS + 1, BATCH, *SHAPE, seed=2)
    options = {"steps": STEPS, "temperature": 0.5, "gradient_blur": 1.5}
    alone = dps_particles_sample(prior, observation, replay(draws), particles=1, until=0.3, **options)
    assert torch.equal(alone, dps_polyak_sample(prior, observation, replay(draws), cool_from=0.3, **options))
    for change in ({"cool_from": 0.6}, {"gradient_blur": 0.0}):
        other = dps_polyak_sample(prior, observation, replay(draws), **({"cool_from": 0.3, **options} | change))
        assert not torch.equal(alone, other)


def test_the_best_of_independent_descents_is_returned(problem):
    """Chosen at the last step, of particles that must then have come down as if each were alone."""
    prior, observation = problem
    draws = normal(PARTICLES * (STEPS + 1), BATCH, *SHAPE, seed=3)
    restored, residuals = [], []
    for k in range(PARTICLES):
        own = replay(draws[k::PARTICLES])
        heard = []
        restored.append(
            dps_polyak_sample(
                prior, observation, own, steps=STEPS, on_step=lambda index, step, r, heard=heard: heard.append(r)
            )
        )
        residuals.append(heard[-1])
    best = torch.stack(residuals).argmin(dim=0)
    assert len(set(best.tolist())) > 1
    expected = torch.stack([restored[k][b] for b, k in enumerate(best.tolist())])
    found = dps_particles_sample(prior, observation, replay(draws), steps=STEPS, particles=PARTICLES, until=0.0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_after_the_choice_one_descent_is_paid_for(problem):
    prior, observation = problem
    evaluated, eps = [], prior.eps
    prior.eps = lambda z_t, t: (evaluated.append(int(t[0])), eps(z_t, t))[1]
    dps_particles_sample(
        prior, observation, noise_source(BATCH), steps=STEPS, start=1.0, particles=PARTICLES, until=0.5
    )
    timesteps = [step.t for step in prior.schedule.respaced(STEPS)]
    together = [t for t in timesteps if t > 0.5 * 59]
    first_alone = timesteps[len(together)]
    assert [evaluated.count(t) for t in timesteps] == [PARTICLES if t >= first_alone else 1 for t in timesteps]


def test_few_steps_together_and_more_for_the_chosen_one(problem):
    prior, observation = problem
    evaluated, heard, eps = [], [], prior.eps
    prior.eps = lambda z_t, t: (evaluated.append(int(t[0])), eps(z_t, t))[1]
    found = dps_particles_sample(
        prior, observation, noise_source(BATCH), steps=STEPS, start=1.0, particles=PARTICLES, until=0.5, early=0.25,
        on_step=lambda index, step, residual: heard.append(step),
    )  # fmt: skip
    assert found.isfinite().all()
    timesteps = [step.t for step in heard]
    assert timesteps[:5] == [59, 53, 47, 42, 36]  # a quarter of the steps, down to 30
    assert timesteps[5:8] == [30, 28, 26]
    assert len(timesteps) == STEPS
    assert all(a.alpha_bar_prev == b.alpha_bar_t for a, b in pairwise(heard))  # each leads to where the next begins
    assert [evaluated.count(t) for t in timesteps] == [PARTICLES] * 6 + [1] * 14


def test_a_particle_that_is_lost_is_not_the_end_of_its_sample(problem):
    prior, observation = problem
    draws = normal(PARTICLES * (STEPS + 1), BATCH, *SHAPE, seed=3)
    draws[1, 0] = torch.nan  # the second particle of the first sample
    draws[:PARTICLES, 1] = torch.nan  # all of the second sample
    heard = []
    found = dps_particles_sample(
        prior, observation, replay(draws), steps=STEPS, particles=PARTICLES, on_step=lambda *args: heard.append(args[2])
    )
    assert found.isfinite().flatten(1).all(dim=1).tolist() == [True, False, True, True, True]
    assert torch.stack(heard).isfinite().all(dim=0).tolist() == [True, False, True, True, True]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"particles": 0}, "particles"),
        ({"until": 0.9}, "until"),
        ({"early": 0.0}, "early"),
        ({"early": 0.5, "until": 0.0}, "early"),
        ({"max_move": -1.0}, "max_move"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_bad_settings_are_named(problem, wrong, message):
    prior, observation = problem
    with pytest.raises(UserError, match=message):
        dps_particles_sample(prior, observation, noise_source(BATCH), steps=STEPS, **wrong)
