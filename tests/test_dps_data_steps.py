"""Several data steps a level: where the looks go, and one look by hand."""

import math

import numpy as np
import pytest
import torch
from test_dps import SHAPE, SIZE, GaussianPrior, noise_source, normal, replay, seen

from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps_data_steps import dps_data_steps_sample
from vsr_lightning.models.schedule import LinearSchedule


@pytest.mark.parametrize("repeats", [1, 3])
def test_looks_are_repeated_in_the_middle_alone(repeats):
    heard: list[tuple[int, int]] = []
    dps_data_steps_sample(
        GaussianPrior(), seen(torch.zeros(1, *SHAPE, dtype=torch.float64)[:, :1]), noise_source(1),
        steps=80, repeats=repeats, high=0.6, low=0.3, on_step=lambda index, step, _: heard.append((index, step.t)),
    )  # fmt: skip
    assert [index for index, _ in heard] == list(range(80))
    timesteps, looks = np.unique([t for _, t in heard], return_counts=True)
    middle = (timesteps > round(0.3 * 999)) & (timesteps <= round(0.6 * 999))
    assert set(looks[middle]) == {repeats}
    assert set(looks[~middle]) == {1}
    gaps = np.diff(timesteps)
    assert gaps.max() < 1.3 * gaps.min()  # levels stay evenly spaced, up to whole numbers of steps


def test_each_look_moves_by_polyaks_step_at_its_own_level():
    """A Gaussian prior and a linear decoder, all gradients by hand; the level is that of the next diffusion step."""
    schedule, zeta = LinearSchedule(30, 1e-3, 0.2), 0.4
    decoder = normal(SIZE, SIZE, seed=3)
    A = decoder.numpy()[: SIZE // 2]  # decoding, then frame 0 alone
    draws, y = normal(9, 2, *SHAPE, seed=4), normal(2, 1, *SHAPE[1:], seed=5)
    levels: list = []
    x_hat = dps_data_steps_sample(
        GaussianPrior(schedule, decoder), seen(y), replay(draws), steps=9, zeta=zeta, start=0.9, high=0.6, low=0.3,
        repeats=2, max_move=math.inf, on_step=lambda index, step, _: levels.append(step),
    )  # fmt: skip

    z, drawn = draws[0].flatten(1).numpy(), 0
    for step, following in zip(levels, [*levels[1:], None], strict=True):
        bar = schedule.alpha_bar[step.t].item()
        z0_hat = bar**0.5 * z
        residual = y.flatten(1).numpy() - z0_hat @ A.T
        norm = np.linalg.norm(residual, axis=1, keepdims=True)
        gradient = -(bar**0.5) * residual @ A / norm
        move = zeta * norm / np.square(gradient).sum(axis=1, keepdims=True) * gradient
        if following is not None and following.t == step.t:
            z = z - move
        else:
            drawn += 1
            z = step.z_t_weight * z + step.z0_weight * z0_hat + step.sigma_t * draws[drawn].flatten(1).numpy() - move
    assert drawn < len(levels)
    np.testing.assert_allclose(x_hat.flatten(1), z0_hat @ decoder.numpy().T, atol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"repeats": 0}, "repeats: 0 is not at least 1"),
        ({"high": 0.9}, "high: 0.9 is not between"),
        ({"high": 0.2, "low": 0.3}, "high: 0.2"),
        ({"low": math.nan}, "high"),
        ({"low": 0.0}, "low, 0.0, above 0"),
        ({"steps": 4, "repeats": 3}, "too few for 3 data steps"),
        ({"steps": 0}, "too few"),
        ({"steps": 2000}, "2000 are more than the 1448 that"),
        ({"start": 1.5}, "start: 1.5 is not from 0 to 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"cool_from": 2.0}, "cool_from"),
    ],
)
def test_bad_settings_are_named(wrong, message):
    options = {"steps": 20} | wrong
    with pytest.raises(UserError, match=message):
        dps_data_steps_sample(GaussianPrior(), seen(torch.zeros(1, *SHAPE)), noise_source(1), **options)
