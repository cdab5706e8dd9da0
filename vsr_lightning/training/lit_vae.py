"""Training of the spatial VAE: mean squared error plus KL divergence (Kingma & Welling 2014, Eq. 10)."""

import torch
from torch import Tensor

from vsr_lightning.experiment import Training
from vsr_lightning.metrics import psnr, ssim
from vsr_lightning.models.vae import VAE
from vsr_lightning.training.optimisation import LitNetwork, step_generator


class LitVAE(LitNetwork):
    """Batches are videos (B, F, C, H, W) in [-1, 1]; every frame is coded on its own."""

    def __init__(self, vae: VAE, training: Training, seed: int) -> None:
        super().__init__(training, seed)
        self.vae = vae

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        mean, log_variance = self.vae.moments(x)
        noise = torch.randn(mean.shape, generator=step_generator(self, self.seed), device=self.device)
        reconstruction = self.vae.decode_raw(mean + (log_variance / 2).exp() * noise)
        mse = (reconstruction - x).square().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        self.keep_for_log(lambda: {"train/mse": mse, "train/kl": kl})
        return mse + self.training_options.kl_weight * kl

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        mean, _ = self.vae.moments(x)
        reconstruction = self.vae.decode_raw(mean)
        scores = {
            "val/psnr": psnr(reconstruction, x).mean(),
            "val/ssim": ssim(reconstruction, x).mean(),
            "val/latent_std": mean.std(),
        }
        self.log_dict(scores, prog_bar=True, sync_dist=True, batch_size=len(x))

    def pictures(self, x: Tensor) -> dict[str, Tensor]:
        """Clips to look at, each (n, F, C, H, W): truth above reconstruction."""
        with torch.no_grad():
            return {"reconstruction": torch.cat((x, self.vae.decode_raw(self.vae.moments(x)[0])), dim=-2)}


@torch.no_grad()
def measure_latents(vae: VAE, batches: list[Tensor]) -> None:
    """Set the VAE's per-channel latent mean and standard deviation from videos (B, F, C, H, W)."""
    means = torch.cat([vae.moments(x)[0].flatten(0, 1) for x in batches]).double()  # (N, c, h, w)
    vae.latent_mean.copy_(means.mean(dim=(0, 2, 3)))
    vae.latent_std.copy_(means.std(dim=(0, 2, 3)).clamp_min(1e-6))
