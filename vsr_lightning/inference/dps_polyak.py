"""Posterior sampling in few steps: Algorithm 1 with Polyak's step size, from where z_t begins to know anything.

A constant guidance scale that suits some noise levels is too small or too large for others, and the fewer the steps,
the more that costs: samples end before they fit what was observed. Here a step removes a given share of the misfit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.models.prior import Prior


@torch.enable_grad()  # a trainer's prediction loop runs without gradients
def dps_polyak_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 100,
    zeta: float | Tensor = 0.5,
    start: float = 0.85,
    spacing: str = "uniform",
    max_move: float = 0.3,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation: one posterior sample each, (B, F, C, H, W).

    With r = ||y - y_hat|| and its gradient g, the step along g is Polyak's (Polyak 1987, section 5.3.2),

        z_t -= zeta * max(r - r_min, 0) / ||g||^2 * g,

    which at zeta = 1 and to first order takes r to r_min, here the norm that the sensor noise leaves to the truth. The
    rest is Algorithm 1 (see `dps.py`).

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        zeta: share of the misfit to remove in a step, one number or (B,).
        start: the first timestep, as a share of the schedule. Above 0.85 z_t is noise but for a thousandth of its
            variance, and a step of any size changes next to nothing.
        spacing: of the timesteps, see `LinearSchedule.respaced`.
        max_move: largest root mean square of a step, in standard deviations of the latent: near pure noise the gradient
            says little, and Polyak's step would be huge.
    """
    y, degrade = observation.y, observation.degrade
    zeta = torch.as_tensor(zeta, dtype=torch.float32, device=y.device)
    z_t = noise()
    longest = max_move * z_t[0].numel() ** 0.5
    for index, step in enumerate(prior.schedule.respaced(steps, spacing, start)):
        z_t = z_t.detach().requires_grad_()
        eps = prior.eps(z_t, torch.full((len(y),), step.t, device=y.device))
        z0_hat = (z_t - (1 - step.alpha_bar_t) ** 0.5 * eps) / step.alpha_bar_t**0.5  # Eq. 9
        x_hat = prior.decode(z0_hat)
        residual = torch.linalg.vector_norm((y - degrade(x_hat)).flatten(1), dim=1)
        (gradient,) = torch.autograd.grad(residual.sum(), z_t)
        with torch.no_grad():
            slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
            misfit = (residual - observation.noise_norm).clamp_min(0)
            # Divided one after the other: the square of a small slope underflows. No slope, no step.
            length = torch.where(slope > 0, (zeta * misfit / slope).clamp_max(longest) / slope, 0)
            z_t = step.z_t_weight * z_t + step.z0_weight * z0_hat + step.sigma_t * noise()  # DDPM, Eq. 7
            z_t = z_t - length.view(-1, 1, 1, 1, 1) * gradient
        if on_step is not None:
            on_step(index, step, residual.detach())
    return x_hat.detach()
