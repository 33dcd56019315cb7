"""Figures whose value is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from generator.training.evaluation.bootstrap import Bootstrap
from generator.training.evaluation.efficientnet import LITE0, EfficientNetLite
from generator.training.evaluation.metrics import (
    SCALE_WEIGHTS,
    cosines,
    distances,
    feature_distance,
    frechet_distance,
    ms_ssim,
    ranks,
    ssim,
)


def noise(seed: int, side: int = 64) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("side", [16, 32, 64, 180])
def test_equal_pictures_are_wholly_similar(side: int) -> None:
    assert ssim(noise(1, side), noise(1, side)).tolist() == pytest.approx([1.0, 1.0])
    assert ms_ssim(noise(1, side), noise(1, side)).tolist() == pytest.approx([1.0, 1.0])


def test_ssim_of_flat_pictures_is_their_brightness_term() -> None:
    dark, light = torch.full((1, 3, 64, 64), 0.2), torch.full((1, 3, 64, 64), 0.6)
    wanted = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(dark, light).item() == pytest.approx(wanted, rel=1e-3)
    # Contrast agrees at the first two scales, so only the last one's whole SSIM is left, to its weight.
    last = SCALE_WEIGHTS[2] / sum(SCALE_WEIGHTS[:3])
    assert ms_ssim(dark, light).item() == pytest.approx(wanted**last, rel=1e-3)


def test_an_inverted_picture_is_the_opposite() -> None:
    # Around the same mean a negative correlates with -1: SSIM is (-2v + C2) / (2v + C2) of the local variance v.
    board = torch.zeros(1, 3, 64, 64)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 1.0
    assert ssim(board, 1 - board).item() == pytest.approx((-0.5 + 9e-4) / (0.5 + 9e-4), abs=1e-3)
    assert ms_ssim(board, 1 - board).item() == 0.0


def test_ssim_is_symmetric_and_falls_with_noise() -> None:
    clean, speck = noise(1) * 0.5, noise(2)
    worn = [ssim(clean, (clean + share * speck).clamp(0, 1)).mean().item() for share in (0.05, 0.2, 0.5)]
    assert worn == sorted(worn, reverse=True)
    torch.testing.assert_close(ssim(clean, speck), ssim(speck, clean))
    with pytest.raises(ValueError, match="pictures are 8x8; SSIM's window needs 11x11"):
        ssim(noise(1, 8), noise(2, 8))


def test_feature_distance_counts_turned_channels() -> None:
    east, north = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    east[:, 0], north[:, 1] = 3.0, 5.0
    half = east.clone()
    half[..., :2] = north[..., :2]
    assert feature_distance([east], [2 * east]).item() == 0.0
    assert feature_distance([east], [north]).item() == pytest.approx(2.0)
    assert feature_distance([east], [-east]).item() == pytest.approx(4.0)
    assert feature_distance([east, east], [north, half]).item() == pytest.approx((2.0 + 1.0) / 2)


def cloud(mean: list[float], deviations: list[float]) -> np.ndarray:
    """Points with exactly this mean and a diagonal covariance of these standard deviations (n - 1 in the denominator)."""
    width = len(mean)
    reach = np.array(deviations) * math.sqrt((2 * width - 1) / 2)
    return np.concatenate([np.diag(reach), -np.diag(reach)]) + np.array(mean)


def test_frechet_distance_of_known_gaussians() -> None:
    # Diagonal covariances commute: |m1 - m2|^2 + sum (s1 - s2)^2.
    left, right = cloud([0, 0, 1], [1, 2, 3]), cloud([3, 4, 1], [2, 2, 1])
    assert frechet_distance(left, right) == pytest.approx(25 + 1 + 0 + 4)
    assert frechet_distance(left, left) == pytest.approx(0, abs=1e-9)
    # Turning both alike changes nothing, although the covariances are no longer diagonal.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    assert frechet_distance(left @ turn, right @ turn) == pytest.approx(30)


def test_frechet_distance_of_general_gaussians_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 4)), rng.normal(size=(30, 4)) + 1
    covariances = np.cov(left.T), np.cov(right.T)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real)
    wanted = np.square(left.mean(0) - right.mean(0)).sum() + np.trace(covariances[0] + covariances[1])
    assert frechet_distance(left, right) == pytest.approx(wanted - 2 * roots.sum())


def test_fewer_pictures_than_dimensions_are_enough() -> None:
    few = np.random.default_rng(2).normal(size=(5, 300))
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(few, few + 0.1) == pytest.approx(300 * 0.01)


def test_ranks_count_what_is_strictly_nearer() -> None:
    real = np.array([[0.0, 0], [1, 0], [2, 0], [2, 0]], np.float32)
    ours = np.array([[0.1, 0], [1.9, 0]], np.float32)
    apart = distances(ours, real)
    np.testing.assert_allclose(apart[0], [0.01, 0.81, 3.61, 3.61], rtol=1e-4)
    assert ranks(apart, 0).tolist() == [0, 3]
    assert ranks(apart, 1).tolist() == [1, 2]
    assert ranks(apart, 3).tolist() == [2, 0]  # an equal drawing is not nearer
    np.testing.assert_allclose(cosines(real[1:2], np.array([[3.0, 0], [0, 1], [-1, 0]], np.float32)), [[100, 0, -100]])


def test_intervals_hold_the_mean_and_are_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=400)
    estimate = Bootstrap(400, seed=1).mean(values)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.low < estimate.mean < estimate.high
    # The normal interval, which the bootstrap must find for a mean of 400.
    assert estimate.margin == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert Bootstrap(400, seed=1).mean(values) == estimate
    assert Bootstrap(400, seed=2).mean(values) != estimate
    certain = Bootstrap(9, seed=1).mean(np.ones(9))
    assert (certain.mean, certain.n) == (1.0, 9)
    assert (certain.low, certain.high) == pytest.approx((1.0, 1.0))


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(4)
    users = rng.normal(0, 10, size=200)
    better = users + 1 + rng.normal(0, 0.1, size=200)
    bootstrap = Bootstrap(200, seed=1)
    assert bootstrap.mean(users).margin > 1
    gain = bootstrap.difference(better, users)
    assert gain.mean == pytest.approx(1, abs=0.05)
    assert gain.margin < 0.05


def test_efficientnet_has_the_published_shapes() -> None:
    network = EfficientNetLite(LITE0).eval()
    with torch.no_grad():
        pooled, maps = network(torch.rand(2, 3, 64, 64))
    assert pooled.shape == (2, 1280)
    assert [tuple(layer.shape[1:]) for layer in maps] == [
        (16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)
    ]  # fmt: skip
    # 4,652,008 parameters less the classifier's 1,281,000.
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_371_008
