"""What guided samplers share: the video that z_t promises, how far it is from the observation, and how to get nearer.

`dps.py` is Algorithm 1, written out beside the paper; the other samplers are made of these parts.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Self

import torch
from torch import Tensor

from vsr_lightning.degradation.downsample import TRUNCATE, Downsample, SeparableOperator
from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import Observation, OnStep
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import LinearSchedule, Step


@dataclass
class Estimate:
    """What is believed of B videos at a noise level."""

    z0_hat: Tensor  # E[z_0 | z_t], (B, F, c, h, w) (Eq. 9)
    x_hat: Tensor  # D(z0_hat), (B, F, C, H, W)
    residual: Tensor  # ||y - M(H(x_hat))||, (B,)
    gradient: Tensor  # of the residual by z_t, through degradation (perhaps a wider one), decoder and DiT; z_t's shape
    overshoot: Tensor  # (B,), how many times the residual Polyak's step along `gradient` would remove, to first order


@torch.enable_grad()  # a trainer's prediction loop runs without gradients
def estimate(prior: Prior, observation: Observation, z_t: Tensor, step: Step, least_blur: float = 0.0) -> Estimate:
    """Denoise z_t (B, F, c, h, w) at `step.t`, and see how well that explains the observation (lines 3, 4, 7, 8).

    The gradient of the residual is taken as if the blur before decimation were at least `least_blur` HR pixels wide,
    see `WideGradient`; the residual itself is not.
    """
    z_t = z_t.detach().requires_grad_()
    eps = prior.eps(z_t, torch.full((len(z_t),), step.t, device=z_t.device))
    z0_hat = (z_t - (1 - step.alpha_bar_t) ** 0.5 * eps) / step.alpha_bar_t**0.5
    x_hat = prior.decode(z0_hat)
    own, missing = _blurs(observation, len(x_hat), least_blur)
    is_wider = any(missing)
    y_hat = _through_blur(observation, x_hat, missing) if is_wider else observation.degrade(x_hat)
    residual = torch.linalg.vector_norm((observation.y - y_hat).flatten(1), dim=1)
    (gradient,) = torch.autograd.grad(residual.sum(), z_t)
    overshoot = torch.ones_like(residual)
    if is_wider:
        factors = [_overshoot(*widths, x_hat.shape[-1]) for widths in zip(own, missing, strict=True)]
        overshoot = torch.tensor(factors).to(overshoot, non_blocking=True)
    x_hat = x_hat.detach().clone()  # a captured decoder writes its next video to the same place
    return Estimate(z0_hat.detach(), x_hat, residual.detach(), gradient, overshoot)


def _blurs(observation: Observation, videos: int, least_blur: float) -> tuple[list[float], list[float]]:
    """The width of each video's own blur, and what that lacks: 0 where it would reach no neighbour."""
    own = [*observation.blur] or [0.0] * videos
    if len(own) != videos:
        raise ValueError(f"blur: {len(own)} widths for {videos} videos")
    missing = (max(0.0, least_blur**2 - width**2) ** 0.5 for width in own)  # widths of Gaussians add up as squares
    return own, [width if TRUNCATE * width >= 0.5 else 0.0 for width in missing]


def _through_blur(observation: Observation, x_hat: Tensor, missing: list[float]) -> Tensor:
    """What would be observed of x_hat, with the gradient that it had if each video were blurred as much before."""
    if len(set(missing)) == 1:
        missing = missing[:1]  # one matrix serves all
    A_v, A_h = (
        torch.stack([_blur_matrix(size, width, x_hat.device) for width in missing]) for size in x_hat.shape[-2:]
    )
    with torch.no_grad():
        y_hat = observation.degrade(x_hat)
    y_wide = observation.degrade(SeparableOperator(A_v, A_h)(x_hat))
    return y_hat + (y_wide - y_wide.detach())


