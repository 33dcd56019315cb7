"""Intervals over users by the bootstrap.

Users are drawn with replacement, each with all that is theirs.

What one user did is not independent, so pairs, tasks and showings are never resampled by themselves. For few users the
percentiles are taken further out, as Student's t asks for (Hesterberg 2015, the expanded percentile interval): the plain ones
are too narrow, by a fifth with ten users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
RESAMPLES = 4000
SEED = 20261129
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Estimate:
    """A figure and its two-sided interval over users.

    Infinite bounds where there are fewer than two users.
    """

    value: float
    low: float
    high: float
    users: int

    @classmethod
    def exact(cls, value: float, users: int = 0) -> Estimate:
        """A figure without uncertainty."""
        return cls(value, value, value, users)


class UserBootstrap:
    """Resamples of the users behind a figure.

    The same ones for all figures of the same users, so that differences are paired.
    """

    def __init__(self, users: Sequence[str], confidence: float, resamples: int = RESAMPLES) -> None:
        """users: one per value; confidence: of the two-sided interval, 0 to 1."""
        names = sorted(set(users))
        self.count = len(names)
        self._place = {name: place for place, name in enumerate(names)}
        self._rows = np.array([self._place[user] for user in users], dtype=np.int64)
        self._tail = expanded_tail(confidence, self.count)
        shares = np.full(self.count, 1 / self.count) if names else np.zeros(0)
        self.weights: Floats = (
            np.random.default_rng([SEED, self.count]).multinomial(self.count, shares, size=resamples).astype(np.float64)
            if names
            else np.zeros((resamples, 0))
        )
        """(R, U): how often each user is in each resample; users by name."""

    def mean(self, values: Sequence[float] | Floats) -> Estimate:
        """Mean of one value per row; a user weighs as much as they have rows."""
        return self.ratio(values, np.ones(len(self._rows)))

    def ratio(self, numerators: Sequence[float] | Floats, denominators: Sequence[float] | Floats) -> Estimate:
        """Sum of the numerators over the sum of the denominators, one of each per row."""
        above, below = np.sum(numerators), np.sum(denominators)
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.estimate(float(above / below), self.resampled_ratio(numerators, denominators))

    def resampled_ratio(self, numerators: Sequence[float] | Floats, denominators: Sequence[float] | Floats) -> Floats:
        """(R,): `ratio` in each resample."""
        above, below = self._by_user(numerators), self._by_user(denominators)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray((self.weights @ above) / (self.weights @ below))

    def of(self, statistic: Callable[[Floats], float]) -> Estimate:
        """A statistic of users' weights (U,), for what is no mean: it is called once per resample."""
        return self.estimate(statistic(np.ones(self.count)), np.array([statistic(row) for row in self.weights]))

    def estimate(self, value: float, resampled: Floats) -> Estimate:
        """The interval from a figure's values (R,) in the resamples; a NaN in any makes the bounds NaN."""
        if self.count < 2:
            return Estimate(value, -math.inf, math.inf, self.count)
        low, high = np.quantile(resampled, [self._tail, 1 - self._tail]).tolist()  # NaN if any is
        return Estimate(value, low, high, self.count)

    def _by_user(self, values: Sequence[float] | Floats) -> Floats:
        sums = np.bincount(self._rows, weights=np.asarray(values, dtype=np.float64), minlength=self.count)
        return sums.astype(np.float64)


def expanded_tail(confidence: float, count: int) -> float:
    """Share that is cut off at each end of the resamples, for an interval over `count` users."""
    tail = (1 - confidence) / 2
    if count < 2:
        return tail
    return _NORMAL.cdf(-math.sqrt(count / (count - 1)) * t_quantile(1 - tail, count - 1))


def t_quantile(probability: float, degrees: int) -> float:
    """Student's t by its expansion in 1 / degrees (Abramowitz and Stegun 26.7.5).

    Closed forms for one and two degrees.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = _NORMAL.inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / degrees**power for power, term in enumerate(terms))


def finite(figures: Mapping[str, Any]) -> dict[str, Any]:
    """The figures for JSON, which has no NaN: what is not finite becomes null, at any depth."""

    def kept(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: kept(one) for name, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [kept(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: kept(value) for name, value in figures.items()}
