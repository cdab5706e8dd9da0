"""The VAE's loss against hand computation, the normalisation of its latents, and that it learns."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from vsr_lightning.experiment import Training
from vsr_lightning.models.vae import VAE
from vsr_lightning.training.lit_vae import LitVAE, measure_latents
from vsr_lightning.training.optimisation import step_generator


class StubVAE(torch.nn.Module):
    """Latent mean x / 2 and constant log-variance; decodes to twice the latent: the error is twice the noise."""

    def __init__(self, log_variance=-2.0):
        super().__init__()
        self.log_variance = torch.nn.Parameter(torch.tensor(log_variance))

    def moments(self, x):
        return x / 2, self.log_variance.expand_as(x)

    def decode_raw(self, latent):
        return 2 * latent


def tiny_vae():
    torch.manual_seed(0)
    return VAE(latent_channels=4, widths=[8, 8, 8], encoder_blocks=[1, 1, 1], decoder_blocks=[1, 1, 1])


def test_loss_is_mse_plus_weighted_kl():
    module = LitVAE(StubVAE(), Training(kl_weight=0.5, log_every=1), seed=3)
    x = torch.randn(2, 3, 1, 8, 8, generator=torch.manual_seed(0))
    loss = module.training_step(x, 0)
    noise = torch.randn(x.shape, generator=step_generator(module, 3))
    mse = 4 * torch.exp(torch.tensor(-2.0)) * noise.square().mean()
    kl = 0.5 * ((x / 2).square() + torch.exp(torch.tensor(-2.0)) - 1 + 2).mean()
    torch.testing.assert_close(loss.detach(), mse + 0.5 * kl)
    torch.testing.assert_close(module.step_metrics["train/mse"].detach(), mse)
    torch.testing.assert_close(module.step_metrics["train/kl"].detach(), kl)


def test_validation_scores_the_posterior_mean(monkeypatch):
    module = LitVAE(StubVAE(), Training(), seed=0)
    module.vae.decode_raw = lambda latent: 2 * latent + 0.02  # 0.01 on the scale of PSNR: 40 dB
    logged = {}
    monkeypatch.setattr(module, "log_dict", lambda scores, **_: logged.update(scores))
    module.validation_step(torch.rand(2, 3, 1, 16, 16) * 1.8 - 0.9, 0)
    assert float(logged["val/psnr"]) == pytest.approx(40, abs=0.01)
    assert 0.9 < float(logged["val/ssim"]) < 1


def test_pictures_show_truth_above_reconstruction():
    module = LitVAE(StubVAE(), Training(), seed=0)
    x = torch.rand(2, 3, 1, 8, 8)
    (picture,) = module.pictures(x).values()
    torch.testing.assert_close(picture, torch.cat((x, x), dim=-2))


def test_measured_latents_have_mean_0_and_std_1_per_channel():
    vae = tiny_vae()
    batches = [torch.rand(3, 2, 1, 64, 64) * 2 - 1 for _ in range(2)]
    measure_latents(vae, batches)
    with torch.no_grad():
        z = torch.cat([vae.encode(x) for x in batches]).transpose(0, 2).flatten(1)
        torch.testing.assert_close(z.mean(dim=1), torch.zeros(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std(dim=1), torch.ones(4), atol=1e-4, rtol=0)
        torch.testing.assert_close(vae.decode(vae.encode(batches[0])), vae.decode_raw(vae.moments(batches[0])[0]))


def test_training_learns_one_batch():
    x = torch.zeros(1, 2, 1, 64, 64) - 1
    x[..., 20:40, 20:40] = 1
    training = Training(max_steps=30, lr=1e-2, warmup_steps=2, decay_steps=0)
    module = LitVAE(tiny_vae(), training, seed=0)
    (before,) = module.pictures(x).values()
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=30, enable_progress_bar=False, **options)
    trainer.fit(module, DataLoader([x] * 30, batch_size=None))
    (after,) = module.pictures(x).values()
    errors = [(picture[..., 64:, :] - x).square().mean() for picture in (before, after)]
    assert errors[1] < 0.3 * errors[0]
