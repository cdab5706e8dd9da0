"""The variance-preserving noise schedule of DDPM (Ho et al. 2020), and its respacing to fewer steps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from vsr_lightning.errors import UserError


@dataclass(frozen=True)
class Step:
    """The scalars of one reverse step, from timestep t to the one before it in the (respaced) schedule.

    The step draws z_{t-1} from `N(z_t_weight z_t + z0_weight z0_hat, sigma_t^2 I)` (DDIM, Song et al. 2021, Eq. 12). At
    `eta` 1 that is DDPM's posterior q(z_{t-1} | z_t, z_0) (Ho et al. 2020, Eq. 7), at 0 it draws nothing.
    """

    t: int  # timestep that the network was trained on, 0 … T-1
    alpha_bar_t: float
    alpha_bar_prev: float  # 1 at the last step
    eta: float = 1.0

    @property
    def alpha_t(self) -> float:
        return self.alpha_bar_t / self.alpha_bar_prev

    @property
    def beta_t(self) -> float:
        return 1 - self.alpha_t

    @property
    def sigma_t(self) -> float:
        """Standard deviation of what is drawn (DDIM, Eq. 16): zero at the last step."""
        return self.eta * (self.beta_t * (1 - self.alpha_bar_prev) / (1 - self.alpha_bar_t)) ** 0.5

    @property
    def z_t_weight(self) -> float:
        """Coefficient of z_t in the mean; DDPM writes it sqrt(alpha_t) (1 - alpha_bar_prev) / (1 - alpha_bar_t)."""
        return ((1 - self.alpha_bar_prev - self.sigma_t**2) / (1 - self.alpha_bar_t)) ** 0.5

    @property
    def z0_weight(self) -> float:
        """Coefficient of z0_hat in the mean; DDPM writes it sqrt(alpha_bar_prev) beta_t / (1 - alpha_bar_t)."""
        return self.alpha_bar_prev**0.5 - self.alpha_bar_t**0.5 * self.z_t_weight

    def mean(self, z_t: Tensor, z0_hat: Tensor) -> Tensor:
        """The mean of z_{t-1}, given z_t and an estimate of z_0; all of one shape."""
        return self.z_t_weight * z_t + self.z0_weight * z0_hat


class LinearSchedule(nn.Module):
    """Betas linear in t = 0 … T-1. `q(z_t | z_0) = N(sqrt(alpha_bar_t) z_0, (1 - alpha_bar_t) I)`."""

    alpha_bar: Tensor

    def __init__(self, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        if num_steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise UserError("schedule: num_steps of at least 1 and 0 < beta_start <= beta_end < 1 are needed")
        self.num_steps = num_steps
        betas = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        self._alpha_bars = torch.cumprod(1 - betas, dim=0).tolist()  # float64, for the steps' scalars
        self.register_buffer("alpha_bar", torch.tensor(self._alpha_bars, dtype=torch.float32), persistent=False)

    def respaced(
        self, steps: int, spacing: str = "uniform", start: float = 1.0, eta: float = 1.0, stop: float = 0.0
    ) -> list[Step]:
        """`steps` timesteps down to 0, with alpha and beta recomputed from alpha_bar.

        Args:
            steps: how many, of timesteps that are all different.
            spacing: `uniform` in t; `log_snr`, uniform in log(alpha_bar / (1 - alpha_bar)) (DPM-Solver, Lu et al.
                2022); or `karras`, uniform in sigma^(1/7), where sigma^2 = (1 - alpha_bar) / alpha_bar (Karras et al.
                2022, Eq. 5).
            start: the first timestep as a share of T-1; 1 is pure noise.
            eta: how much noise the steps draw, from 0 (none) to 1 (as DDPM), see `Step`.
            stop: the timestep, as a share of T-1, to which the last step leads; 0 is a clean z_0.
        """
        if not 0 <= eta <= 1:
            raise UserError(f"sampler.eta: {eta} is not from 0 (deterministic steps) to 1 (DDPM's)")
        if not 0 < start <= 1:
            raise UserError(f"sampler.start: {start} is not above 0 and at most 1, as a share of the schedule")
        first, end = round(start * (self.num_steps - 1)), round(stop * (self.num_steps - 1))
        lowest = end + 1 if stop > 0 else 0
        if not 1 <= steps <= first - lowest + 1:
            raise UserError(
                f"sampler.steps: {steps} is not between 1 and {first - lowest + 1}, as many as there are timesteps "
                f"from {first} down to {lowest}"
            )
        if stop > 0:
            timesteps = [*self._spaced(steps + 1, spacing, first, end)]
            alpha_bars = [self._alpha_bars[t] for t in timesteps]
        else:
            timesteps = self._spaced(steps, spacing, first, 0)
            alpha_bars = [*(self._alpha_bars[t] for t in timesteps), 1.0]
        return [
            Step(t, bar, previous, eta) for t, bar, previous in zip(timesteps, alpha_bars, alpha_bars[1:], strict=False)
        ]

    def _spaced(self, count: int, spacing: str, first: int, last: int) -> list[int]:
        """`count` different timesteps from `first` down to `last`, both included."""
        alpha_bars = np.array(self._alpha_bars[last : first + 1])
        variance = (1 - alpha_bars) / alpha_bars  # sigma^2
        numbers = np.arange(last, first + 1.0)
        coordinates = {"uniform": numbers, "log_snr": np.log(variance), "karras": variance ** (0.5 / 7)}
        if spacing not in coordinates:
            raise UserError(f"sampler.spacing: '{spacing}' is none of {', '.join(coordinates)}")
        places = coordinates[spacing]  # of the timesteps, ascending
        wanted = np.linspace(places[-1], places[0], count)
        timesteps = np.interp(wanted, places, numbers).round().astype(int)
        # Where the wanted ones lie closer than timesteps do, the next free timestep is taken, towards the noise.
        ranks = np.arange(count)
        ascending = np.maximum.accumulate(timesteps[::-1] - ranks) + ranks
        return np.minimum(ascending, first - ranks[::-1])[::-1].tolist()

    def add_noise(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t of q(z_t | z_0). z0, eps: (B, ...); t: (B,)."""
        signal, noise = self._scales(t, z0.ndim)
        return signal * z0 + noise * eps

    def velocity(self, z0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The v of Salimans & Ho (2022): `sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) z_0`."""
        signal, noise = self._scales(t, z0.ndim)
        return signal * eps - noise * z0

    def eps_from_velocity(self, v: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = self._scales(t, z_t.ndim)
        return signal * v + noise * z_t

    def _scales(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alpha_bar[t].reshape(-1, *[1] * (ndim - 1))
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
