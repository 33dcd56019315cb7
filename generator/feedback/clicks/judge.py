"""Whether a click model predicts later days of other users better than the base rate does.

The base rate knows all but the choice: position, surface, item, and what user and item did on earlier days. Each part of the
users is predicted by a model of the others' earlier days; a bootstrap over users gives the interval, and its lower end decides.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from generator.feedback.clicks.bayes import log_loss
from generator.feedback.clicks.examples import Examples, Ints
from generator.feedback.clicks.fit import design, fit_rows
from schemas.click_features import Array
from schemas.hashing import unit_interval

FOLDS = 4
"""Parts that the users are divided into."""
LATER_SHARE = 0.4
"""Share of the showings, the latest ones, that models are judged on."""
RESAMPLES = 500
BINS = 10


@dataclass(frozen=True)
class Judgement:
    """How the model and the base rate predict showings that they were not fitted on."""

    showings: int
    users: int
    clicks: int
    log_loss: float
    base_log_loss: float
    """Nats per showing."""
    gain: float
    """base_log_loss - log_loss, with its 95 % interval over users."""
    gain_low: float
    gain_high: float
    auc: float
    base_auc: float
    calibration_error: float
    """Mean difference of predicted and observed rate, over tenths of the predictions."""
    intercept: float
    slope: float
    """Calibration of all predictions: log-odds = intercept + slope · predicted."""

    @property
    def passed(self) -> bool:
        """Whether it is surely better than the base rate."""
        return self.gain_low > 0 and self.slope > 0

    @property
    def words(self) -> str:
        """What was found, in one line."""
        return (
            f"log-loss {self.log_loss:.5f} against {self.base_log_loss:.5f} of the base rate on {self.showings:,} later "
            f"showings of {self.users:,} other users: gain {self.gain:+.5f}, 95 % interval {self.gain_low:+.5f} to "
            f"{self.gain_high:+.5f}; AUC {self.auc:.3f} against {self.base_auc:.3f}; calibration error "
            f"{self.calibration_error:.4f}"
        )

    def figures(self) -> dict[str, Any]:
        """As stored in `click_models.metrics`."""
        return asdict(self)


def judge(examples: Examples, seed: int = 0) -> Judgement | None:
    """The judgement; None where a part has no clicks to be fitted or judged on."""
    cut = np.quantile(examples.days, 1 - LATER_SHARE, method="lower")
    later = examples.days > cut
    if not later.any():  # one day: nothing is later
        return None
    names, codes = np.unique(examples.users, return_inverse=True)
    folds = np.array([int(FOLDS * unit_interval(f"click fold:{name}")) for name in names])[codes]
    logits = {choice: np.zeros(len(folds)) for choice in (False, True)}
    for fold in range(FOLDS):
        mine, others = np.flatnonzero(later & (folds == fold)), np.flatnonzero(~later & (folds != fold))
        if not (0 < examples.clicked[others].sum() < len(others)):
            return None
        for choice, found in logits.items():
            weights = fit_rows(examples, others, choice=choice).mean
            found[mine] = design(examples, choice=choice)[mine] @ weights
    clicked, users, parts = examples.clicked[later], codes[later], folds[later]
    if any(not 0 < clicked[parts != fold].sum() < (parts != fold).sum() for fold in range(FOLDS)):
        return None
    base, model = (_cross_calibrated(found[later], clicked, parts) for found in logits.values())
    losses, base_losses = log_loss(model, clicked), log_loss(base, clicked)
    low, high = interval(base_losses - losses, users, seed)
    intercept, slope = calibrate(logits[True][later], clicked)
    return Judgement(
        showings=len(clicked),
        users=len(np.unique(users)),
        clicks=int(clicked.sum()),
        log_loss=float(losses.mean()),
        base_log_loss=float(base_losses.mean()),
        gain=float((base_losses - losses).mean()),
        gain_low=low,
        gain_high=high,
        auc=float(roc_auc_score(clicked, model)),
        base_auc=float(roc_auc_score(clicked, base)),
        calibration_error=calibration_error(1 / (1 + np.exp(-model)), clicked),
        intercept=intercept,
        slope=slope,
    )


def calibrate(logits: Array, clicked: Array) -> tuple[float, float]:
    """Intercept and slope that make log-odds fit what happened (Platt 1999)."""
    found = LogisticRegression(C=np.inf, max_iter=200).fit(logits[:, None], clicked)
    return float(found.intercept_[0]), float(found.coef_[0, 0])


def calibration_error(chances: Array, clicked: Array) -> float:
    """Mean difference of predicted and observed rate over BINS parts of as many showings."""
    parts = np.array_split(np.argsort(chances, kind="stable"), BINS)
    gaps = [len(part) * abs(float(chances[part].mean() - clicked[part].mean())) for part in parts if len(part)]
    return sum(gaps) / len(chances)


def interval(values: Array, users: Ints, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, users drawn as a whole.

    `users`: (N,), any whole numbers.
    """
    _, codes = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(codes, weights=values), np.bincount(codes)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(sums), size=len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _cross_calibrated(logits: Array, clicked: Array, parts: Ints) -> Array:
    """Log-odds of each part, calibrated by the other parts."""
    found = np.empty_like(logits)
    for part in np.unique(parts):
        intercept, slope = calibrate(logits[parts != part], clicked[parts != part])
        found[parts == part] = intercept + slope * logits[parts == part]
    return found
