"""What a sweep restores: the columns that tell conditions apart, and the items of a grid.

A condition is what was observed (operator, frames and noise), how it was sampled, and what a whole sweep shares. An
item is one restoration: of a video, with a noise instance, under a condition.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vsr_lightning.errors import UserError
from vsr_lightning.experiment import SAMPLER_LISTS, Grid


def without(columns: Iterable[str], *left_out: str) -> tuple[str, ...]:
    """The other columns, in their order."""
    return tuple(column for column in columns if column not in left_out)


OBSERVATION = ("factor", "kernel", "num_frames", "order", "sigma_h", "sigma_y")
SAMPLING = ("sampler", "steps", "zeta")
SHARED = ("seed", "prior", "dataset")
CONDITION = (*OBSERVATION, *SAMPLING, *SHARED)
ITEM = ("video", "noise")  # beside the condition

OPERATOR = ("factor", "kernel", "sigma_h")
FRAMES = ("num_frames", "order")
TEXTS = ("kernel", "order", "sampler", "prior", "dataset")
NUMBERS = without(CONDITION, *TEXTS)


@dataclass(frozen=True)
class Item:
    """One restoration to make: its columns, but for those that the sweep shares."""

    factor: int
    kernel: str
    num_frames: int
    order: str
    sigma_h: float
    sigma_y: float
    sampler: str
    steps: int
    zeta: float
    video: int
    noise: int

    @property
    def batch_key(self) -> tuple[str, int, int, str]:
        """What the items of a batch have in common: the sampler, its steps, and the operator but for its width."""
        return self.sampler, self.steps, self.factor, self.kernel


def items_of(grid: Grid, samplers: Mapping[str, Mapping[str, Any]], factor: int, kernel: str) -> list[Item]:
    """Every combination of the grid's lists, videos and noise instances.

    Args:
        grid: whose empty lists the others stand for.
        samplers: the parameters of each sampler, by its name.
        factor: of the degradation.
        kernel: of the degradation.

    Raises:
        UserError: neither the grid nor a sampler says with how many steps, or with what zeta.
    """
    settings = [setting for name, parameters in samplers.items() for setting in _settings(grid, name, parameters)]
    conditions = itertools.product(settings, operators(grid, factor, kernel), grid.num_frames, grid.order, grid.sigma_y)
    return [
        Item(factor, kernel, num_frames, order, sigma_h, float(sigma_y), *setting, video, noise)
        for setting, (factor, kernel), num_frames, order, sigma_y in conditions
        for sigma_h in widths(grid, factor, kernel)
        for video in range(grid.videos)
        for noise in range(grid.noises)
    ]


def used_samplers(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The samplers that a sweep's configuration uses, by name, "" being the section `sampler`; less what the grid lists
    for all of them."""
    grid = config.get("grid") or {}
    listed = [key for key in SAMPLER_LISTS if grid.get(key)]
    named = {name: config["samplers"][name] for name in grid.get("sampler") or []}
    sections = named or {"": config.get("sampler") or {}}
    return {name: {k: v for k, v in section.items() if k not in listed} for name, section in sections.items()}


def operators(grid: Grid, factor: int, kernel: str) -> list[tuple[int, str]]:
    """Factor and kernel of each operator, by default those of the degradation."""
    return list(itertools.product(grid.factor or [factor], grid.kernel or [kernel]))


def widths(grid: Grid, factor: int, kernel: str) -> list[float]:
    """`sigma_h` of an operator's conditions, HR pixels."""
    if not has_width(kernel):
        return [0.0]
    if grid.sigma_h_per_factor:
        return [ratio * factor for ratio in grid.sigma_h_per_factor]
    return [float(sigma_h) for sigma_h in grid.sigma_h]


def has_width(kernel: str) -> bool:
    """Whether `sigma_h` means anything; without a width it is 0."""
    return kernel == "gaussian"


def _settings(grid: Grid, name: str, parameters: Mapping[str, Any]) -> list[tuple[str, int, float]]:
    """Name, steps and zeta of each way in which a sampler is used."""
    for key in SAMPLER_LISTS:
        if not getattr(grid, key) and key not in parameters:
            raise UserError(f"sampler.{key}: missing for {name}; the sweep needs a number, or the list grid.{key}")
    if not grid.zeta and not 0 <= parameters["zeta"] < math.inf:
        raise UserError(f"sampler.zeta: {parameters['zeta']} of {name} is negative or not finite")
    zetas = [float(zeta) for zeta in grid.zeta or [parameters["zeta"]]]
    return [(name, steps, zeta) for steps in grid.steps or [parameters["steps"]] for zeta in zetas]
