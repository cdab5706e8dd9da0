"""The oracle that knows the motion: its posterior against dense algebra, its digits against held-out ones."""

import numpy as np
import pytest
import torch
from scipy import stats

from vsr_lightning.data.digits import load_digits
from vsr_lightning.degradation.downsample import Downsample
from vsr_lightning.inference.known_motion import DigitMixture, fit_digits, log_evidence, sample_with_known_motion

SIDE, SIZE, FRAMES = 4, 16, 3
P, D = SIDE**2, 3
SIGMA = 0.05


@pytest.fixture
def mixture():
    """Three components of few dimensions, grey on average, so that no sample is clipped."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, D, D)) * 0.02 + 0.03 * np.eye(D)
    return DigitMixture(
        centre=torch.full((P,), 0.5, dtype=torch.float64),
        basis=torch.from_numpy(np.linalg.qr(rng.normal(size=(P, D)))[0]),
        remainder=0.0,
        log_weights=torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(),
        means=torch.from_numpy(0.05 * rng.normal(size=(3, D))),
        precisions=torch.from_numpy(np.linalg.inv(roots @ roots.transpose(0, 2, 1))),
    )


def design(A, corners):
    """The operator from a digit's pixels to all frames, made by pushing every pixel through it: (F h w, P)."""
    columns = []
    for pixel in np.eye(P):
        frames = np.zeros((FRAMES, SIZE, SIZE))
        for frame, (top, left) in zip(frames, corners, strict=True):
            frame[top : top + SIDE, left : left + SIDE] = pixel.reshape(SIDE, SIDE)
        columns.append((A @ frames @ A.T).ravel())
    return np.stack(columns, axis=1)


@pytest.fixture
def scene():
    """Operator along an axis, corners of two digits that never overlap, the design of both, and an observation."""
    A = Downsample(factor=4).matrix(SIZE, 1.0).numpy()
    corners = np.array([[[0, 0], [1, 2], [2, 4]], [[9, 9], [10, 11], [12, 12]]])
    both = np.concatenate([design(A, path) for path in corners], axis=1)
    digits = 0.5 + 0.05 * np.random.default_rng(1).normal(size=2 * P)
    y = both @ digits + SIGMA * np.random.default_rng(2).normal(size=len(both))
    return A, corners, both, y


def test_evidence_of_components_is_the_marginal_likelihood(mixture, scene):
    _, _, both, y = scene
    basis = np.kron(np.eye(2), mixture.basis.numpy())
    G, rest = both @ basis, y - both @ np.full(2 * P, 0.5)
    information, gain = torch.from_numpy(G.T @ G / SIGMA**2), torch.from_numpy(G.T @ rest / SIGMA**2)
    covariances, means = np.linalg.inv(mixture.precisions.numpy()), mixture.means.numpy()
    for i, other in ((0, 2), (1, 0)):
        expected = []
        for k in range(3):
            mean, covariance = np.zeros(2 * D), np.zeros((2 * D, 2 * D))
            for digit, component in ((i, k), (1 - i, other)):
                part = slice(digit * D, (digit + 1) * D)
                mean[part], covariance[part, part] = means[component], covariances[component]
            marginal = stats.multivariate_normal(G @ mean, G @ covariance @ G.T + SIGMA**2 * np.eye(len(y)))
            expected.append(np.log([0.2, 0.5, 0.3][k]) + marginal.logpdf(rest))
        found = log_evidence(information, gain, i, other, mixture)
        torch.testing.assert_close(found.diff(), torch.tensor(expected, dtype=torch.float64).diff())


def test_samples_of_one_gaussian_have_the_closed_form_posterior(mixture, scene):
    A, corners, both, y = scene
    one = DigitMixture(
        mixture.centre, mixture.basis, 0.0, torch.zeros(1).double(), mixture.means[:1], mixture.precisions[:1]
    )
    G = both @ np.kron(np.eye(2), mixture.basis.numpy())
    prior_precision = np.kron(np.eye(2), mixture.precisions[0].numpy())
    covariance = np.linalg.inv(G.T @ G / SIGMA**2 + prior_precision)
    pull = G.T @ (y - both @ np.full(2 * P, 0.5)) / SIGMA**2 + prior_precision @ np.tile(mixture.means[0], 2)
    mean = covariance @ pull

    generator, count = torch.Generator().manual_seed(0), 2000
    observation = torch.from_numpy(y).view(FRAMES, 4, 4)
    operator = torch.from_numpy(A), torch.from_numpy(A)
    digits = []
    for _ in range(count):
        clip = sample_with_known_motion(
            observation, operator, torch.from_numpy(corners), [0, 1, 2], SIGMA, one, generator, sweeps=1
        )
        top = corners[:, 0]
        digits.append([clip[0, a : a + SIDE, b : b + SIDE].flatten() for a, b in top])
    samples = torch.stack([torch.cat(pair) for pair in digits]).numpy() - 0.5
    found = samples @ np.kron(np.eye(2), mixture.basis.numpy())
    assert np.abs((found.mean(0) - mean) / np.sqrt(np.diag(covariance) / count)).max() < 4
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=5 * covariance.max() / count**0.5)


def test_a_hidden_part_is_no_evidence_against_a_digit():
    """Two squares of one component each, one half behind the other: both are found, and the maximum shown."""
    flat = DigitMixture(
        centre=torch.zeros(P).double(),
        basis=torch.eye(P).double(),
        remainder=0.0,
        log_weights=torch.zeros(1).double(),
        means=torch.full((1, P), 0.5).double(),
        precisions=torch.eye(P).double()[None] / 0.3**2,
    )
    corners = torch.tensor([[[4, 4]] * FRAMES, [[4, 6]] * FRAMES])
    truth = torch.zeros(FRAMES, SIZE, SIZE).double()
    truth[:, 4:8, 6:10] = 0.4
    truth[:, 4:8, 4:8] = 0.9
    eye = torch.eye(SIZE).double()
    clip = sample_with_known_motion(
        truth, (eye, eye), corners, [0, 1, 2], 0.01, flat, torch.Generator().manual_seed(0), sweeps=30
    )
    assert (clip - truth).abs().max() < 0.06


def test_fitted_digits_look_like_digits():
    digits = load_digits("embedded", "train")
    mixture = fit_digits(digits, components=8, dimensions=30)
    assert mixture.log_weights.exp().sum().item() == pytest.approx(1)
    assert mixture.basis.T @ mixture.basis == pytest.approx(np.eye(30), abs=1e-9)
    held_out = torch.from_numpy(load_digits("embedded", "val").reshape(-1, 784) / 255) - mixture.centre
    coefficients = held_out @ mixture.basis
    assert (held_out - coefficients @ mixture.basis.T).square().mean().item() == pytest.approx(
        mixture.remainder, rel=0.3
    )
    densities = [
        stats.multivariate_normal(mean, np.linalg.inv(precision)).logpdf(coefficients)
        for mean, precision in zip(mixture.means.numpy(), mixture.precisions.numpy(), strict=True)
    ]
    of_mixture = np.logaddexp.reduce(np.stack(densities) + mixture.log_weights.numpy()[:, None], axis=0).mean()
    one = stats.multivariate_normal(np.zeros(30), np.cov(coefficients.T.numpy()))  # even fitted to the held-out ones
    assert of_mixture > one.logpdf(coefficients).mean()
