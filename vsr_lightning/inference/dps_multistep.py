"""Posterior sampling with a second-order solver: DPM-Solver++(2M) and its stochastic kind, with Polyak's step size.

A step goes along a line through this and the last estimate of z_0 instead of along this one alone (Lu et al. 2022,
"DPM-Solver++": 2M, and for the reverse SDE SDE-DPM-Solver++(2M)), so fewer steps follow the same unguided path. The
guidance is added after each step, and is of first order.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import estimate, polyak_move
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import Step


def dps_multistep_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 100,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    spacing: str = "uniform",
    stochastic: bool = True,
    max_move: float = 0.3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation: one posterior sample each, (B, F, C, H, W).

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        zeta: share of the misfit to remove in a step, one number or (B,).
        start, spacing: of the timesteps, see `LinearSchedule.respaced`.
        stochastic: solve the reverse SDE instead of the ODE.
        max_move: see `polyak_move`.

    Raises:
        UserError: a setting is out of range.
    """
    zeta = torch.as_tensor(zeta, dtype=torch.float32, device=observation.y.device)
    z_t = noise()
    last_z0, last_h = None, 0.0
    for index, step in enumerate(prior.schedule.respaced(steps, spacing, start)):
        guess = estimate(prior, observation, z_t, step)
        if on_step is not None:
            on_step(index, step, guess.residual)
        if step.alpha_bar_prev == 1:
            break
        h = log_snr(step.alpha_bar_prev) - log_snr(step.alpha_bar_t)
        ahead = guess.z0_hat if last_z0 is None else guess.z0_hat + h / (2 * last_h) * (guess.z0_hat - last_z0)
        z_weight, z0_weight, sigma = weights(step, h, stochastic)
        move = polyak_move(guess, observation.noise_norm, zeta, max_move)
        z_t = z_weight * z_t + z0_weight * ahead + sigma * noise() - move
        last_z0, last_h = guess.z0_hat, h
    return guess.x_hat


def log_snr(alpha_bar: float) -> float:
    """The lambda of DPM-Solver: log(sqrt(alpha_bar) / sqrt(1 - alpha_bar))."""
    return 0.5 * math.log(alpha_bar / (1 - alpha_bar))


def weights(step: Step, h: float, stochastic: bool) -> tuple[float, float, float]:
    """Coefficients of z_t and of the estimate of z_0, and the noise to draw, over a step of h in lambda."""
    shrink = ((1 - step.alpha_bar_prev) / (1 - step.alpha_bar_t)) ** 0.5
    if not stochastic:
        return shrink, step.alpha_bar_prev**0.5 * (1 - math.exp(-h)), 0.0
    forgotten = 1 - math.exp(-2 * h)
    sigma = ((1 - step.alpha_bar_prev) * forgotten) ** 0.5
    return shrink * math.exp(-h), step.alpha_bar_prev**0.5 * forgotten, sigma
