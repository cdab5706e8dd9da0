"""Video super-resolution as a LightningModule: observes true clips, restores them, and measures the restoration."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import lightning as L
import torch
from torch import Tensor

from vsr_lightning.degradation.downsample import Downsample, SeparableOperator, upsample_bicubic
from vsr_lightning.degradation.frame_mask import mask_frames
from vsr_lightning.errors import UserError
from vsr_lightning.inference.dps import Observation
from vsr_lightning.inference.guidance import estimate
from vsr_lightning.inference.noise import SampleKey, SamplerNoise, sensor_noise
from vsr_lightning.metrics import scores
from vsr_lightning.models.prior import Prior
from vsr_lightning.models.schedule import Step

WARM_UP_STEPS = 3  # a CUDA graph is captured at the second call


@dataclass
class ObservationBatch:
    """B samples: clips, and how each is observed. Samples past `size` are padding that keeps the shape fixed."""

    clips: Tensor  # the true videos, each once: (n, F, C, H, W) in [-1, 1]
    clip_of: Tensor  # (B,), the clip that each sample is of
    mask: Tensor  # (B, F), 1 where a frame is observed
    sigma_h: list[float]  # blur width of each sample, HR pixels
    sigma_y: Tensor  # (B,), sensor noise on the [-1, 1] scale
    keys: list[SampleKey]  # name the random streams
    factor: int  # of the operator, HR pixels per LR pixel
    kernel: str  # of the operator
    sampler: str
    steps: int
    zeta: Tensor  # (B,)
    size: int

    @property
    def x(self) -> Tensor:
        """The true video of each sample, a copy (B, F, C, H, W)."""
        return self.clips[self.clip_of]


@dataclass
class Restoration:
    """What came of the real samples of a batch (padding dropped)."""

    y: Tensor  # observation (B, F, C, h, w), unobserved frames zero
    x_hat: Tensor  # (B, F, C, H, W)
    bicubic: Tensor  # the baseline (B, F, C, H, W), unobserved frames grey
    measured: list[dict[str, float]]
    status: list[str]  # "ok", or what went wrong and where
    seconds: float  # that sampling took, all of them together
    seconds_of_scores: float  # that measuring them took


class LitVSR(L.LightningModule):
    """Posterior sampling of one batch of observations after another, through `Trainer.predict`.

    Needs `Trainer(inference_mode=False)`: guidance takes gradients. `samplers`, by the names that batches use, are
    called as `dps_sample` is, less the parameters already bound. `degradation` is the operator, at the factor and
    kernel of each batch. Each of `step_listeners` hears of every sampler step. With `observe_reconstruction` the
    observation is made from the VAE's reconstruction of the clips (an inverse crime; see `Grid.observe`).
    """

    def __init__(
        self,
        prior: Prior,
        degradation: Downsample,
        samplers: Mapping[str, Callable[..., Tensor]],
        observe_reconstruction: bool = False,
    ) -> None:
        super().__init__()
        self.prior, self.degradation, self.samplers = prior, degradation, samplers
        self.observe_reconstruction = observe_reconstruction
        self.step_listeners: list[Callable[[], None]] = []
        self._cold = False  # compiled, but not run yet
        self._vae_scores: dict[tuple[int, int], dict[str, float]] = {}  # by clip

    def compile_networks(self, autocast: torch.dtype | None = None) -> None:
        """Pays for jobs of more than some minutes. `autocast`: see `Prior.compile_for_sampling`."""
        self.prior.compile_for_sampling(autocast)
        self._cold = True

    def predict_step(self, batch: ObservationBatch, batch_idx: int) -> Restoration:
        if self._cold:  # compilation is no sampling time
            self._warm_up(len(batch.keys), batch.clips.device)
        started = time.perf_counter()
        degradation = replace(self.degradation, factor=batch.factor, kernel=batch.kernel)
        height, width = batch.clips.shape[-2:]
        operator = degradation.operator(batch.sigma_h, height, width, batch.clips.device)
        seen = replace(batch, clips=self._reconstruct(batch.clips)) if self.observe_reconstruction else batch
        y = observe(seen, operator)
        blur = degradation.widths(width, batch.sigma_h)
        failures = FailureLog(len(y), y.device)

        def on_step(index: int, step: Step, residual: Tensor) -> None:
            failures.record(index, residual)
            for listener in self.step_listeners:
                listener()

        x_hat = self.samplers[batch.sampler](
            self.prior,
            Observation(y, lambda x: mask_frames(operator(x), batch.mask), noise_norm(batch, y), blur),
            SamplerNoise(batch.keys, self.prior.latent_shape, y.device),
            steps=batch.steps,
            zeta=batch.zeta,
            on_step=on_step,
        )
        status = failures.status(x_hat, batch.zeta)  # waits for the device, so the clock below is true
        sampled = time.perf_counter()
        seconds = sampled - started
        bicubic = upsample_bicubic(y, degradation)
        measured = self._measure(batch, operator, y, x_hat, bicubic)
        return Restoration(
            y=y[: batch.size],
            x_hat=x_hat[: batch.size],
            bicubic=bicubic[: batch.size],
            measured=[{**row, "seconds": seconds / batch.size} for row in measured],
            status=status[: batch.size],
            seconds=seconds,
            seconds_of_scores=time.perf_counter() - sampled,
        )

    def _warm_up(self, samples: int, device: torch.device) -> None:
        """Run guided steps of a batch of nothing: one compiles, another captures CUDA graphs."""
        y = torch.zeros(samples, *self.prior.video_shape, device=device)
        nothing = Observation(y, lambda x: x, torch.zeros(samples, device=device))
        z_t = torch.zeros(samples, *self.prior.latent_shape, device=device)
        for _ in range(WARM_UP_STEPS):
            estimate(self.prior, nothing, z_t, self.prior.schedule.respaced(1)[0])
        self._cold = False

    @torch.no_grad()
    def _reconstruct(self, x: Tensor) -> Tensor:
        """What the VAE makes of clips (n, F, C, H, W)."""
        with torch.compiler.set_stance("force_eager"):  # any number of clips: not worth a compilation each
            return self.prior.decode(self.prior.encode(x))

    @torch.no_grad()
    def _measure(
        self, batch: ObservationBatch, operator: SeparableOperator, y: Tensor, x_hat: Tensor, bicubic: Tensor
    ) -> list[dict[str, float]]:
        """The scores of the restoration, of bicubic upsampling and of the VAE's own reconstruction, and the misfit."""
        y_hat = mask_frames(operator(x_hat), batch.mask)
        pixels = batch.mask.sum(dim=1) * y[0, 0].numel()  # observed ones
        table = {"residual_rms": ((y - y_hat).square().flatten(1).sum(dim=1) / pixels).sqrt()}
        x = batch.x
        for suffix, video in {"": x_hat, "_bicubic": bicubic}.items():
            table |= {name + suffix: values for name, values in scores(video, x).items()}
        rows = [row | of_vae for row, of_vae in zip(_rows(table), self._measure_vae(batch), strict=True)]
        return rows[: batch.size]

    def _measure_vae(self, batch: ObservationBatch) -> list[dict[str, float]]:
        """The scores of the VAE's reconstruction of each sample's clip, which is measured when it first comes."""
        clips = [(seed, video) for seed, video, _ in batch.keys]
        for place, clip in enumerate(clips):
            if clip not in self._vae_scores:
                # By itself, so that rounding is the same whatever it comes with.
                x = batch.clips[batch.clip_of[place : place + 1]]
                of_vae = scores(self._reconstruct(x), x)
                (self._vae_scores[clip],) = _rows({f"{name}_vae": values for name, values in of_vae.items()})
        return [self._vae_scores[clip] for clip in clips]


