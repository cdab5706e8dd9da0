"""The DiT's loss against hand computation, the frozen VAE, repeatable validation, and that it learns."""

import lightning as L
import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.data import DataLoader

from vsr_lightning.experiment import Training
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.vae import VAE
from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.training.lit_dit import LitDiT, spread_timesteps
from vsr_lightning.training.optimisation import step_generator


def tiny_module(prediction="v", seed=0, **training):
    torch.manual_seed(0)
    vae = VAE(latent_channels=4, widths=[8, 8, 8], encoder_blocks=[1, 1, 1], decoder_blocks=[1, 1, 1])
    dit = VideoDiT(latent_channels=4, num_frames=2, width=32, depth=1, heads=2, prediction=prediction)
    options = {"stage": "dit", "check_steps": 2, "warmup_steps": 1, "decay_steps": 0, "log_every": 1} | training
    return LitDiT(dit, vae, LinearSchedule(1000), Training(**options), seed)


def clips(count=4):
    return torch.rand(count, 2, 1, 64, 64, generator=torch.manual_seed(1)) * 2 - 1


@pytest.fixture
def logged(monkeypatch):
    values = {}
    monkeypatch.setattr(LitDiT, "log", lambda self, name, value, **_: values.update({name: value}))
    monkeypatch.setattr(LitDiT, "log_dict", lambda self, metrics, **_: values.update(metrics))
    return values


@pytest.mark.parametrize("prediction", ["v", "eps"])
def test_loss_of_a_network_that_predicts_zero(prediction):
    module, x = tiny_module(prediction, seed=5), clips()
    torch.nn.init.zeros_(module.dit.final.bias)  # its weight is zero already: the prediction is 0
    loss = module.training_step(x, 0)

    generator = step_generator(module, 5)
    z0 = module.vae.encode(x)
    t = spread_timesteps(4, 1000, generator)
    eps = torch.randn(z0.shape, generator=generator)
    alpha_bar = module.schedule.alpha_bar[t].view(4, 1, 1, 1, 1)
    target = eps if prediction == "eps" else alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * z0
    per_sample = target.square().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(loss.detach(), per_sample.mean())
    torch.testing.assert_close(module.step_metrics["train/loss"], per_sample.mean())
    for level in range(4):  # loss by quarters of t
        members = per_sample[(t >= 250 * level) & (t < 250 * (level + 1))]
        expected = members.mean() if len(members) else torch.tensor(0.0)
        torch.testing.assert_close(module.step_metrics[f"train/loss_t{level}"], expected)


def test_timesteps_are_uniform_one_by_one_and_spread_together():
    draws = torch.stack([spread_timesteps(8, 1000, torch.Generator().manual_seed(seed)) for seed in range(2000)])
    assert int(draws.min()) >= 0
    assert int(draws.max()) <= 999
    assert (draws // 125).sort(dim=1).values.equal(torch.arange(8).expand(2000, 8))  # one in each eighth
    quarters = torch.bincount(draws[:, 0] // 250, minlength=4) / 2000
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.04, rtol=0)


def test_logit_normal_timesteps_have_their_distribution():
    t = spread_timesteps(100_000, 1000, torch.Generator().manual_seed(0), "logit_normal")
    assert (int(t.min()) >= 0, int(t.max()) <= 999) == (True, True)
    shares = [(t < 1000 * bound).double().mean().item() for bound in (0.25, 0.5, 0.75)]
    expected = [stats.norm.cdf(np.log(bound / (1 - bound))) for bound in (0.25, 0.5, 0.75)]
    assert shares == pytest.approx(expected, abs=1e-3)


def test_training_draws_the_timesteps_that_are_asked_for_and_validation_uniform_ones(logged, monkeypatch):
    asked = []

    def spy(batch, num_steps, generator, density):
        asked.append(density)
        return torch.zeros(batch, dtype=torch.long)

    monkeypatch.setattr("vsr_lightning.training.lit_dit.spread_timesteps", spy)
    module, x = tiny_module(timesteps="logit_normal"), clips()
    module.training_step(x, 0)
    module.validation_step(x, 0)
    assert asked == ["logit_normal", "uniform"]


def test_a_network_that_knows_the_noise_has_no_loss(monkeypatch):
    module, x = tiny_module("eps"), clips()
    z0 = module.vae.encode(x)

    def perfect(z_t, t):
        alpha_bar = module.schedule.alpha_bar[t].view(-1, 1, 1, 1, 1)
        return (z_t - alpha_bar.sqrt() * z0) / (1 - alpha_bar).sqrt()

    monkeypatch.setattr(module.dit, "forward", perfect)
    assert module.training_step(x, 0).item() < 1e-6


def test_validation_draws_the_same_noise_each_time(logged):
    module, x = tiny_module(), clips()

    @torch.no_grad()
    def validate(batch_idx):
        module.validation_step(x, batch_idx)
        return {name: float(value) for name, value in logged.items()}

    first = validate(0)
    torch.manual_seed(99)
    assert validate(0) == first
    assert set(first) == {"val/loss", *(f"val/loss_t{level}" for level in range(4))}
    assert validate(1)["val/loss"] != first["val/loss"]


def test_the_frozen_vae_is_no_part_of_the_module():
    module = tiny_module()
    owned = {id(parameter) for parameter in module.parameters()}
    assert owned == {id(parameter) for parameter in module.dit.parameters()}
    assert {name.partition(".")[0] for name in module.state_dict()} == {"dit"}
    assert not any(parameter.requires_grad for parameter in module.prior.vae.parameters())


def test_pictures_and_the_posterior_check_have_the_clips_size():
    module, x = tiny_module(check_zeta=1.0), clips(2)
    pictures = module.pictures(x)
    assert pictures["sample"].shape == x.shape
    assert pictures["restoration"].shape == (2, 2, 1, 128, 64)
    assert torch.equal(pictures["restoration"][..., :64, :], x)


def test_training_learns_one_batch_and_leaves_the_vae_alone():
    module, x = tiny_module("eps", max_steps=40, lr=1e-2), clips()
    vae_before = {name: value.clone() for name, value in module.prior.vae.state_dict().items()}
    with torch.no_grad():
        before = module._losses(x, torch.Generator().manual_seed(0))[0].mean()
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=40, enable_progress_bar=False, **options)
    trainer.fit(module, DataLoader([x] * 40, batch_size=None))
    with torch.no_grad():
        after = module._losses(x, torch.Generator().manual_seed(0))[0].mean()
    assert after < 0.8 * before
    for name, value in module.prior.vae.state_dict().items():
        assert torch.equal(value, vae_before[name])
