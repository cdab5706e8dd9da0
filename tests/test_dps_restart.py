"""Going back to more noise: the levels, and the variance that is left without guidance."""

import math

import pytest
import torch
from test_dps import SHAPE, CurvedPrior, GaussianPrior, noise_source, normal, replay, seen

from vsr_lightning.degradation.frame_mask import mask_frames
from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.inference.dps_restart import descents, dps_restart_sample
from vsr_lightning.models.schedule import LinearSchedule


def test_descents_share_the_steps_by_their_lengths():
    parts = descents(LinearSchedule(), steps=170, start=0.85, restarts=[0.7, 0.5, 0.4], low=0.1)
    timesteps = [[step.t for step in part] for part in parts]
    assert [len(part) for part in parts] == pytest.approx([170 * span / 2.15 for span in (0.75, 0.6, 0.4, 0.4)], abs=1)
    assert sum(map(len, parts)) == 170
    assert [part[0] for part in timesteps] == [849, 699, 500, 400]
    low = LinearSchedule().respaced(1, start=0.1)[0].alpha_bar_t
    for part in parts[:-1]:
        assert part[-1].alpha_bar_prev == pytest.approx(low)
    assert (timesteps[-1][-1], parts[-1][-1].alpha_bar_prev) == (0, 1.0)


def test_descents_are_spaced_as_told():
    schedule = LinearSchedule()
    for spacing in ("uniform", "log_snr", "karras"):
        parts = descents(schedule, 60, 0.85, [0.5], 0.2, spacing, eta=0.0)
        assert [part[0].t for part in parts] == [849, 500]
        assert sum(map(len, parts)) == 60
        assert {step.eta for part in parts for step in part} == {0.0}
    even, by_log_snr = (descents(schedule, 60, 0.85, [0.5], 0.2, spacing)[-1] for spacing in ("uniform", "log_snr"))
    assert by_log_snr[-2].t < even[-2].t  # closer to the clean end, where log-SNR changes fastest


@pytest.mark.parametrize("eta", [1.0, 0.0])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("restarts", [[], [0.7, 0.5]])
def test_unguided_variance_is_the_closed_form(restarts, temperature, eta):
    """The sampler is linear for z_0 ~ N(0, I): its variance is the sum of the squared gains of its draws."""
    levels = {"start": 1.0, "restarts": restarts, "low": 0.2, "eta": eta}
    parts = descents(LinearSchedule(), steps=60, **levels)
    variance, level = 1.0, None
    for part in parts:
        top = part[0].alpha_bar_t
        if level is not None and top < level:
            variance = top / level * variance + 1 - top / level
        for step in part:
            gain = step.z_t_weight + step.z0_weight * step.alpha_bar_t**0.5  # z0_hat = sqrt(alpha_bar) z_t
            factor = temperature if part is parts[-1] and step.t <= 400 else 1.0
            last, variance = variance, gain**2 * variance + (factor * step.sigma_t) ** 2
        level = part[-1].alpha_bar_prev
    expected = last * parts[-1][-1].alpha_bar_t

    draws = 1 + 60 + len(restarts)
    impulses = torch.eye(draws, dtype=torch.float64).view(draws, draws, 1, 1, 1, 1)
    observation = seen(torch.zeros(draws, 1, 1, 1, 1, dtype=torch.float64))
    gains = dps_restart_sample(
        GaussianPrior(), observation, replay(impulses), steps=60, zeta=0.0, temperature=temperature, **levels
    )
    assert gains.square().sum().item() == pytest.approx(expected, rel=1e-4)
    if temperature == 1:
        assert expected == pytest.approx(1, abs=0.25)  # few steps of DDPM draw too little


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"restarts": [0.6, 0.05]}, "low: 0.1 is not between 0 and the lowest of sampler.restarts, 0.05"),
        ({"restarts": [0.9]}, "do not go down from sampler.start, 0.85"),
        ({"restarts": [0.4, 0.6]}, "do not go down"),
        ({"restarts": [0.6, math.nan]}, "restarts: nan is not from 0 to 1"),
        ({"start": math.nan, "restarts": []}, "start: nan"),
        ({"low": 0.0}, "low"),
        ({"low": -0.3, "restarts": []}, "low"),
        ({"restarts": [0.5] * 9, "steps": 8}, "too few for 10 descents"),
        ({"steps": 5000}, "5000 are more than the [0-9]+ timesteps of all descents"),
        ({"steps": 0, "restarts": []}, "too few"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"cool_from": math.nan}, "cool_from"),
        ({"cool_from": -3.0}, "cool_from"),
    ],
)
def test_bad_levels_are_named(wrong, message):
    options = {"steps": 20, "start": 0.85, "restarts": [0.6, 0.4], "low": 0.1} | wrong
    with pytest.raises(UserError, match=message):
        dps_restart_sample(GaussianPrior(), seen(torch.zeros(1, *SHAPE)), noise_source(1), **options)


@pytest.mark.parametrize("gradient_blur", [0.0, 1.5])
def test_without_restarts_it_is_polyaks_sampler(gradient_blur):
    """Wide gradients too, of videos whose last frame nobody observes."""
    y, draws = normal(3, *SHAPE, seed=1), normal(21, 3, *SHAPE, seed=2)
    mask = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    observation = seen(mask_frames(y, mask), lambda x: mask_frames(x, mask), noise_norm=0.1)
    options = {"steps": 20, "zeta": 0.3, "start": 0.8, "temperature": 0.5, "gradient_blur": gradient_blur}
    prior = CurvedPrior(LinearSchedule(60, 1e-3, 0.2))
    alone = dps_restart_sample(prior, observation, replay(draws), restarts=[], **options)
    assert torch.equal(alone, dps_polyak_sample(prior, observation, replay(draws), **options))
    if gradient_blur:
        narrow = dps_polyak_sample(prior, observation, replay(draws), **(options | {"gradient_blur": 0.0}))
        assert (alone - narrow).abs().amax() > 1e-3


def test_a_schedule_of_few_steps_needs_no_levels_of_a_blur_that_is_off():
    observation = seen(torch.zeros(1, *SHAPE))
    x_hat = dps_restart_sample(
        GaussianPrior(LinearSchedule(2)), observation, noise_source(1), steps=1, start=1.0, restarts=[]
    )
    assert x_hat.isfinite().all()