@functools.lru_cache(maxsize=1024)
def _overshoot(own: float, missing: float, size: int) -> float:
    """How many times the residual Polyak's step along the wider gradient g_w would remove: <g, g_w> / ||g_w||^2.

    Of a pixel that is seen far from others through a Gaussian, in two dimensions: 2 W^2 / (own^2 + W^2), where
    W^2 = own^2 + missing^2, but for the pixel grid.
    """
    if missing == 0:
        return 1.0
    own_matrix, missing_matrix = (Downsample(factor=1).matrix(size, width) for width in (own, missing))
    row = own_matrix[size // 2]
    wide = row @ missing_matrix
    return ((row @ wide) / (wide @ wide)).item() ** 2


@functools.lru_cache(maxsize=1024)  # of some kilobytes each: all steps of a sampler
def _blur_matrix(size: int, width: float, device: torch.device) -> Tensor:
    return Downsample(factor=1).matrix(size, width).float().to(device, non_blocking=True)


@dataclass(frozen=True)
class WideGradient:
    """The least width of blur through which the gradient of the residual is taken.

    A pixel in the black, or within a stroke, does not change when an edge some pixels away moves: where single pixels
    are observed, guidance has next to no gradient to follow. So the residual is carried back through a wider blur,
    which reaches those edges (an unmatched backprojector, Zeng & Gullberg 2000). Where the observation is blurred as
    much already, nothing changes. Else steps are shorter, by `_overshoot`, so that a share zeta of the misfit is what
    a step removes of pixels far from each other; of pixels that are near, it removes less.

    Args:
        blur: standard deviation, HR pixels, at timestep `t_from` and above. It shrinks linearly in t to none at
            `t_until` and below.
    """

    blur: float
    t_from: int
    t_until: int

    @classmethod
    def between(cls, schedule: LinearSchedule, blur: float, high: float, low: float) -> Self:
        """From `high` to `low` of the schedule. Raises UserError if one is no share, or the blur is no width."""
        if not 0 <= blur < math.inf:
            raise UserError(f"sampler.gradient_blur: {blur} is not a width of at least 0 pixels")
        if not low < high:
            raise UserError(f"sampler.gradient_blur_from: {high} is not above sampler.gradient_blur_until, {low}")
        t_from = timestep_of(high, schedule, "gradient_blur_from")
        return cls(blur, t_from, timestep_of(low, schedule, "gradient_blur_until"))

    def at(self, step: Step) -> float:
        """The least blur at a step, HR pixels."""
        share = (step.t - self.t_until) / max(1, self.t_from - self.t_until)
        return self.blur * min(1.0, max(0.0, share))


def polyak_move(estimate: Estimate, noise_norm: Tensor, zeta: Tensor, max_move: float) -> Tensor:
    """The step along the gradient with Polyak's step size (Polyak 1987, section 5.3.2), to be subtracted from z_{t-1}.

    With r the residual, g its gradient and k = 1 it is

        zeta * max(r - noise_norm, 0) / (k ||g||^2) * g,

    which, taken from z_t, would at zeta = 1 and to first order bring r to the norm that the sensor noise leaves to the
    truth. A wider gradient (see `WideGradient`) would remove k times as much, its `overshoot`. That r should not become
    less is Morozov's discrepancy principle.

    Args:
        noise_norm, zeta: one for each sample, (B,); zeta may be one number.
        max_move: largest root mean square of the move, in standard deviations of the latent: near pure noise the
            gradient says little, and Polyak's step would be huge.

    Raises:
        UserError: `max_move` is negative.
    """
    if not max_move >= 0:
        raise UserError(f"sampler.max_move: {max_move} is not at least 0")
    gradient = estimate.gradient
    slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    misfit = (estimate.residual - noise_norm).clamp_min(0)
    longest = max_move * gradient[0].numel() ** 0.5
    # Divided one after the other: the square of a small slope underflows. No slope, no step.
    length = torch.where(slope > 0, (zeta * misfit / (estimate.overshoot * slope)).clamp_max(longest) / slope, 0)
    return length.view(-1, 1, 1, 1, 1) * gradient


@dataclass
class PolyakGuidance:
    """How far guidance moves the samples at each step of a descent: `polyak_move`, by noise level, with momentum.

    Args:
        noise_norm: see `polyak_move`, (B,).
        zeta: share of the misfit to remove in a step, one number or (B,).
        max_move: see `polyak_move`; with momentum, of what a step adds, so moves may grow to max_move / (1 - momentum).
        zeta_end: that share where no noise is left; at noise level s = sqrt(1 - alpha_bar_t) it is
            `zeta_end + s (zeta - zeta_end)`. None: `zeta` at all levels.
        momentum: share of the last move that is made again (the heavy ball, Polyak 1964, Eq. 9; for diffusion
            posterior sampling, the history gradient of He et al. 2023).

    Raises:
        UserError: `momentum` is not from 0 to below 1, or `zeta_end` is negative or not finite.
    """

    noise_norm: Tensor
    zeta: InitVar[float | Tensor]
    max_move: float
    zeta_end: float | None = None
    momentum: float = 0.0

    def __post_init__(self, zeta: float | Tensor) -> None:
        if not 0 <= self.momentum < 1:
            raise UserError(f"sampler.momentum: {self.momentum} is not from 0 to below 1")
        if self.zeta_end is not None and not 0 <= self.zeta_end < math.inf:
            raise UserError(f"sampler.zeta_end: {self.zeta_end} is not a number of at least 0")
        self._zeta = torch.as_tensor(zeta, dtype=torch.float32, device=self.noise_norm.device)
        self._last: Tensor | None = None

    def forget(self) -> None:
        """Begin a new descent: no momentum."""
        self._last = None

    def move(self, estimate: Estimate, step: Step) -> Tensor:
        """What to subtract from z_{t-1}, (B, F, c, h, w)."""
        move = polyak_move(estimate, self.noise_norm, self._zeta_at(step), self.max_move)
        if self.momentum and self._last is not None:
            move = move + self.momentum * self._last
        self._last = move
        return move

    def _zeta_at(self, step: Step) -> Tensor:
        if self.zeta_end is None:
            return self._zeta
        return self.zeta_end + (1 - step.alpha_bar_t) ** 0.5 * (self._zeta - self.zeta_end)


@dataclass
class Descent:
    """Guided steps down the noise schedule: what the samplers are put together from.

    Args:
        noise: draws (B, F, c, h, w), sample by sample from its own stream.
        cool_from: the timestep from which a temperature counts, see `noise_scale`.
        on_step: hears of every step, numbered over all calls.
        wide: how wide gradients are taken; None, as the observation is.
    """

    prior: Prior
    observation: Observation
    noise: Callable[[], Tensor]
    guidance: PolyakGuidance
    cool_from: int
    on_step: OnStep | None = None
    wide: WideGradient | None = None
    taken: int = 0

    def __call__(self, z_t: Tensor, steps: Sequence[Step], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """From z_t (B, F, c, h, w): the latent that `steps` lead to, and the video of the last estimate of z_0."""
        self.guidance.forget()
        for step in steps:
            z_t, x_hat = self.step(z_t, step, temperature)
        return z_t, x_hat

    def step(self, z_t: Tensor, step: Step, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """One step of a descent."""
        guess = self.look(z_t, step)
        return self.leave(z_t, guess, step, temperature), guess.x_hat

    def look(self, z_t: Tensor, step: Step) -> Estimate:
        """`estimate`, counted as a step."""
        guess = estimate(self.prior, self.observation, z_t, step, self.wide.at(step) if self.wide else 0.0)
        if self.on_step is not None:
            self.on_step(self.taken, step, guess.residual)
        self.taken += 1
        return guess

    def leave(self, z_t: Tensor, guess: Estimate, step: Step, temperature: float = 1.0) -> Tensor:
        """z_{t-1}, after what was seen at z_t."""
        drawn = noise_scale(step, temperature, self.cool_from) * self.noise()
        return step.mean(z_t, guess.z0_hat) + drawn - self.guidance.move(guess, step)


def timestep_of(share: float, schedule: LinearSchedule, key: str) -> int:
    """The timestep at a share of the schedule. Raises UserError, naming the sampler's key, if it is no share."""
    if not 0 <= share <= 1:
        raise UserError(f"sampler.{key}: {share} is not from 0 to 1, as a share of the schedule")
    return round(share * (schedule.num_steps - 1))


def noise_scale(step: Step, temperature: float, cool_from: int) -> float:
    """Standard deviation of what a step draws: sigma_t, and `temperature` times that from timestep `cool_from` down.

    The mean of the step stays, so below 1 samples gather where the posterior is dense. At high noise, where samples
    part ways, that does harm; from where they have settled, it only smooths them. (Sampling of generative models at a
    temperature: Kingma & Dhariwal 2018, section 3.4.)

    Raises:
        UserError: the temperature is negative or no number.
    """
    if not 0 <= temperature < math.inf:
        raise UserError(f"sampler.temperature: {temperature} is not a number of at least 0")
    return step.sigma_t * (temperature if step.t <= cool_from else 1.0)
