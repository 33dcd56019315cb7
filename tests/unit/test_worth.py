"""The bootstrap of what drawn posters are worth, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from generator.worth import RESAMPLES, _resampled_rates, estimate


def test_users_are_drawn_with_replacement() -> None:
    """A user with a click and one without: rates 0, 1/2 and 1 in 1, 2 and 1 of 4 cases."""
    rates, counts = np.unique(_resampled_rates(np.array([[1.0, 0.0], [1.0, 1.0]]), rng()), return_counts=True)
    assert rates.tolist() == [0.0, 0.5, 1.0]
    assert counts / RESAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.04)


def test_users_with_the_same_numbers_are_as_many_as_they_are() -> None:
    """Of a rate p of N users with one showing each, the deviation is the root of p (1 - p) / N."""
    users = np.repeat([[1.0, 0.0], [1.0, 1.0]], [900, 100], axis=0)
    rates = _resampled_rates(users, rng())
    assert rates.mean() == pytest.approx(0.1, abs=0.001)
    assert rates.std() == pytest.approx((0.1 * 0.9 / 1000) ** 0.5, rel=0.05)


def test_a_user_counts_with_all_showings() -> None:
    """Two users with 9 and 1 showings, one click each: rates 2/10, 2/18 and 2/2."""
    rates = np.unique(_resampled_rates(np.array([[9.0, 1.0], [1.0, 1.0]]), rng()))
    assert rates == pytest.approx([2 / 18, 2 / 10, 1.0])


def test_a_control_group_that_may_have_no_click_leaves_the_lift_open() -> None:
    few = np.array([[1.0, 0.0]] * 2 + [[1.0, 1.0]])
    found = estimate(few, np.repeat([[10.0, 5.0]], 50, axis=0), expected_share=0.05)
    assert found.lift == pytest.approx(0.5)
    assert (found.lift_low, found.lift_high) == (-0.5, np.inf)
    assert found.days_for_lift is None


def rng() -> np.random.Generator:
    return np.random.default_rng(0)
