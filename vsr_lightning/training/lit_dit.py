"""Training of the video DiT in the latent space of a frozen VAE: DDPM's simple loss, on eps or v."""

import torch
from torch import Tensor

from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.experiment import Training
from vsr_lightning.inference.ancestral import ancestral_sample
from vsr_lightning.inference.dps import Observation
from vsr_lightning.inference.dps_polyak import dps_polyak_sample
from vsr_lightning.inference.noise import SampleKey, SamplerNoise, sensor_noise
from vsr_lightning.metrics import psnr
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import LinearSchedule
from vsr_lightning.models.vae import VAE
from vsr_lightning.models.video_dit import VideoDiT
from vsr_lightning.training.optimisation import LitNetwork, step_generator

NOISE_LEVELS = 4  # the loss is logged apart for so many equal ranges of t
# The observation of the posterior check: 8x, as in the frame-count sweep.
CHECK_SIGMA_H, CHECK_SIGMA_Y = 2.0, 0.02
CHECK_START = 0.85  # where its sampler begins, as a share of the schedule


def spread_timesteps(batch: int, num_steps: int, generator: torch.Generator, density: str = "uniform") -> Tensor:
    """Timesteps (B,) in 0 … T-1, together evenly spread over their density (Kingma et al. 2021, App. I.1).

    Spread, they give the loss less variance. `density` is that of each alone: `uniform`, or `logit_normal`, t/T =
    sigmoid(n) with n ~ N(0, 1) (Esser et al. 2024, Eq. 19).
    """
    offset = torch.rand(1, generator=generator, device=generator.device)
    quantile = (torch.arange(batch, device=generator.device) / batch + offset) % 1
    if density == "logit_normal":
        quantile = torch.special.ndtri(quantile).sigmoid()
    return (quantile * num_steps).long().clamp_max(num_steps - 1)


class LitDiT(LitNetwork):
    """Batches are videos (B, F, C, H, W) in [-1, 1]."""

    vae: VAE
    schedule: LinearSchedule

    def __init__(self, dit: VideoDiT, vae: VAE, schedule: LinearSchedule, training: Training, seed: int) -> None:
        super().__init__(training, seed)
        self.dit = dit
        # Set around nn.Module: frozen parts stay out of parameters(), checkpoints and the weight average.
        object.__setattr__(self, "vae", vae.eval().requires_grad_(False))
        object.__setattr__(self, "schedule", schedule)

    @property
    def prior(self) -> Prior:
        return Prior(self.vae, self.dit, self.schedule)

    def setup(self, stage: str) -> None:
        for module in (self.vae, self.schedule):
            module.to(self.trainer.strategy.root_device)  # self is moved later

    def training_step(self, x: Tensor, batch_idx: int) -> Tensor:
        loss, t = self._losses(x, step_generator(self, self.seed), self.training_options.timesteps)
        self.keep_for_log(lambda: {"train/loss": loss.mean(), **self._by_noise_level("train", loss, t)})
        return loss.mean()

    def validation_step(self, x: Tensor, batch_idx: int) -> None:
        # The same noise at every validation, so that curves show the network and not the draw.
        generator = torch.Generator(self.device).manual_seed(self.global_rank * 100_003 + batch_idx)
        with torch.compiler.set_stance("force_eager"):
            loss, t = self._losses(x, generator)
        self.log("val/loss", loss.mean(), prog_bar=True, sync_dist=True, batch_size=len(x))
        levels = self._by_noise_level("val", loss, t)
        self.log_dict(levels, sync_dist=True, batch_size=len(x))

    def on_validation_epoch_end(self) -> None:
        videos = self.training_options.check_videos
        if videos and not self.trainer.sanity_checking:
            clips = self.trainer.datamodule.validation_clips(videos).to(self.device)  # type: ignore[attr-defined]
            score = psnr(self._restore(clips), clips)
            # Every rank restores the same clips: cheap, and no rank waits for another.
            scores = {"val/dps_psnr_first": score[:, 0].mean(), "val/dps_psnr": score.mean()}
            self.log_dict(scores, prog_bar=True, sync_dist=True)

    def pictures(self, x: Tensor) -> dict[str, Tensor]:
        """Clips to look at, each (n, F, C, H, W): samples of the prior; truth above a posterior sample."""
        steps = self.training_options.check_steps
        with torch.compiler.set_stance("force_eager"):
            prior = self.prior
            noise = SamplerNoise(_keys(len(x)), prior.latent_shape, self.device)
            samples = prior.decode(ancestral_sample(prior, noise, steps=steps))
        return {"sample": samples, "restoration": torch.cat((x, self._restore(x)), dim=-2)}

    def _losses(self, x: Tensor, generator: torch.Generator, density: str = "uniform") -> tuple[Tensor, Tensor]:
        """Squared error per sample (B,), and the timesteps (B,) it was taken at."""
        with torch.no_grad():
            z0 = self.vae.encode(x)
        t = spread_timesteps(len(x), self.schedule.num_steps, generator, density)
        eps = torch.randn(z0.shape, generator=generator, device=self.device)
        target = eps if self.dit.prediction == "eps" else self.schedule.velocity(z0, eps, t)
        prediction = self.dit(self.schedule.add_noise(z0, eps, t), t)
        return (prediction - target).square().flatten(1).mean(dim=1), t

    def _by_noise_level(self, stage: str, loss: Tensor, t: Tensor) -> dict[str, Tensor]:
        level = t * NOISE_LEVELS // self.schedule.num_steps
        members = torch.nn.functional.one_hot(level, NOISE_LEVELS).to(loss.dtype)  # (B, levels)
        sums, counts = loss @ members, members.sum(dim=0)
        return {f"{stage}/loss_t{i}": sums[i] / counts[i].clamp_min(1) for i in range(NOISE_LEVELS)}

    def _restore(self, x: Tensor) -> Tensor:
        """8x posterior samples of clips x (B, F, C, H, W), all frames observed."""
        options = self.training_options
        blur = [CHECK_SIGMA_H] * len(x)
        operator = Downsample(factor=8).operator(blur, x.shape[-2], x.shape[-1], x.device)
        y = operator(x)
        y = y + CHECK_SIGMA_Y * sensor_noise(_keys(len(x)), tuple(y.shape[1:])).to(y.device)
        prior = self.prior
        noise_norm = torch.full((len(y),), CHECK_SIGMA_Y * y[0].numel() ** 0.5, device=y.device)
        noise = SamplerNoise(_keys(len(x)), prior.latent_shape, x.device)
        with torch.compiler.set_stance("force_eager"):
            return dps_polyak_sample(
                prior,
                Observation(y, operator, noise_norm, blur),
                noise,
                steps=options.check_steps,
                zeta=options.check_zeta,
                start=CHECK_START,
            )


def _keys(samples: int) -> list[SampleKey]:
    return [(0, video, 0) for video in range(samples)]
