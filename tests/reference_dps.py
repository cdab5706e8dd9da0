"""Algorithm 1 as one would first write it: eager, float32, nothing shared with the product. Slow, and easy to trust."""

from collections.abc import Callable

import torch
from torch import Tensor


def reference_dps(prior, degrade: Callable[[Tensor], Tensor], y: Tensor, noise, steps: int, zeta: float) -> Tensor:
    """Restore videos from y (B, F, C, h, w), each with a norm of its own; returns (B, F, C, H, W)."""
    alpha_bars = prior.schedule.alpha_bar.double().cpu()
    timesteps = torch.linspace(len(alpha_bars) - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    z = noise()
    for i, t in enumerate(timesteps):
        bar = alpha_bars[t].item()
        bar_prev = alpha_bars[timesteps[i + 1]].item() if i + 1 < steps else 1.0
        alpha = bar / bar_prev
        z = z.detach().requires_grad_()
        eps = prior.eps(z, torch.full((len(z),), t, device=z.device))
        z0_hat = (z - (1 - bar) ** 0.5 * eps) / bar**0.5
        x_hat = prior.decode(z0_hat)
        norms = (y - degrade(x_hat)).square().sum(dim=(1, 2, 3, 4)).sqrt()
        gradient = torch.autograd.grad(norms.sum(), z)[0]
        mean = alpha**0.5 * (1 - bar_prev) / (1 - bar) * z + bar_prev**0.5 * (1 - alpha) / (1 - bar) * z0_hat
        sigma = ((1 - alpha) * (1 - bar_prev) / (1 - bar)) ** 0.5
        z = mean.detach() + sigma * noise() - zeta * gradient
    return x_hat.detach()
