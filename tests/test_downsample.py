"""The degradation against scipy and Pillow; and its adjoint, gradient, batching and errors."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from vsr_lightning.degradation.downsample import Downsample, SeparableOperator, upsample_bicubic
from vsr_lightning.errors import UserError

FACTORS = [2, 4, 8]
OPERATORS = [(kernel, factor) for kernel in ("gaussian", "box", "bicubic") for factor in FACTORS]
HEIGHT, WIDTH = 24, 32


def widths(kernel: str) -> list[float]:
    """sigma_h of a batch of two, in HR pixels."""
    return [0.7, 2.0] if kernel == "gaussian" else [0.0, 0.0]


def build(kernel: str, factor: int) -> SeparableOperator:
    return Downsample(factor, kernel).operator(widths(kernel), HEIGHT, WIDTH)


def random_video(batch: int = 2, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    return torch.rand(batch, 3, 2, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def resize_pillow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


# Against independent references


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("sigma_h", [0.0, 0.1, 0.7, 2.0, 12.0])  # the last is wider than the axis
def test_gaussian_matrix_is_scipy_blur_then_decimation(factor: int, sigma_h: float) -> None:
    x = np.random.default_rng(0).normal(size=(HEIGHT, 5))
    blurred = gaussian_filter1d(x, sigma_h, axis=0, mode="reflect", truncate=4) if sigma_h else x
    y = Downsample(factor).matrix(HEIGHT, sigma_h).numpy() @ x
    np.testing.assert_allclose(y, blurred[factor // 2 :: factor], atol=1e-12)


def test_gaussian_operator_is_scipy_in_two_dimensions() -> None:
    x = random_video()
    y = build("gaussian", 4)(x)
    for sample, sigma_h in enumerate(widths("gaussian")):
        blurred = gaussian_filter(x[sample].double().numpy(), sigma_h, mode="reflect", truncate=4, axes=(-2, -1))
        np.testing.assert_allclose(y[sample], blurred[..., 2::4, 2::4], atol=1e-6)


def test_kernel_size_sets_the_number_of_taps() -> None:
    x = np.random.default_rng(0).normal(size=HEIGHT)
    blurred = gaussian_filter1d(x, 2.0, mode="reflect", radius=3)
    y = Downsample(4, kernel_size=7).matrix(HEIGHT, 2.0).numpy() @ x
    np.testing.assert_allclose(y, blurred[2::4], atol=1e-12)


def test_width_of_an_lr_samples_view() -> None:
    """Standard deviations: of the Gaussian, of nine of its taps, of eight equal ones."""
    assert Downsample(8).widths(64, [0.0, 2.0, 0.0]) == pytest.approx([0, 2, 0], abs=0.01)
    weights = np.exp(-0.5 * (np.arange(-4, 5) / 6.0) ** 2)
    truncated = np.average(np.arange(-4, 5) ** 2.0, weights=weights) ** 0.5
    assert Downsample(8, kernel_size=9).widths(64, [6.0]) == pytest.approx([truncated])
    assert Downsample(8, "box").widths(64, [0.0]) == pytest.approx([((8**2 - 1) / 12) ** 0.5])


@pytest.mark.parametrize("factor", FACTORS)
def test_box_is_the_block_mean(factor: int) -> None:
    x = random_video()
    torch.testing.assert_close(build("box", factor)(x)[:, 0], F.avg_pool2d(x[:, 0], factor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", FACTORS)
def test_bicubic_is_pillow_up_to_the_border(factor: int) -> None:
    x = random_video()
    y = build("bicubic", factor)(x)
    expected = resize_pillow(x[0, 0, 0].numpy(), HEIGHT // factor, WIDTH // factor)
    np.testing.assert_allclose(y[0, 0, 0], expected, atol=1e-6)


# What every operator owes


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_shape_and_constant(kernel: str, factor: int) -> None:
    y = build(kernel, factor)(torch.full((2, 3, 2, HEIGHT, WIDTH), 0.5))
    assert y.shape == (2, 3, 2, HEIGHT // factor, WIDTH // factor)
    torch.testing.assert_close(y, torch.full_like(y, 0.5))


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_adjoint_identity(kernel: str, factor: int) -> None:
    degrade = build(kernel, factor).double()
    x = random_video().double()
    y = torch.randn_like(degrade(x))
    torch.testing.assert_close((degrade(x) * y).sum(), (x * degrade.adjoint(y)).sum(), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_gradient(kernel: str, factor: int) -> None:
    degrade = Downsample(factor, kernel).operator(widths(kernel), 8, 16).double()
    x = random_video(height=8, width=16)[:, :1, :1].double().requires_grad_()
    assert torch.autograd.gradcheck(degrade, (x,), fast_mode=True)


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_same_input_same_output(kernel: str, factor: int) -> None:
    x = random_video()
    assert torch.equal(build(kernel, factor)(x), build(kernel, factor)(x))


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_stacked_samples_equal_separate_ones(kernel: str, factor: int) -> None:
    x = random_video()
    together = build(kernel, factor)(x)
    for sample, sigma_h in enumerate(widths(kernel)):
        alone = Downsample(factor, kernel).operator([sigma_h], HEIGHT, WIDTH)(x[sample : sample + 1])
        torch.testing.assert_close(together[sample], alone[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["gaussian", "box", "bicubic"])
def test_float32_under_autocast(kernel: str) -> None:
    degrade, x = build(kernel, 4), random_video()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, back = degrade(x), degrade.adjoint(degrade(x))
    assert y.dtype == back.dtype == torch.float32
    assert torch.equal(y, degrade(x))


def test_compiles_as_one_graph() -> None:
    degrade, x = build("gaussian", 4), random_video()
    compiled = torch.compile(degrade, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), degrade(x))


# The bicubic baseline


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_upsampling_restores_a_ramp_in_the_interior(kernel: str, factor: int) -> None:
    degradation, size = Downsample(factor, kernel), 12 * factor
    ramp = torch.linspace(-1, 1, size).expand(1, 1, 1, size, size)
    y = degradation.operator([0.0], size, size)(ramp)
    restored = upsample_bicubic(y, degradation)
    assert restored.shape == ramp.shape
    # The border of the bicubic operator reaches two LR samples in, that of the upsampling two more.
    inside = slice(4 * factor, -4 * factor)
    torch.testing.assert_close(restored[..., inside], ramp[..., inside], atol=1e-6, rtol=0)


def test_interpolate_would_be_half_a_pixel_off() -> None:
    size, degradation = 96, Downsample(8)
    # A pixel's value is its column, so errors are in HR pixels.
    ramp = torch.arange(float(size)).expand(1, 1, 1, size, size)
    y = degradation.operator([0.0], size, size)(ramp)
    block = slice(40, 48)
    error = (F.interpolate(y[0], size=(size, size), mode="bicubic") - ramp[0])[..., block].mean()
    assert abs(error) == pytest.approx(0.5, abs=1e-3)
    assert (upsample_bicubic(y, degradation) - ramp)[..., block].abs().max() < 1e-4


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kernel", ["box", "bicubic"])  # Pillow's own phase
def test_upsampling_is_pillow_in_the_interior(kernel: str, factor: int) -> None:
    y = random_video(1, 12, 10)
    restored = upsample_bicubic(y, Downsample(factor, kernel))[0, 0, 0].numpy()
    expected = resize_pillow(y[0, 0, 0].numpy(), 12 * factor, 10 * factor)
    inside = (slice(2 * factor, -2 * factor),) * 2
    np.testing.assert_allclose(restored[inside], expected[inside], atol=1e-6)


@pytest.mark.parametrize(("kernel", "factor"), OPERATORS)
def test_upsampling_keeps_a_constant_to_the_border(kernel: str, factor: int) -> None:
    restored = upsample_bicubic(torch.full((2, 1, 1, 3, 5), 0.25), Downsample(factor, kernel))
    torch.testing.assert_close(restored, torch.full_like(restored, 0.25))


# Bad input


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("degradation.factor", {"factor": 0}),
        ("degradation.factor", {"factor": 2.5}),
        ("degradation.kernel", {"kernel": "lanczos"}),
        ("degradation.kernel_size", {"kernel_size": 4}),
        ("degradation.kernel_size", {"kernel_size": -1}),
        ("degradation.kernel_size", {"kernel_size": 2.5}),
        ("degradation.kernel_size", {"kernel": "box", "kernel_size": 3}),
    ],
)
def test_bad_value_names_its_key(key: str, values: dict) -> None:
    with pytest.raises(UserError, match=rf"^{key}\b[^\n]*$"):
        Downsample(**values)


@pytest.mark.parametrize(
    ("key", "kernel", "size", "sigma_h"),
    [
        ("degradation.factor", "gaussian", 60, 0.0),
        ("degradation.factor", "box", 4, 0.0),
        ("degradation.factor", "bicubic", 0, 0.0),
        ("grid.sigma_h", "gaussian", 64, -1.0),
        ("grid.sigma_h", "gaussian", 64, float("nan")),
        ("grid.sigma_h", "gaussian", 64, float("inf")),
        ("grid.sigma_h", "box", 64, 2.0),
        ("grid.sigma_h", "bicubic", 64, 2.0),
    ],
)
def test_bad_condition_names_its_key(key: str, kernel: str, size: int, sigma_h: float) -> None:
    with pytest.raises(UserError, match=rf"^{key}=[^\n]*$"):
        Downsample(8, kernel).matrix(size, sigma_h)
