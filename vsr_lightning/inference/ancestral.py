"""Unguided sampling from the prior: DDPM's ancestral sampler (Ho et al. 2020, Algorithm 2), steps respaced."""

from collections.abc import Callable

import torch
from torch import Tensor

from vsr_lightning.models.prior import Prior


@torch.no_grad()
def ancestral_sample(prior: Prior, noise: Callable[[], Tensor], *, steps: int = 1000) -> Tensor:
    """Latent videos z_0 (B, F, c, h, w) from the prior; `noise()` draws standard normals of that shape."""
    z_t = noise()
    for step in prior.schedule.respaced(steps):
        t = torch.full((len(z_t),), step.t, device=z_t.device)
        z0_hat = (z_t - (1 - step.alpha_bar_t) ** 0.5 * prior.eps(z_t, t)) / step.alpha_bar_t**0.5
        z_t = step.mean(z_t, z0_hat) + step.sigma_t * noise()
    return z0_hat
