"""Posterior sampling with particles: several samples descend, and the one that explains the observation best goes on.

With a third of the schedule left, a sample has settled on what the video shows, and those that explain the observation
worse then tend to end further from the truth, although all fit it in the end. The weights of sequential Monte Carlo
(twisted diffusion sampler, Wu et al. 2023) are then so uneven, exp(-residual^2 / 2 variance) over hundreds of numbers,
that resampling by them is to keep the best.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import Descent, Estimate, PolyakGuidance, WideGradient, timestep_of
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import LinearSchedule, Step


def dps_particles_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 100,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    particles: int = 4,
    until: float = 0.38,
    early: float | None = None,
    temperature: float = 1.0,
    max_move: float = 0.3,
    gradient_blur: float = 0.0,
    gradient_blur_from: float = 0.3,
    gradient_blur_until: float = 0.05,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation, (B, F, C, H, W): of each the best of several samples, at one noise level.

    So it is no draw from the posterior: it leans to what fits. Each particle takes the steps of `dps_polyak_sample`. A
    step with K particles costs as much as K steps.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        zeta: share of the misfit to remove in a step, one number or (B,).
        start: the first timestep, as a share of the schedule.
        particles: K, of each sample.
        until: the timestep, as a share of the schedule, from which only the best particle of a sample goes on.
        early: share of the steps down to there, where each costs K times as much; None spaces all evenly.
        temperature: factor on the noise that the steps of the chosen particle draw, see `noise_scale`.
        max_move: see `polyak_move`.
        gradient_blur, gradient_blur_from, gradient_blur_until: see `WideGradient`, as in `dps_polyak_sample`.

    Raises:
        UserError: `particles`, `until` or `early` is out of range.
    """
    if particles < 1:
        raise UserError(f"sampler.particles: {particles} is not at least 1")
    if not 0 <= until < start:
        raise UserError(f"sampler.until: {until} is not from 0 up to sampler.start, {start}")
    last_together = timestep_of(until, prior.schedule, "until")
    guidance = PolyakGuidance(observation.noise_norm, zeta, max_move)
    wide = WideGradient.between(prior.schedule, gradient_blur, gradient_blur_from, gradient_blur_until)
    descent = Descent(prior, observation, noise, guidance, cool_from=last_together, wide=wide)
    z_t = [noise() for _ in range(particles)]
    for index, step in enumerate(_in_two_paces(prior.schedule, steps, start, until, early)):
        # One after the other: the batch shape, and so the compiled networks, stay the same.
        guesses = [descent.look(z, step) for z in z_t]
        residuals = torch.stack([guess.residual for guess in guesses]).nan_to_num(nan=torch.inf)
        if step.t <= last_together and len(guesses) > 1:
            best = residuals.argmin(dim=0)
            z_t, guesses = [_choose(z_t, best)], [_best_estimate(guesses, best)]
        z_t = [descent.leave(z, guess, step, temperature) for z, guess in zip(z_t, guesses, strict=True)]
        if on_step is not None:
            on_step(index, step, residuals.amin(dim=0))  # not finite only if no particle is
    return guesses[0].x_hat


def _in_two_paces(schedule: LinearSchedule, steps: int, start: float, until: float, early: float | None) -> list[Step]:
    """Evenly spaced steps, or the share `early` of them from `start` to `until` and the others from there."""
    if early is None:
        return schedule.respaced(steps, start=start)
    first = round(early * steps)
    if not 0 < first < steps or until == 0:
        raise UserError(f"sampler.early: {early} of {steps} steps leaves none before or after sampler.until, {until}")
    return [*schedule.respaced(first, start=start, stop=until), *schedule.respaced(steps - first, start=until)]


def _best_estimate(guesses: Sequence[Estimate], best: Tensor) -> Estimate:
    return Estimate(*(_choose([getattr(guess, field.name) for guess in guesses], best) for field in fields(Estimate)))


def _choose(values: Sequence[Tensor], best: Tensor) -> Tensor:
    """Each sample from the one of K tensors (B, ...) that `best` (B,) says."""
    return torch.stack(list(values))[best, torch.arange(len(best), device=best.device)]
