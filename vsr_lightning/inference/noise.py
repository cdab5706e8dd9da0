"""Random streams: every sample has two of its own, so neither GPUs, batch size nor order change a restoration.

Noise is drawn on the CPU, whose generator gives the same numbers whatever the device that samples.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

SampleKey = tuple[int, int, int]  # sweep seed, video, noise instance

_SENSOR, _SAMPLER = 0, 1


def sensor_noise(keys: Sequence[SampleKey], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape), for all F frames whichever are observed: masking comes after."""
    return torch.stack([torch.randn(shape, generator=_generator(key, _SENSOR)) for key in keys])


class SamplerNoise:
    """The standard normal draws of the sampler, one (B, *shape) tensor per call.

    Drawn in blocks of steps: one transfer to the device per block, and none inside a captured graph.
    """

    block = 50  # part of the streams' definition: another value gives other numbers

    def __init__(self, keys: Sequence[SampleKey], shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self._generators = [sampler_generator(key) for key in keys]
        self._shape, self._device = shape, device
        self._draws: Iterator[Tensor] = iter(())

    def __call__(self) -> Tensor:
        draw = next(self._draws, None)
        if draw is None:
            self._draws = iter(self._next_block())
            draw = next(self._draws)
        return draw

    def _next_block(self) -> Tensor:
        blocks = [torch.randn(self.block, *self._shape, generator=generator) for generator in self._generators]
        draws = torch.stack(blocks, dim=1)  # (block, B, *shape)
        if torch.device(self._device).type == "cuda":
            draws = draws.pin_memory()
        return draws.to(self._device, non_blocking=True)


def sampler_generator(key: SampleKey) -> torch.Generator:
    """The stream of the sampler's own draws, for samplers that do not draw latents."""
    return _generator(key, _SAMPLER)


def _generator(key: SampleKey, stream: int) -> torch.Generator:
    seed = np.random.SeedSequence([*key, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)  # manual_seed takes 63 bits
