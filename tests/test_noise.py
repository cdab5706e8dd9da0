"""Random streams: functions of (seed, video, noise instance) and of nothing else."""

import pytest
import torch

from vsr_lightning.inference.noise import SamplerNoise, sampler_generator, sensor_noise

SHAPE = (3, 2, 5)
KEYS = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
DRAWS = SamplerNoise.first_block + 2 * SamplerNoise.block + 3  # over three block boundaries


def draws(keys, count=DRAWS, shape=SHAPE):
    """(count, B, *shape)"""
    noise = SamplerNoise(keys, shape)
    return torch.stack([noise() for _ in range(count)])


def test_streams_do_not_depend_on_the_batch():
    together = draws(KEYS)
    assert together.shape == (DRAWS, len(KEYS), *SHAPE)
    backwards = draws(KEYS[::-1])
    for b, key in enumerate(KEYS):
        assert torch.equal(draws([key])[:, 0], together[:, b])
        assert torch.equal(backwards[:, -1 - b], together[:, b])
        assert torch.equal(sensor_noise([key], SHAPE)[0], sensor_noise(KEYS, SHAPE)[b])


def test_streams_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, sensor = draws(KEYS, 1), sensor_noise(KEYS, SHAPE)
    assert torch.rand(1) == expected
    torch.manual_seed(1)
    assert torch.equal(draws(KEYS, 1), first)
    assert torch.equal(sensor_noise(KEYS, SHAPE), sensor)


def test_every_part_of_the_key_and_each_stream_gives_other_numbers():
    streams = [sensor_noise([key], (2000,))[0] for key in KEYS]
    streams += [SamplerNoise([key], (2000,))()[0] for key in KEYS]
    # The indices must not be interchangeable either.
    streams += [sensor_noise([key], (2000,))[0] for key in [(0, 0, 2), (0, 2, 0), (1, 1, 0), (0, 1, 1)]]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert correlation.abs().max() < 0.1  # 4.5 standard errors of independent streams


def test_blocks_continue_the_stream():
    first = draws(KEYS)
    assert len({tuple(draw.flatten().tolist()) for draw in first}) == DRAWS  # no repeats
    key = [KEYS[1]]
    assert torch.equal(draws(key, DRAWS)[: SamplerNoise.block], draws(key, SamplerNoise.block))


def test_latents_do_not_depend_on_the_blocks():
    latents = (10, 8, 8, 8)
    generator = sampler_generator(KEYS[0])
    one_by_one = torch.stack([torch.randn(latents, generator=generator) for _ in range(DRAWS)])
    assert torch.equal(draws(KEYS[:1], shape=latents)[:, 0], one_by_one)


@pytest.mark.parametrize("stream", ["sensor", "sampler"])
def test_standard_normal(stream):
    if stream == "sensor":
        values = sensor_noise(KEYS, (10, 1, 50, 50)).flatten()
    else:
        values = draws(KEYS, 100, (10, 1, 5, 5)).flatten()
    n = len(values)
    assert n == 100_000
    assert abs(values.mean()) < 4 / n**0.5
    assert abs(values.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs(values.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
