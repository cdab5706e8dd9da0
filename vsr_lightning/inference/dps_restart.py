"""Posterior sampling that goes back: noise is added and removed again, guided, before the last details are drawn.

What a sample has settled on at high noise, where guidance knows least, a single descent never takes back. Going up
again does (Restart, Xu et al. 2023, which descends without noise; RePaint, Lugmayr et al. 2022, with noise, as here).
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from vsr_lightning.config import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import estimate, polyak_move
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import LinearSchedule, Step


def dps_restart_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 250,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    restarts: int = 2,
    high: float = 0.5,
    low: float = 0.1,
    max_move: float = 0.3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation: one posterior sample each, (B, F, C, H, W).

    Steps are those of `dps_polyak_sample`, from `start` down to `low`, then `restarts` times from `high` to `low`, then
    from `low` to 0. Levels are shares of the schedule.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        steps: of all descents together, shared out by their lengths.
        zeta: share of the misfit to remove in a step, one number or (B,).
        max_move: see `polyak_move`.

    Raises:
        UserError: the levels are not in order, or there are fewer steps than descents.
    """
    zeta = torch.as_tensor(zeta, dtype=torch.float32, device=observation.y.device)
    z_t = noise()
    index = 0
    level = None  # alpha_bar of z_t
    for descent in descents(prior.schedule, steps, start, restarts, high, low):
        top = descent[0].alpha_bar_t
        if level is not None and top < level:
            z_t = (top / level) ** 0.5 * z_t + (1 - top / level) ** 0.5 * noise()
        for step in descent:
            guess = estimate(prior, observation, z_t, step)
            move = polyak_move(guess, observation.noise_norm, zeta, max_move)
            z_t = step.z_t_weight * z_t + step.z0_weight * guess.z0_hat + step.sigma_t * noise() - move
            if on_step is not None:
                on_step(index, step, guess.residual)
            index += 1
        level = descent[-1].alpha_bar_prev
    return guess.x_hat


def descents(
    schedule: LinearSchedule, steps: int, start: float, restarts: int, high: float, low: float
) -> list[list[Step]]:
    """The steps of each descent, evenly spaced in t over all of them. Raises UserError."""
    if not 0 < low < high <= start:
        raise UserError(f"sampler: 0 < low ({low}) < high ({high}) <= start ({start}) is needed")
    if restarts < 0:
        raise UserError(f"sampler.restarts: {restarts} is negative")
    spans = [(start, low), *[(high, low)] * restarts, (low, 0.0)]
    lengths = [top - bottom for top, bottom in spans]
    shares = [sum(lengths[:count]) / sum(lengths) for count in range(len(spans) + 1)]
    counts = [after - before for before, after in pairwise(round(share * steps) for share in shares)]
    if min(counts) < 1:
        raise UserError(f"sampler.steps: {steps} are too few for {restarts} restarts")
    return [
        schedule.respaced(count, start=top, stop=bottom) for count, (top, bottom) in zip(counts, spans, strict=True)
    ]
