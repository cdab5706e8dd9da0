"""Compiled networks restore what plain ones do (float32, on a CPU; needs a C++ compiler, as torch.compile does)."""

import torch
from torch._dynamo.utils import counters

from vsr_lightning.data.moving_mnist import MovingMNIST
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.inference.dps import Observation, dps_sample
from vsr_lightning.inference.noise import SamplerNoise
from vsr_lightning.metrics import psnr
from vsr_lightning.models.prior import load_prior


def test_compiled_and_plain_agree(tiny_prior):
    prior = load_prior(tiny_prior)
    x = MovingMNIST(digits="embedded", batch_size=1).validation_clips(2)
    operator = Downsample(factor=8).operator([2.0, 2.0], 64, 64)
    observation = Observation(operator(x), operator, torch.zeros(2))

    def restore() -> torch.Tensor:
        noise = SamplerNoise([(0, 0, 0), (0, 1, 0)], prior.latent_shape)
        return dps_sample(prior, observation, noise, steps=8, zeta=1.0)

    plain = restore()
    try:
        prior.compile_for_sampling()
        counters.clear()
        compiled = restore()
        assert counters["stats"]["unique_graphs"] == 2  # each network once: the first draw has the shape of all others
    finally:
        torch.compiler.reset()
    assert (psnr(compiled, x) - psnr(plain, x)).abs().max() < 0.05
    assert (compiled - plain).abs().max() < 1e-3
    assert not torch.equal(compiled, plain)  # other kernels: else nothing was compiled
