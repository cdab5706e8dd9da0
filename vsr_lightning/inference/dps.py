"""Algorithm 1: diffusion posterior sampling of a video in latent space (Chung et al. 2022; VDM-VSR, Eq. 14)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import Step

Degrade = Callable[[Tensor], Tensor]  # x (B, F, C, H, W) -> y_hat (B, F, C, h, w): M(H(x)), Eq. 15
OnStep = Callable[[int, Step, Tensor], None]  # index of the step, its scalars, residual norms (B,)


@dataclass
class Observation:
    """What is known of B videos: y = M(H(x)) + noise (Eq. 15)."""

    y: Tensor  # (B, F, C, h, w)
    degrade: Degrade
    # (B,), the root mean square of ||y - M(H(x))|| for the true video: sigma_y times the root of the numbers seen.
    noise_norm: Tensor
    blur: Sequence[float] = ()  # of each video before decimation: standard deviation, HR pixels; empty is none


@torch.enable_grad()  # a trainer's prediction loop runs without gradients
def dps_sample(
    prior: Prior,
    observation: Observation,
    noise: Callable[[], Tensor],
    *,
    steps: int = 1000,
    zeta: float | Tensor = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Restore videos from their observation: one posterior sample each, (B, F, C, H, W).

    The gradient runs through the degradation, the decoder and the DiT. `noise()` draws (B, F, c, h, w), sample by
    sample from its own stream. `zeta` is the guidance scale, one number or (B,): `z_t -= zeta * grad ||y - y_hat||`.
    Samples do not interact: a norm over the whole batch would make a result depend on its neighbours.
    """
    y, degrade = observation.y, observation.degrade
    zeta = torch.as_tensor(zeta, dtype=torch.float32, device=y.device).reshape(-1, 1, 1, 1, 1)
    z_t = noise()  # line 1
    for index, step in enumerate(prior.schedule.respaced(steps)):  # line 2
        z_t = z_t.detach().requires_grad_()
        t = torch.full((len(y),), step.t, device=y.device)
        eps = prior.eps(z_t, t)  # line 3: the score is -eps / sqrt(1 - alpha_bar_t)
        # Line 4 prints alpha_t under the root; Eq. 9, used here, has alpha_bar_t.
        z0_hat = (z_t - (1 - step.alpha_bar_t) ** 0.5 * eps) / step.alpha_bar_t**0.5
        x_hat = prior.decode(z0_hat)
        y_hat = degrade(x_hat)  # line 7
        # Line 8 prints the squared norm, Eq. 14 and the DPS code the norm: eta_t = zeta / (2 norm).
        residual = torch.linalg.vector_norm((y - y_hat).flatten(1), dim=1)
        (gradient,) = torch.autograd.grad(residual.sum(), z_t)
        with torch.no_grad():
            # Lines 5 and 6: the posterior of DDPM (Eq. 7); the roots in the printed line 6 are too long.
            z_t = step.z_t_weight * z_t + step.z0_weight * z0_hat + step.sigma_t * noise()
            z_t = z_t - zeta * gradient  # line 8
        if on_step is not None:
            on_step(index, step, residual.detach())
    return x_hat.detach().clone()  # lines 10 and 11: D(z0_hat) of the last step, out of a captured decoder's way
