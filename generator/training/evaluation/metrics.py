"""Pure figures about pictures and their features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

Vectors = npt.NDArray[np.float32]

WINDOW, SIGMA = 11, 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales (Wang et al. 2003); fewer scales are weighted to the same sum."""


def ssim(left: Tensor, right: Tensor) -> Tensor:
    """Structural similarity, mean over windows and channels: (N, 3, S, S) twice in [0, 1] -> (N,).

    Wang et al. 2004.
    """
    return _similarity(left, right)[0]


def ms_ssim(left: Tensor, right: Tensor) -> Tensor:
    """SSIM over scales, each half the last: (N, 3, S, S) twice in [0, 1] -> (N,).

    As many of the five scales as the window fits in (three at 64 pixels). Negative contrast terms count as 0, as they have no power.
    """
    scales = min(len(SCALE_WEIGHTS), (left.shape[-1] // WINDOW).bit_length())
    weights = [weight / sum(SCALE_WEIGHTS[:scales]) for weight in SCALE_WEIGHTS[:scales]]
    out = torch.ones(len(left), dtype=left.dtype)
    for number, weight in enumerate(weights):
        whole, structure = _similarity(left, right)
        term = whole if number == scales - 1 else structure
        out = out * term.clamp(min=0) ** weight
        left, right = F.avg_pool2d(left, 2), F.avg_pool2d(right, 2)
    return out


def _similarity(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """-> SSIM (N,) and its contrast-structure part alone (N,).

    Raises:
        ValueError: the pictures are smaller than the window.
    """
    if min(left.shape[-2:]) < WINDOW:
        raise ValueError(f"pictures are {left.shape[-2]}x{left.shape[-1]}; SSIM's window needs {WINDOW}x{WINDOW}")
    places = torch.arange(WINDOW, dtype=left.dtype) - WINDOW // 2
    bell = torch.exp(-(places**2) / (2 * SIGMA**2))
    bell = (bell / bell.sum())[None, None]

    def blurred(x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)[:, None]  # (N * 3, 1, S, S)
        out = F.conv2d(F.conv2d(flat, bell[..., None]), bell[..., None, :])
        return out.reshape(*x.shape[:2], *out.shape[2:])

    mean_l, mean_r = blurred(left), blurred(right)
    variances = blurred(left**2) - mean_l**2 + blurred(right**2) - mean_r**2
    covariance = blurred(left * right) - mean_l * mean_r
    structure = (2 * covariance + CONTRAST) / (variances + CONTRAST)
    brightness = (2 * mean_l * mean_r + LUMINANCE) / (mean_l**2 + mean_r**2 + LUMINANCE)
    return (brightness * structure).mean(dim=(1, 2, 3)), structure.mean(dim=(1, 2, 3))


def feature_distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """LPIPS without its learned weights: maps (N, C, h, w) per layer, twice -> (N,).

    Zhang et al., arXiv 1801.03924.

    Channels are L2-normalised at each place; squared distances are averaged over places and layers, so 0 to 4.
    """
    layers = [
        (F.normalize(ours, dim=1) - F.normalize(theirs, dim=1)).square().sum(dim=1).mean(dim=(1, 2))
        for ours, theirs in zip(left, right, strict=True)
    ]
    return torch.stack(layers).mean(dim=0)


def frechet_distance(left: Vectors, right: Vectors) -> float:
    """Squared Fréchet distance of the Gaussians fitted to (n, D) and (m, D) features.

    Covariances with n - 1.

    ‖μ₁ - μ₂‖² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁Σ₂)^½. With Σ = AᵀA the last trace is the sum of the singular values of A₁A₂ᵀ,
    an (n, m) matrix: exact also where n is below D. It is biased upwards by small n, so compare equal n only.
    """
    means = left.mean(axis=0, dtype=np.float64), right.mean(axis=0, dtype=np.float64)
    roots = [(x - mean) / max(1, len(x) - 1) ** 0.5 for x, mean in zip((left, right), means, strict=True)]
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(np.square(root).sum() for root in roots) - 2 * cross)


def distances(ours: Vectors, theirs: Vectors) -> Vectors:
    """Squared Euclidean distances (R, K) of (R, D) and (K, D)."""
    squares = np.square(ours).sum(axis=1)[:, None] + np.square(theirs).sum(axis=1)[None]
    out: Vectors = squares - 2 * ours @ theirs.T
    return out


def cosines(ours: Vectors, theirs: Vectors) -> Vectors:
    """100 * cosine, (R, D) and (K, D) -> (R, K)."""
    left, right = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (ours, theirs))
    out: Vectors = 100 * left @ right.T
    return out


def ranks(apart: Vectors, own: int) -> npt.NDArray[np.int64]:
    """Ranks (R,) of number `own` by distances (R, K): how many of the K are strictly nearer."""
    out: npt.NDArray[np.int64] = (apart < apart[:, [own]]).sum(axis=1)
    return out
