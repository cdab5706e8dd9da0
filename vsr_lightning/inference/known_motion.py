"""How much the observations allow: Moving MNIST restored by an oracle that is told how the digits move.

With the paths known, a clip is two images of a digit, each seen through one linear operator, and under a mixture of
Gaussians as their prior the posterior can be sampled without a network. A method that must find the motion by itself
beats this oracle only where it knows digits better than the mixture does.

P pixels of a digit, D principal components, K components of the mixture, n observed numbers; F frames, H W pixels,
h w low-resolution pixels. Intensities on [0, 1]; float64.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIT = 0.05  # intensity from which a digit hides what is behind it


@dataclass(frozen=True)
class DigitMixture:
    """A mixture of Gaussians over digits, `centre + basis @ coefficients`, plus a little white noise."""

    centre: Tensor  # (P,)
    basis: Tensor  # (P, D), orthonormal columns
    remainder: float  # variance of a pixel outside the basis
    log_weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    precisions: Tensor  # (K, D, D)


def fit_digits(digits: np.ndarray, components: int = 100, dimensions: int = 80, seed: int = 0) -> DigitMixture:
    """Fit the mixture to digits, uint8 (N, height, width), by variational Bayes (Bishop 2006, section 10.2).

    Its prior gives a component that holds few digits 0.3 of the covariance of all digits: clusters are tighter than the
    whole.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import BayesianGaussianMixture

    pixels = digits.reshape(len(digits), -1) / 255
    dimensions = min(dimensions, *(side - 1 for side in pixels.shape))
    pca = PCA(dimensions, random_state=seed).fit(pixels)
    mixture = BayesianGaussianMixture(
        n_components=max(1, min(components, len(digits) // 50)),
        covariance_prior=np.diag(pca.explained_variance_) * 0.3 * dimensions,
        degrees_of_freedom_prior=dimensions,
        weight_concentration_prior_type="dirichlet_distribution",
        max_iter=15,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 15 rounds of EM are most of the way
        mixture.fit(pca.transform(pixels))
    outside = pixels.var(axis=0).sum() - pca.explained_variance_.sum()
    means, precisions = torch.from_numpy(mixture.means_), torch.from_numpy(mixture.precisions_)
    return DigitMixture(
        centre=torch.from_numpy(pca.mean_),
        basis=torch.from_numpy(pca.components_.T.copy()),
        remainder=float(max(outside, 0.0)) / pixels.shape[1],
        log_weights=torch.from_numpy(mixture.weights_).log(),
        means=means,
        precisions=precisions,
    )


def sample_with_known_motion(
    y: Tensor,
    A: tuple[Tensor, Tensor],
    corners: Tensor,
    frames: list[int],
    sigma: float,
    mixture: DigitMixture,
    generator: torch.Generator,
    sweeps: int = 12,
) -> Tensor:
    """One posterior sample of a clip, (F, H, W), by Gibbs sampling (Geman & Geman 1984).

    In turn it draws which component each digit is of, the digits integrated out, and then both digits together. Where
    they overlap the brighter one is taken to be in front until the next turn; that is set, not drawn.

    Args:
        y: observation (F, h, w).
        A: the operator along the rows and along the columns, (h, H) and (w, W).
        corners: top and left of each digit in each frame, (2, F, 2) whole pixels.
        frames: indices of the observed frames.
        sigma: standard deviation of the sensor noise.
    """
    size = A[0].shape[1], A[1].shape[1]
    side = round(len(mixture.centre) ** 0.5)
    seen = y[frames].flatten().double()
    layers = torch.zeros(2, len(y), *size, dtype=torch.float64)  # each digit on its own
    choice: list[int | None] = [None, None]
    for _ in range(sweeps):
        visible = torch.stack([~_hidden(layers, i) for i in range(2)])
        designs = [_design(A, corners[i, frames], visible[i, frames], side) for i in range(2)]
        # What lies outside the basis is noise, too.
        variance = sigma**2 + mixture.remainder * torch.cat(designs, dim=1).square().sum(dim=1)
        scale = variance.clamp_min(1e-12).rsqrt()[:, None]  # without sensor noise, none where no digit reaches
        G = scale * torch.cat([design @ mixture.basis for design in designs], dim=1)  # (n, 2 D)
        rest = scale[:, 0] * (seen - torch.cat(designs, dim=1) @ mixture.centre.repeat(2))
        information, gain = G.T @ G, G.T @ rest
        for i in range(2):
            evidence = log_evidence(information, gain, i, choice[1 - i], mixture)
            choice[i] = int(torch.multinomial(torch.softmax(evidence, dim=0), 1, generator=generator))
        coefficients = _draw_digits(information, gain, choice, mixture, generator)
        digits = (mixture.centre + coefficients @ mixture.basis.T).clamp(0, 1)
        layers = torch.stack([_paste(digits[i].view(side, side), corners[i], size) for i in range(2)])
    return (visible * layers).sum(dim=0).clamp(0, 1)  # what the observation was compared with


def _hidden(layers: Tensor, i: int) -> Tensor:
    """Where digit i is behind the other one, (F, H, W). Where one is dark, maximum and sum are the same."""
    own, other = layers[i], layers[1 - i]
    behind = other > own if i == 0 else other >= own  # of equals the first is in front
    return behind & (own > LIT)


def _design(A: tuple[Tensor, Tensor], corners: Tensor, visible: Tensor, side: int) -> Tensor:
    """The matrix (n, P) from a digit's pixels to the observed frames; corners (f, 2), visible (f, H, W)."""
    rows = []
    for (top, left), shown in zip(corners.tolist(), visible, strict=True):
        window = slice(top, top + side), slice(left, left + side)
        row = torch.einsum("ip,jq,pq->ijpq", A[0][:, window[0]], A[1][:, window[1]], shown[window].double())
        rows.append(row.flatten(2).flatten(0, 1))
    return torch.cat(rows)


def log_evidence(information: Tensor, gain: Tensor, i: int, other: int | None, mixture: DigitMixture) -> Tensor:
    """What each component says of the observation if digit i is of it, (K,), up to a constant.

    The pixels of both digits are integrated out. `information` (2 D, 2 D) and `gain` (2 D,) are the likelihood of both
    digits' coefficients, and `other` is the other digit's component, None for the whole mixture as one Gaussian.
    """
    D = mixture.basis.shape[1]
    own, rest = slice(i * D, (i + 1) * D), slice((1 - i) * D, (2 - i) * D)
    precision, shift = _prior_of(mixture, other)
    # Schur complement: what is known of digit i once the other digit is integrated out.
    cross = torch.linalg.solve(precision + information[rest, rest], information[rest, own])  # (D, D)
    inner = mixture.precisions + information[own, own] - information[own, rest] @ cross
    pulls = (mixture.precisions @ mixture.means[..., None])[..., 0]  # (K, D)
    shifts = pulls + gain[own] - (gain[rest] + shift) @ cross
    root = torch.linalg.cholesky(inner)
    explained = torch.linalg.solve_triangular(root, shifts[..., None], upper=False).square().sum(dim=(1, 2))
    return (
        mixture.log_weights
        + 0.5 * torch.logdet(mixture.precisions)
        - root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        + 0.5 * (explained - (pulls * mixture.means).sum(dim=1))
    )


def _prior_of(mixture: DigitMixture, component: int | None) -> tuple[Tensor, Tensor]:
    """Precision (D, D), and precision times mean (D,), of a component; None: of the whole mixture as one Gaussian."""
    if component is not None:
        precision, mean = mixture.precisions[component], mixture.means[component]
    else:
        weights = mixture.log_weights.exp()
        mean = weights @ mixture.means
        spread = mixture.means - mean
        covariances = torch.linalg.inv(mixture.precisions) + spread[:, :, None] * spread[:, None]
        precision = torch.linalg.inv(torch.einsum("k,kij->ij", weights, covariances))
    return precision, precision @ mean


def _draw_digits(
    information: Tensor, gain: Tensor, choice: list[int | None], mixture: DigitMixture, generator: torch.Generator
) -> Tensor:
    """The coefficients of both digits given their components, (2, D), from their joint Gaussian posterior."""
    priors = [_prior_of(mixture, component) for component in choice]
    precision = information + torch.block_diag(*(prior[0] for prior in priors))
    root = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((gain + torch.cat([prior[1] for prior in priors]))[:, None], root)
    draw = torch.randn(mean.shape, dtype=mean.dtype, generator=generator)
    return (mean + torch.linalg.solve_triangular(root.T, draw, upper=True)).view(2, -1)


def _paste(digit: Tensor, corners: Tensor, size: tuple[int, int]) -> Tensor:
    """A digit (side, side) along its path (F, 2), on black frames (F, *size)."""
    frames = torch.zeros(len(corners), *size, dtype=digit.dtype)
    side = len(digit)
    for frame, (top, left) in zip(frames, corners.tolist(), strict=True):
        frame[top : top + side, left : left + side] = digit
    return frames