def _rows(table: Mapping[str, Tensor]) -> list[dict[str, float]]:
    """Columns, (B,) each, as B rows. The device is waited for once."""
    return [dict(zip(table, row, strict=True)) for row in torch.stack([*table.values()], dim=1).tolist()]


def observe(batch: ObservationBatch, operator: SeparableOperator) -> Tensor:
    """Y = M(H(X) + E) (Eqs. 12, 15), from the batch's videos."""
    clean = operator(batch.x)
    noise = sensor_noise(batch.keys, tuple(clean.shape[1:])).to(clean.device)
    return mask_frames(clean + batch.sigma_y[:, None, None, None, None] * noise, batch.mask)


def noise_norm(batch: ObservationBatch, y: Tensor) -> Tensor:
    """The root mean square norm of the sensor noise in y (B, F, C, h, w), (B,)."""
    numbers_seen = batch.mask.sum(dim=1) * y[0, 0].numel()
    return batch.sigma_y * numbers_seen.sqrt()


class FailureLog:
    """The first step at which each sample's residual was not finite, kept on the device: no step waits for it."""

    def __init__(self, samples: int, device: torch.device) -> None:
        self._first = torch.full((samples,), -1, device=device)

    def record(self, index: int, residual: Tensor) -> None:
        new = (self._first < 0) & ~residual.isfinite()
        self._first = torch.where(new, index, self._first)

    def status(self, x_hat: Tensor, zeta: Tensor) -> list[str]:
        finite = x_hat.flatten(1).isfinite().all(dim=1).tolist()
        statuses = []
        for first, good, scale in zip(self._first.tolist(), finite, zeta.tolist(), strict=True):
            where = f"step {first}" if first >= 0 else "the last step"
            statuses.append("ok" if good and first < 0 else f"non-finite at {where} with zeta {scale:g}")
        return statuses


def check_frames(prior: Prior, num_frames: Sequence[int]) -> None:
    """Raise UserError if the prior's videos do not have so many frames."""
    total = prior.latent_shape[0]
    for number in num_frames:
        if not 1 <= number <= total:
            raise UserError(f"grid.num_frames: {number} is not between 1 and {total}, the frames of the prior's videos")
