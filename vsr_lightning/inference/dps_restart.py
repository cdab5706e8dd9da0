"""Posterior sampling that goes back: noise is added and removed again, guided, from ever lower noise levels.

What a sample has settled on at high noise, where guidance knows least, a single descent never takes back. Going up
again does (Restart, Xu et al. 2023, which descends without noise; RePaint, Lugmayr et al. 2022, with noise, as here):
much of the video is drawn anew, but now beside a rest that fits the observation already.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vsr_lightning.config import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import estimate, noise_scale, polyak_move, timestep_of
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
    restarts: Sequence[float] = (0.7, 0.6, 0.5, 0.4),
    low: float = 0.1,
    temperature: float = 1.0,
    cool_from: float = 0.4,
    max_move: float = 0.3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation: one posterior sample each, (B, F, C, H, W).

    Steps are those of `dps_polyak_sample`: from `start` down to `low`, then from each level of `restarts` down to
    `low`, but from the last of them down to 0. Levels are shares of the schedule, and no level is above an earlier one.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        steps: of all descents together, shared out by their lengths.
        zeta: share of the misfit to remove in a step, one number or (B,).
        temperature: factor on the noise that the steps of the last descent draw from `cool_from` of the schedule
            down, see `noise_scale`; at 1 restorations are posterior samples.
        max_move: see `polyak_move`.

    Raises:
        UserError: a level is out of range, or there are fewer steps than descents.
    """
    zeta = torch.as_tensor(zeta, dtype=torch.float32, device=observation.y.device)
    settled = timestep_of(cool_from, prior.schedule, "cool_from")
    parts = descents(prior.schedule, steps, start, restarts, low)
    z_t = noise()
    index = 0
    for number, descent in enumerate(parts):
        if number > 0:
            kept = descent[0].alpha_bar_t / parts[number - 1][-1].alpha_bar_prev
            z_t = kept**0.5 * z_t + (1 - kept) ** 0.5 * noise()
        factor = temperature if number == len(parts) - 1 else 1.0
        for step in descent:
            guess = estimate(prior, observation, z_t, step)
            move = polyak_move(guess, observation.noise_norm, zeta, max_move)
            drawn = noise_scale(step, factor, settled) * noise()
            z_t = step.z_t_weight * z_t + step.z0_weight * guess.z0_hat + drawn - move
            if on_step is not None:
                on_step(index, step, guess.residual)
            index += 1
    return guess.x_hat


def descents(
    schedule: LinearSchedule, steps: int, start: float, restarts: Sequence[float], low: float
) -> list[list[Step]]:
    """The steps of each descent, evenly spaced in t over all of them. Raises UserError."""
    tops = [timestep_of(start, schedule, "start"), *(timestep_of(level, schedule, "restarts") for level in restarts)]
    bottom = timestep_of(low, schedule, "low")
    if any(above < below for above, below in pairwise(tops)):
        raise UserError(f"sampler.restarts: {[*restarts]} do not go down from sampler.start, {start}")
    if restarts and not 0 < bottom < tops[-1]:
        raise UserError(f"sampler.low: {low} is not between 0 and the lowest of sampler.restarts, {restarts[-1]}")
    lengths = [top - bottom for top in tops[:-1]] + [tops[-1]]
    shares = [sum(lengths[:count]) / max(1, sum(lengths)) for count in range(len(lengths) + 1)]
    counts = [after - before for before, after in pairwise(round(share * steps) for share in shares)]
    if min(counts) < 1:
        raise UserError(f"sampler.steps: {steps} are too few for {len(tops)} descents")
    if steps > sum(lengths):
        raise UserError(f"sampler.steps: {steps} are more than the {sum(lengths)} timesteps of all descents")
    starts, stops = [start, *restarts], [*[low] * len(restarts), 0.0]
    return [
        schedule.respaced(count, start=top, stop=stop) for count, top, stop in zip(counts, starts, stops, strict=True)
    ]
