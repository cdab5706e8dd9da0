"""Random streams: every sample has two of its own, so neither GPUs, batch size nor order change a restoration.

Noise is drawn on the CPU, whose generator gives the same numbers whatever the device that samples.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

SampleKey = tuple[int, int, int]  # sweep seed, video, noise instance

_SENSOR, _SAMPLER = 0, 1
_THREADS = 8


def sensor_noise(keys: Sequence[SampleKey], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape), for all F frames whichever are observed: masking comes after."""
    return torch.stack([torch.randn(shape, generator=_generator(key, _SENSOR)) for key in keys])


class SamplerNoise:
    """The standard normal draws of the sampler, one (B, *shape) tensor per call.

    Drawn in blocks of steps, the next one by other threads while this one is used up: one transfer to the device per
    block, and none inside a captured graph.
    """

    # Part of the streams' definition, unless a draw is a multiple of 16 numbers, as PyTorch fills tensors by 16. The
    # first block is waited for: just enough that a device has work while the next one is drawn.
    first_block, block = 2, 50

    def __init__(self, keys: Sequence[SampleKey], shape: tuple[int, ...], device: torch.device | str = "cpu") -> None:
        self._generators = [sampler_generator(key) for key in keys]
        self._shape, self._device = shape, torch.device(device)
        self._draws: Iterator[Tensor] = iter(())
        self._threads = ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
        self._begin_block(self.first_block)

    def __call__(self) -> Tensor:
        draw = next(self._draws, None)
        if draw is None:
            self._draws = iter(self._finish_block())
            self._begin_block(self.block)
            draw = next(self._draws)
        return draw

    def _begin_block(self, steps: int) -> None:
        shape = (len(self._generators), steps, *self._shape)
        with torch.inference_mode(False):  # other threads, which do not know this one's modes, write to it
            self._numbers = torch.empty(shape, pin_memory=self._device.type == "cuda")
        self._jobs = [
            self._threads.submit(torch.randn, numbers.shape, generator=generator, out=numbers)
            for numbers, generator in zip(self._numbers, self._generators, strict=True)
        ]

    def _finish_block(self) -> Tensor:
        """(block, B, *shape), on the device."""
        for job in self._jobs:
            job.result()
        # Contiguous draws: networks are compiled for the strides that they first see.
        return self._numbers.to(self._device, non_blocking=True).transpose(0, 1).contiguous()


def sampler_generator(key: SampleKey) -> torch.Generator:
    """The stream of the sampler's own draws, for samplers that do not draw latents."""
    return _generator(key, _SAMPLER)


def _generator(key: SampleKey, stream: int) -> torch.Generator:
    seed = np.random.SeedSequence([*key, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)  # manual_seed takes 63 bits
