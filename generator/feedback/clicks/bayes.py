"""Bayesian logistic regression: Laplace's approximation, with prior widths estimated from the data.

The posterior of weights β with prior N(μ, diag σ²) is approximated by a normal around its mode (Bishop, Pattern Recognition and
Machine Learning, 4.4). Weights of one group share σ, which maximises the marginal likelihood by EM (MacKay 1992; Bishop 3.5,
9.3.4): a kind of feature without an effect is shrunk to its prior mean.

scikit-learn's LogisticRegression has neither a prior mean nor a posterior; with μ = 0 and fixed σ both have the same mode, which
tests/unit/test_click_fit.py compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from schemas.click_features import Array

NARROWEST, WIDEST = 0.02, 2.0
"""Prior widths in log-odds per deviation of a feature; the first leaves every effect some doubt, so that it can be found later."""
ROUNDS = 3
"""Times that mode and widths are found in turn."""
EM_STEPS = 30
NEWTON_STEPS = 25
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Prior:
    """What is expected of the weights before any data."""

    mean: Array
    """(F,)"""
    width: Array
    """(F,): standard deviations."""
    groups: Sequence[str]
    """(F,): weights with the same name get one estimated width; "" keeps the given one."""


@dataclass(frozen=True)
class Posterior:
    """What is known of the weights."""

    mean: Array
    covariance: Array
    width: Array
    """(F,): the prior's, as estimated."""


def fit_posterior(features: Array, clicked: Array, weights: Array, prior: Prior) -> Posterior:
    """The posterior of the weights.

    Args:
        features: (N, F).
        clicked: (N,), 0 or 1.
        weights: (N,), showings that each counts as.
        prior: widths of its groups are where the estimation starts.
    """
    members = [
        np.flatnonzero(np.array(prior.groups) == name).astype(np.int64) for name in sorted(set(prior.groups) - {""})
    ]
    width, mode = prior.width.copy(), prior.mean.copy()
    for _ in range(ROUNDS if members else 1):
        mode = _mode(features, clicked, weights, prior.mean, width, mode)
        if members:
            width = _widths(features, clicked, weights, prior.mean, width, mode, members)
    mode = _mode(features, clicked, weights, prior.mean, width, mode)
    hessian = _information(features, weights, mode) + np.diag(width**-2)
    covariance = np.linalg.inv(hessian).astype(np.float64)
    return Posterior(mode, covariance, width)


def log_loss(logits: Array, clicked: Array) -> Array:
    """(N,): negative log-likelihood of each showing, nats."""
    losses: Array = np.logaddexp(0, logits) - clicked * logits
    return losses


def _chances(logits: Array) -> Array:
    chances: Array = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return chances


def _information(features: Array, weights: Array, mode: Array) -> Array:
    """(F, F): Σ w p (1 - p) x xᵀ."""
    chances = _chances(features @ mode)
    scaled = features * (weights * chances * (1 - chances))[:, None]
    information: Array = scaled.T @ features
    return information


def _mode(features: Array, clicked: Array, weights: Array, mean: Array, width: Array, start: Array) -> Array:
    """The posterior's mode by Newton's method; steps that make it worse are halved."""
    precision = width**-2
    mode = start

    def cost(at: Array) -> float:
        return float(weights @ log_loss(features @ at, clicked) + 0.5 * precision @ (at - mean) ** 2)

    current = cost(mode)
    for _ in range(NEWTON_STEPS):
        slope = features.T @ (weights * (clicked - _chances(features @ mode))) - precision * (mode - mean)
        step = np.linalg.solve(_information(features, weights, mode) + np.diag(precision), slope)
        while (after := cost(mode + step)) > current + 1e-9 * abs(current) and np.abs(step).max() > TOLERANCE:
            step = step / 2
        mode = mode + step
        if current - after < TOLERANCE * max(1.0, abs(current)):
            break
        current = after
    return mode


def _widths(
    features: Array,
    clicked: Array,
    weights: Array,
    mean: Array,
    width: Array,
    mode: Array,
    members: Sequence[npt.NDArray[np.int64]],
) -> Array:
    """EM steps for the widths; the likelihood is taken as the parabola that it is near the mode."""
    information = _information(features, weights, mode)
    pull = information @ mode + features.T @ (weights * (clicked - _chances(features @ mode)))
    width = width.copy()
    for _ in range(EM_STEPS):
        precision = width**-2
        covariance = np.linalg.inv(information + np.diag(precision))
        moved = covariance @ (pull + precision * mean) - mean
        spread = moved**2 + np.diag(covariance)
        for places in members:
            width[places] = np.clip(np.sqrt(spread[places].mean()), NARROWEST, WIDEST)
    return width
