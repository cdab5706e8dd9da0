"""Posterior sampling in few steps: Algorithm 1 with Polyak's step size, from where z_t begins to know anything.

A constant guidance scale that suits some noise levels is too small or too large for others, and the fewer the steps,
the more that costs: samples end before they fit what was observed. Here a step removes a given share of the misfit.
"""

from collections.abc import Callable

from torch import Tensor

from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.inference.guidance import Descent, PolyakGuidance, WideGradient, timestep_of
from vsr_lightning.models.prior import Prior


def dps_polyak_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 100,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    spacing: str = "uniform",
    eta: float = 1.0,
    temperature: float = 1.0,
    cool_from: float = 0.4,
    max_move: float = 0.3,
    zeta_end: float | None = None,
    momentum: float = 0.0,
    gradient_blur: float = 0.0,
    gradient_blur_from: float = 0.3,
    gradient_blur_until: float = 0.05,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation, (B, F, C, H, W); at temperature 1 each is one posterior sample.

    Algorithm 1 (see `dps.py`), but for the length of the steps of line 8, which `polyak_move` gives.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        zeta: share of the misfit to remove in a step, one number or (B,).
        start: the first timestep, as a share of the schedule. Above 0.85 z_t is noise but for a thousandth of its
            variance, and a step of any size changes next to nothing.
        spacing, eta: of the timesteps, and the noise that steps draw, see `LinearSchedule.respaced`.
        temperature: factor on the noise that steps draw from `cool_from` of the schedule down, see `noise_scale`; at 1
            restorations are posterior samples.
        max_move: see `polyak_move`.
        zeta_end, momentum: see `PolyakGuidance`.
        gradient_blur, gradient_blur_from, gradient_blur_until: see `WideGradient`; at 0 pixels the gradient is that of
            the observation itself. Levels are shares of the schedule.
    """
    guidance = PolyakGuidance(observation.noise_norm, zeta, max_move, zeta_end, momentum)
    wide = WideGradient.between(prior.schedule, gradient_blur, gradient_blur_from, gradient_blur_until)
    settled = timestep_of(cool_from, prior.schedule, "cool_from")
    descent = Descent(prior, observation, noise, guidance, settled, on_step, wide)
    _, x_hat = descent(noise(), prior.schedule.respaced(steps, spacing, start, eta), temperature)
    return x_hat
