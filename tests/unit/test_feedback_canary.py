"""The canary's test, on simulated users: equals are hardly ever told apart, however often one looks.

Lifts are found.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from generator.feedback.canary_test import UserClicks, days_to_see, half_width, look

USERS, PER_DAY, RATE, BEFORE = 330, 4, 0.08, 28
ALPHA, TAU = 0.05, 0.1 * RATE


def outcome(rng: np.random.Generator, share: float, lift: float, days: int = 28) -> tuple[str, int]:
    """The first verdict of daily looks and its day.

    Users differ by 0.6 logit in how much they click, and in traffic.
    """
    taste = 0.6 * rng.standard_normal(USERS)
    traffic = rng.gamma(2.0, 0.5, USERS) * PER_DAY
    rate = 1 / (1 + np.exp(-(math.log(RATE / (1 - RATE)) + taste)))
    canary = rng.random(USERS) < share
    before = rng.poisson(traffic * BEFORE).astype(float)
    before_clicks = rng.binomial(before.astype(int), rate).astype(float)
    showings, clicks = np.zeros(USERS), np.zeros(USERS)
    for day in range(1, days + 1):
        shown = rng.poisson(traffic)
        showings += shown
        clicks += rng.binomial(shown, np.minimum(1.0, rate * np.where(canary, 1 + lift, 1)))
        users = UserClicks(canary, showings, clicks, before, before_clicks)
        found = look(users, alpha=ALPHA, tau=TAU, min_users=20, min_clicks=10)
        if found.verdict in {"better", "worse"}:
            return found.verdict, day
    return "open", days


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_of_200_comparisons_of_equals_no_more_are_decided_than_stated(share: float) -> None:
    rng = np.random.default_rng(20261129)
    verdicts = Counter(outcome(rng, share, 0.0)[0] for _ in range(200))
    assert verdicts["better"] <= 200 * ALPHA / 2, verdicts
    assert verdicts["better"] + verdicts["worse"] <= 200 * ALPHA, verdicts
    assert sum(verdicts.values()) == 200


def test_a_lift_is_found_within_the_days_that_were_foretold() -> None:
    rng = np.random.default_rng(7)
    taste = 0.6 * rng.standard_normal(USERS)
    before = rng.poisson(rng.gamma(2.0, 0.5, USERS) * PER_DAY * BEFORE).astype(float)
    rate = 1 / (1 + np.exp(-(math.log(RATE / (1 - RATE)) + taste)))
    pilot = UserClicks(
        np.zeros(USERS, bool),
        np.zeros(USERS),
        np.zeros(USERS),
        before,
        rng.binomial(before.astype(int), rate).astype(float),
    )
    days = days_to_see(0.2, pilot, BEFORE, share=0.5, alpha=ALPHA, tau=TAU)
    assert days is not None
    found = [outcome(rng, 0.5, 0.2, days)[0] for _ in range(60)]
    assert found.count("worse") == 0
    assert found.count("better") >= 0.8 * 60 - 2 * math.sqrt(60 * 0.8 * 0.2), (days, Counter(found))
    smaller = days_to_see(0.1, pilot, BEFORE, share=0.5, alpha=ALPHA, tau=TAU)
    rarer = days_to_see(0.2, pilot, BEFORE, share=0.1, alpha=ALPHA, tau=TAU)
    assert smaller is None or smaller > 3 * days
    assert rarer is None or rarer > days
    assert days_to_see(0.2, pilot, BEFORE, share=0.0, alpha=ALPHA, tau=TAU) is None


def test_a_worse_canary_is_told_and_few_users_decide_nothing() -> None:
    rng = np.random.default_rng(3)
    assert [outcome(rng, 0.5, -0.4)[0] for _ in range(20)].count("worse") >= 18
    users = UserClicks(
        np.arange(20) < 10, np.full(20, 50.0), np.where(np.arange(20) < 10, 20.0, 1.0), *np.zeros((2, 20))
    )
    assert look(users, alpha=ALPHA, tau=TAU, min_users=11, min_clicks=1).verdict == "too few"
    assert look(users, alpha=ALPHA, tau=TAU, min_users=10, min_clicks=11).verdict == "too few"


def test_what_users_clicked_before_narrows_the_interval_and_moves_no_group() -> None:
    rng = np.random.default_rng(5)
    rate = rng.beta(2, 10, 400)
    shown = np.full(400, 60.0)
    canary = rng.random(400) < 0.5
    clicks, before = (rng.binomial(60, rate).astype(float) for _ in range(2))
    common = {"alpha": ALPHA, "tau": TAU, "min_users": 2, "min_clicks": 1}
    plain = look(UserClicks(canary, shown, clicks, np.zeros(400), np.zeros(400)), **common)
    adjusted = look(UserClicks(canary, shown, clicks, shown, before), **common)
    assert adjusted.high - adjusted.low < 0.75 * (plain.high - plain.low)
    assert adjusted.variance_kept < 0.6
    assert plain.low < 0 < plain.high
    assert plain.difference == pytest.approx(plain.canary_rate - plain.champion_rate)


def test_the_confidence_sequence_is_wider_than_an_interval_and_shrinks() -> None:
    """By hand: v = τ² = 1, α = e^(-1/2) / √2: 2 ln(1/α) + ln 2 = 1 + 2 ln 2; width √(2 (1 + 2 ln 2))."""
    alpha = math.exp(-0.5) / math.sqrt(2)
    assert half_width(1.0, alpha, 1.0) == pytest.approx(math.sqrt(2 * (1 + 2 * math.log(2))))
    widths = [half_width(variance, 0.05, 0.01) for variance in (1e-3, 1e-4, 1e-5)]
    assert widths == sorted(widths, reverse=True)
    assert all(width > 1.96 * math.sqrt(variance) for width, variance in zip(widths, (1e-3, 1e-4, 1e-5), strict=True))
