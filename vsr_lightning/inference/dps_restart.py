"""Posterior sampling that goes back: noise is added and removed again, guided, from ever lower noise levels.

What a sample has settled on at high noise, where guidance knows least, a single descent never takes back. Going up
again does (Restart, Xu et al. 2023, which descends without noise; RePaint, Lugmayr et al. 2022, with noise, as here):
much of the video is drawn anew, but now beside a rest that fits the observation already.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor

from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import Descent, PolyakGuidance, WideGradient, timestep_of
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
    zeta_end: float | None = None,
    momentum: float = 0.0,
    gradient_blur: float = 0.0,
    gradient_blur_from: float = 0.3,
    gradient_blur_until: float = 0.05,
    spacing: str = "uniform",
    eta: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation, (B, F, C, H, W); at temperature 1 each is one posterior sample.

    Steps are those of `dps_polyak_sample`: from `start` down to `low`, then from each level of `restarts` down to
    `low`, but from the last of them down to 0. Levels are shares of the schedule, and no level is above an earlier one.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        steps: of all descents together, shared out by their lengths.
        zeta: share of the misfit to remove in a step, one number or (B,).
        temperature: factor on the noise that the steps of the last descent draw from `cool_from` of the schedule
            down, see `noise_scale`; at 1 restorations are posterior samples.
        max_move: see `polyak_move`.
        zeta_end, momentum: see `PolyakGuidance`.
        gradient_blur, gradient_blur_from, gradient_blur_until: see `WideGradient`; at 0 pixels the gradient is that of
            the observation itself. Levels are shares of the schedule.
        spacing, eta: of each descent, see `LinearSchedule.respaced`; eta 0 is the original Restart.

    Raises:
        UserError: a level is out of range, or there are fewer steps than descents.
    """
    guidance = PolyakGuidance(observation.noise_norm, zeta, max_move, zeta_end, momentum)
    wide = WideGradient.between(prior.schedule, gradient_blur, gradient_blur_from, gradient_blur_until)
    settled = timestep_of(cool_from, prior.schedule, "cool_from")
    parts = descents(prior.schedule, steps, start, restarts, low, spacing, eta)
    descent = Descent(prior, observation, noise, guidance, settled, on_step, wide)
    z_t = noise()
    for number, part in enumerate(parts):
        if number > 0:
            kept = part[0].alpha_bar_t / parts[number - 1][-1].alpha_bar_prev
            z_t = kept**0.5 * z_t + (1 - kept) ** 0.5 * noise()
        z_t, x_hat = descent(z_t, part, temperature if number == len(parts) - 1 else 1.0)
    return x_hat


def descents(
    schedule: LinearSchedule,
    steps: int,
    start: float,
    restarts: Sequence[float],
    low: float,
    spacing: str = "uniform",
    eta: float = 1.0,
) -> list[list[Step]]:
    """The steps of each descent, shared out by their lengths in t. Raises UserError."""
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
        schedule.respaced(count, spacing, top, eta, stop)
        for count, top, stop in zip(counts, starts, stops, strict=True)
    ]
