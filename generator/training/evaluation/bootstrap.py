"""Means over samples with 95 % intervals by the percentile bootstrap.

Efron and Tibshirani 1993, chapter 13.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over n samples and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def margin(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


class Bootstrap:
    """Resampling of n samples with replacement, the same for every figure.

    So the interval of a difference is a paired one.
    """

    def __init__(self, n: int, seed: int, resamples: int = RESAMPLES) -> None:
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
        self._shares = counts / n  # (R, n): how often each sample is in each resample

    def mean(self, values: Values) -> Estimate:
        """values (n,), one per sample."""
        low, high = np.percentile(self._shares @ values, [2.5, 97.5]).tolist()
        return Estimate(float(values.mean()), low, high, len(values))

    def difference(self, values: Values, others: Values) -> Estimate:
        """Mean of values - others, both (n,) of the same samples."""
        return self.mean(values - others)
