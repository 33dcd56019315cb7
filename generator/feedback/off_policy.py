"""What a challenger's choices would have been worth, from what was logged.

The estimates are SNIPS and doubly robust, as differences to the champion.

A showing was logged with the joint propensity of what was shown: that the policy chose the answer among the task's, times that the
reader showed this variant. A model's policy here is the choice that its log π makes among the *logged* answers (generator/nightly/
policies.py, `model`): what it would have answered instead is not in the log, so a model that finds better answers gets no credit
for them, and one that ranks the old ones better does. Weights are clipped at `MAX_RATIO` and normalised by their sum (Swaminathan
and Joachims 2015); with a click model's expectations q the estimate is E_π[q] + Σ w (r - q) / Σ w (Dudik et al. 2011), right if
either the propensities or q are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.feedback.gate import NotJudged
from generator.feedback.intervals import Estimate, UserBootstrap

Floats = npt.NDArray[np.float64]
MAX_RATIO = 20.0
"""Largest weight of a showing."""
EVEN_SHARE = 0.1
"""Probability that the policy `model` spreads evenly over the answers that it samples from (generator/nightly/policies.py)."""
DRAWS = 2000
"""Monte Carlo draws for the third and later variants of a task."""
MIN_USERS = 10


@dataclass(frozen=True)
class LoggedShowings:
    """N showings of held-out users, with what each policy would have done."""

    users: tuple[str, ...]
    clicks: Floats
    """(N,), 0 or 1."""
    logged: Floats
    """(N,), joint propensity of what was shown."""
    champion: Floats
    """(N,), probability that the champion's policy shows it."""
    challenger: Floats
    expected: Floats | None = None
    """(N,), clicks that a click model expects of what was shown; None without one."""
    champion_expected: Floats | None = None
    """(N,), of what the champion's policy shows on average."""
    challenger_expected: Floats | None = None


@dataclass(frozen=True)
class OffPolicyValue:
    """Clicks per showing that the challenger's choices gain over the champion's."""

    snips: Estimate
    doubly_robust: Estimate | None
    champion: float
    """SNIPS of the champion's own policy."""
    challenger: float
    effective_samples: float
    """The smaller of both policies', in showings."""
    showings: int

    @property
    def gain(self) -> Estimate:
        """Doubly robust where there is a click model, else SNIPS."""
        return self.doubly_robust or self.snips


def evaluate(
    showings: LoggedShowings, confidence: float, min_samples: float, min_clicks: float
) -> OffPolicyValue | NotJudged:
    """The challenger's gain with an interval over users, or why the log cannot tell.

    Of clicks enough are wanted, too: with few of them, unevenly weighted, a bootstrap's interval is too narrow: on 400 showings
    with 30 clicks it refused 10 of 60 challengers that equal the champion, on 1,000 with 80 clicks 3 (tests/support/challengers.py).
    """
    count, users = len(showings.users), len(set(showings.users))
    if users < MIN_USERS:
        return NotJudged(f"showings of {users} held-out users with stored answers, at least {MIN_USERS} are needed")
    weights = [ratios(policy, showings.logged) for policy in (showings.challenger, showings.champion)]
    samples = min(effective_samples(each) for each in weights)
    if samples < min_samples:
        return NotJudged(
            f"effective sample size {samples:.0f} of {count} showings, retrain.off_policy_min_samples is {min_samples:g}"
        )
    clicks = min(effective_samples(each * showings.clicks) for each in weights)
    if clicks < min_clicks:
        return NotJudged(
            f"effective clicks {clicks:.0f} of {showings.clicks.sum():.0f}, retrain.off_policy_min_clicks is {min_clicks:g}"
        )
    bootstrap = UserBootstrap(showings.users, confidence)
    sides = [_Snips(bootstrap, each, showings.clicks) for each in weights]
    return OffPolicyValue(
        snips=_difference(bootstrap, sides),
        doubly_robust=_doubly_robust(bootstrap, showings, weights),
        champion=sides[1].value,
        challenger=sides[0].value,
        effective_samples=samples,
        showings=count,
    )


def ratios(policy: Floats, logged: Floats) -> Floats:
    """Importance weights, clipped at `MAX_RATIO`."""
    return np.minimum(policy / logged, MAX_RATIO)


def effective_samples(weights: Floats) -> float:
    """(Σ w)² / Σ w² (Kish); 0 when no logged showing could have come from the policy."""
    total = float(weights.sum())
    return total**2 / float(weights @ weights) if total > 0 else 0.0


class _Snips:
    """A self-normalised mean in the sample and in the resamples."""

    def __init__(self, bootstrap: UserBootstrap, weights: Floats, values: Floats, offset: Floats | None = None) -> None:
        self.value = float(weights @ values / weights.sum())
        self.resampled = bootstrap.resampled_ratio(weights * values, weights)
        if offset is not None:
            self.value += float(offset.mean())
            self.resampled = self.resampled + bootstrap.resampled_ratio(offset, np.ones(len(offset)))


def _difference(bootstrap: UserBootstrap, sides: Sequence[_Snips]) -> Estimate:
    return bootstrap.estimate(sides[0].value - sides[1].value, sides[0].resampled - sides[1].resampled)


def _doubly_robust(bootstrap: UserBootstrap, showings: LoggedShowings, weights: Sequence[Floats]) -> Estimate | None:
    offsets = (showings.challenger_expected, showings.champion_expected)
    if showings.expected is None or offsets[0] is None or offsets[1] is None:
        return None
    rest = showings.clicks - showings.expected
    sides = [_Snips(bootstrap, each, rest, offset) for each, offset in zip(weights, offsets, strict=True)]
    return _difference(bootstrap, sides)


def shown_probabilities(logprobs: Floats, reader: Floats) -> Floats:
    """(K,) that each of K distinct answers is shown.

    It is chosen by the policy `model`, then shown by the reader.

    logprobs: (K,) of the model; reader: (V,), with which variants 0, 1, ... are shown.
    """
    chosen = variant_probabilities(logprobs, min(len(reader), len(logprobs)))
    shown = reader[: len(chosen)]
    return np.asarray(shown / shown.sum() @ chosen)


def variant_probabilities(logprobs: Floats, count: int) -> Floats:
    """(count, K): that variant v is answer k.

    The best is variant 0; others are sampled without replacement.

    Exact up to variant 1, from there on by `DRAWS` draws (Gumbel top-k, whose order is that of such a sample).
    """
    best = int(np.argmax(logprobs))
    found = np.zeros((count, len(logprobs)))
    found[0, best] = 1.0
    others = np.delete(np.arange(len(logprobs)), best)
    if count == 1 or not len(others):
        return found
    shares = np.exp(logprobs[others] - logprobs[others].max())
    shares = EVEN_SHARE / len(others) + (1 - EVEN_SHARE) * shares / shares.sum()
    found[1, others] = shares
    if count > 2:
        noise = np.random.default_rng(len(others)).gumbel(size=(DRAWS, len(others)))
        order = np.argsort(-(np.log(shares) + noise), axis=1)
        for variant in range(2, count):
            found[variant, others] = np.bincount(order[:, variant - 1], minlength=len(others)) / DRAWS
    return found
