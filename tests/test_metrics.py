"""PSNR against its closed form; SSIM against the definition of Wang et al. (2004), written with scipy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from vsr_lightning.metrics import psnr, scores, ssim, temporal_error

Metric = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def videos() -> tuple[torch.Tensor, torch.Tensor]:
    """A restored and a true video, (2, 3, 3, 16, 20), the restored one reaching outside [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 3, 16, 20, generator=generator) * 2 - 1
    return x + 0.3 * torch.randn(x.shape, generator=generator), x


def to_unit(x: torch.Tensor) -> np.ndarray:
    return np.clip((x.double().numpy() + 1) / 2, 0, 1)


def ssim_reference(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two grey images (H, W) on [0, 1], averaged over every pixel."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps /= taps.sum()

    def local_mean(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, taps, axis=0, mode="mirror"), taps, axis=1, mode="mirror")

    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a**2) - mean_a**2, local_mean(b**2) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def test_psnr_of_a_constant_offset() -> None:
    x = torch.zeros(2, 3, 1, 4, 4)
    # 0.2 on [-1, 1] is 0.1 on [0, 1]: an MSE of 0.01.
    torch.testing.assert_close(psnr(x + 0.2, x), torch.full((2, 3), 20.0))


def test_psnr_of_each_frame() -> None:
    x_hat, x = videos()
    expected = 10 * np.log10(1 / ((to_unit(x_hat) - to_unit(x)) ** 2).mean(axis=(2, 3, 4)))
    np.testing.assert_allclose(psnr(x_hat, x), expected, atol=1e-4)


def test_psnr_clamps_first_and_is_infinite_for_equal_frames() -> None:
    x = torch.ones(1, 1, 1, 4, 4)
    assert psnr(x + 5, x).item() == float("inf")


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_of_each_frame(channels: int) -> None:
    x_hat, x = (video[:, :, :channels] for video in videos())
    expected = [
        [
            np.mean([ssim_reference(a, b) for a, b in zip(*colours, strict=True)])
            for colours in zip(*frames, strict=True)
        ]
        for frames in zip(to_unit(x_hat), to_unit(x), strict=True)
    ]
    np.testing.assert_allclose(ssim(x_hat, x), expected, atol=1e-5)


def test_ssim_of_a_flat_bright_frame() -> None:
    x = torch.ones(1, 1, 1, 16, 16)  # the local variance is 1 - 1: rounding must not show
    assert ssim(x - 1, x).item() == pytest.approx((2 * 0.5 + 1e-4) / (1.25 + 1e-4), abs=1e-4)


def test_ssim_of_identical_videos_is_one() -> None:
    _, x = videos()
    torch.testing.assert_close(ssim(x, x), torch.ones(2, 3))


def test_temporal_error_of_each_video() -> None:
    x_hat, x = videos()
    difference = np.diff(to_unit(x_hat), axis=1) - np.diff(to_unit(x), axis=1)
    np.testing.assert_allclose(temporal_error(x_hat, x), np.sqrt((difference**2).mean(axis=(1, 2, 3, 4))), atol=1e-6)


def test_temporal_error_sees_flicker_and_no_constant_error() -> None:
    x = torch.zeros(1, 4, 1, 8, 8)
    assert temporal_error(x + 0.2, x).item() == pytest.approx(0, abs=1e-7)
    flicker = x + torch.tensor([0.1, -0.1, 0.1, -0.1])[:, None, None, None]
    assert temporal_error(flicker, x).item() == pytest.approx(0.1)  # 0.2 from frame to frame is 0.1 on [0, 1]
    assert temporal_error(x[:, :1], x[:, :1]).isnan().all()


def test_scores_are_means_over_frames() -> None:
    x_hat, x = videos()
    found = scores(x_hat, x)
    assert list(found) == ["psnr_first", "psnr_mean", "ssim_mean", "temporal_error"]
    assert torch.equal(found["psnr_first"], psnr(x_hat, x)[:, 0])
    torch.testing.assert_close(found["psnr_mean"], psnr(x_hat, x).mean(dim=1))
    torch.testing.assert_close(found["ssim_mean"], ssim(x_hat, x).mean(dim=1))
    assert torch.equal(found["temporal_error"], temporal_error(x_hat, x))


@pytest.mark.parametrize("metric", [psnr, ssim, temporal_error])
def test_precision_survives_bf16_and_autocast(metric: Metric) -> None:
    x_hat, x = (video.bfloat16() for video in videos())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = metric(x_hat, x)
    assert measured.dtype == torch.float32
    assert torch.equal(measured, metric(x_hat.float(), x.float()))


@pytest.mark.parametrize("metric", [psnr, ssim, temporal_error, scores])
def test_shapes_must_agree(metric: Metric) -> None:
    x_hat, x = videos()
    with pytest.raises(ValueError, match="expected two videos"):
        metric(x_hat[:, :1], x)
    with pytest.raises(ValueError, match="expected two videos"):
        metric(x_hat[0], x[0])
