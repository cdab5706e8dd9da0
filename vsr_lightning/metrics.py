"""PSNR and SSIM of videos, per frame, and the error of their motion.

All take videos (B, F, C, H, W) in [-1, 1], and measure on [0, 1] after clamping, in float32 or
better, whatever autocast says.
B batch, F frames, C channels, H W pixels.
"""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure


def psnr(x_hat: Tensor, x: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, (B, F) in dB: -10 log10(MSE); infinite for equal frames."""
    x_hat, x = _to_unit(x_hat, x)
    return -10 * torch.log10((x_hat - x).square().mean(dim=(-3, -2, -1)))


def ssim(x_hat: Tensor, x: Tensor) -> Tensor:
    """Structural similarity of each frame, (B, F): 11-tap Gaussian window of width 1.5, mean over colours.

    The mean is over every pixel; the window sees the frame mirrored at its border, so H and W are at least 6.
    """
    x_hat, x = _to_unit(x_hat, x)
    # A local variance is a small difference of large sums; TF32, cuDNN's default, would spoil it.
    dtype = torch.float64 if x.is_cuda else torch.float32
    with torch.autocast(x.device.type, enabled=False):
        # torchmetrics takes a Gaussian's tap count from sigma: 2 * int(3.5 * 1.5 + 0.5) + 1 = 11.
        # Frames go as channels: libraries are slow at convolving images of one channel.
        _, similarity = structural_similarity_index_measure(
            x_hat.flatten(1, 2).to(dtype),
            x.flatten(1, 2).to(dtype),
            sigma=1.5,
            data_range=1.0,
            reduction="none",
            return_full_image=True,
        )
    return similarity.unflatten(1, x.shape[1:3]).mean(dim=(2, 3, 4)).float()


def temporal_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Root mean square error of the differences between successive frames, (B,) on [0, 1]; nan for a single frame.

    It sees flicker and wrong motion; an error that is the same in every frame does not count.
    """
    x_hat, x = _to_unit(x_hat, x)
    return (x_hat.diff(dim=1) - x.diff(dim=1)).square().mean(dim=(1, 2, 3, 4)).sqrt()


def scores(x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
    """What a sweep reports of videos, each (B,): PSNR of the first frame, means over frames, temporal error."""
    quality = psnr(x_hat, x)
    return {
        "psnr_first": quality[:, 0],
        "psnr_mean": quality.mean(dim=1),
        "ssim_mean": ssim(x_hat, x).mean(dim=1),
        "temporal_error": temporal_error(x_hat, x),
    }


def _to_unit(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both videos on [0, 1], float32. Raises ValueError unless both are (B, F, C, H, W)."""
    if x_hat.shape != x.shape or x.ndim != 5:
        raise ValueError(f"expected two videos (B, F, C, H, W), got {tuple(x_hat.shape)} and {tuple(x.shape)}")
    return ((x_hat.float() + 1) / 2).clamp(0, 1), ((x.float() + 1) / 2).clamp(0, 1)
