"""Posterior sampling with several data steps at some noise levels: more guidance where it pays, at the same cost.

Between two steps of the diffusion, z_t moves several times along the gradient at one noise level, each time looking
anew (the repeated guidance of FreeDoM, Yu et al. 2023, Algorithm 2, without its return to more noise, which is
`dps_restart`). Each look costs a step, so fewer levels are left.
"""

import math
from collections.abc import Callable

from torch import Tensor

from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import Descent, PolyakGuidance, timestep_of
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import LinearSchedule, Step


def dps_data_steps_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 100,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    repeats: int = 3,
    high: float = 0.6,
    low: float = 0.3,
    temperature: float = 1.0,
    cool_from: float = 0.4,
    max_move: float = 0.3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation, (B, F, C, H, W); at temperature 1 each is one posterior sample.

    The steps are those of `dps_polyak_sample`, but between `high` and `low` `repeats` data steps come to each.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        steps: looks at the observation, those of repeats counted.
        zeta: share of the misfit to remove in each data step, one number or (B,).
        start, high, low: shares of the schedule, in this order from the noise down.
        temperature, cool_from: see `noise_scale`.
        max_move: see `polyak_move`.

    Raises:
        UserError: a level is out of order, or there are too few steps or too many.
    """
    levels = _levels(prior.schedule, steps, start, high, low, repeats)
    guidance = PolyakGuidance(observation.noise_norm, zeta, max_move)
    settled = timestep_of(cool_from, prior.schedule, "cool_from")
    descent = Descent(prior, observation, noise, guidance, settled, on_step)
    z_t = noise()
    for step, looks in levels:
        for _ in range(looks - 1):
            z_t = z_t - guidance.move(descent.look(z_t, step), step)
        z_t, x_hat = descent.step(z_t, step, temperature)
    return x_hat


def _levels(
    schedule: LinearSchedule, steps: int, start: float, high: float, low: float, repeats: int
) -> list[tuple[Step, int]]:
    """The steps of the diffusion, evenly spaced in t, and how many looks each takes: `steps` in all."""
    timestep_of(start, schedule, "start")
    if repeats < 1:
        raise UserError(f"sampler.repeats: {repeats} is not at least 1")
    if not 0 < low < high < start <= 1:
        raise UserError(f"sampler.high: {high} is not between sampler.low, {low}, above 0, and sampler.start, {start}")
    per_share = steps / (start - high + repeats * (high - low) + low)
    middle = round((high - low) * per_share)
    first = round((start - high) * per_share)
    last = steps - first - repeats * middle
    if per_share > schedule.num_steps - 1:
        most = math.floor(steps / per_share * (schedule.num_steps - 1))
        raise UserError(f"sampler.steps: {steps} are more than the {most} that a look at every timestep takes")
    if min(first, middle, last) < 1:
        raise UserError(f"sampler.steps: {steps} are too few for {repeats} data steps at each level; take more")
    return [
        *((step, 1) for step in schedule.respaced(first, start=start, stop=high)),
        *((step, repeats) for step in schedule.respaced(middle, start=high, stop=low)),
        *((step, 1) for step in schedule.respaced(last, start=low)),
    ]
