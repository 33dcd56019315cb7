"""The canary's test: a difference of click rates with an interval that is valid whenever one looks.

Users were randomised, so users are what is counted: with showings taken as independent a test at 2.5 % fires in 6 to 10 % of
comparisons of equals. Per user u the residual z_u = (c_u − R n_u) / n̄ of clicks c in n showings, at the pooled rate R, has the
difference of rates as the difference of its means; what the user's clicks before the canary predict of it is taken away (CUPED,
Deng et al. 2013).

Looked at every day, an ordinary interval would exclude 0 sooner or later. This one is a confidence sequence: the mixture sequential
probability ratio test of Robbins with normal weights N(0, τ²), which is asymptotically valid for all looks together (Johari et al.
2017; Waudby-Smith et al. 2021). A later look has the same users with more showings, as in a trial with repeated measures, where the
difference and its variance move like Brownian motion and its clock. τ, fixed at the start, is the lift to which it is most sensitive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from generator.feedback.intervals import t_quantile

Floats = npt.NDArray[np.float64]
POWER = 0.8
MAX_DAYS = 365
_NORMAL = NormalDist()


@dataclass(frozen=True)
class UserClicks:
    """Showings and clicks of U users, since the canary began and before it."""

    canary: npt.NDArray[np.bool_]
    """(U,): whether the canary draws for the user."""
    showings: Floats
    clicks: Floats
    before_showings: Floats
    before_clicks: Floats


@dataclass(frozen=True)
class Look:
    """What is known at one look; rates are clicks per showing."""

    canary_users: int
    champion_users: int
    canary_rate: float
    champion_rate: float
    difference: float
    """Adjusted by what users clicked before; its interval holds for all looks together."""
    low: float
    high: float
    variance_kept: float
    """Share of the variance that the adjustment left."""
    verdict: Literal["better", "worse", "open", "too few"]

    @property
    def lift(self) -> float:
        """The difference as a share of the champion's rate."""
        return self.difference / self.champion_rate if self.champion_rate else math.nan


def look(users: UserClicks, *, alpha: float, tau: float, min_users: int, min_clicks: int) -> Look:
    """Compare the groups; users without showings since the canary began are left out.

    tau: standard deviation of the differences that the test expects, in clicks per showing. Below the minima of either side the
    verdict is "too few".
    """
    shown = users.showings > 0
    canary = users.canary[shown]
    counts = int(canary.sum()), int((~canary).sum())
    clicks, showings = users.clicks[shown], users.showings[shown]
    rates = _rate(clicks[canary], showings[canary]), _rate(clicks[~canary], showings[~canary])
    enough = min(counts) >= max(2, min_users) and min(clicks[canary].sum(), clicks[~canary].sum()) >= min_clicks
    if not enough:
        return Look(*counts, *rates, rates[0] - rates[1], -math.inf, math.inf, 1.0, "too few")
    residuals = _residuals(clicks, showings)
    adjusted = _adjusted(residuals, users.before_clicks[shown], users.before_showings[shown])
    ours, theirs = adjusted[canary], adjusted[~canary]
    difference = float(ours.mean() - theirs.mean())
    variance = _inflated(float(ours.var(ddof=1)) / counts[0], float(theirs.var(ddof=1)) / counts[1], counts, alpha)
    width = half_width(variance, alpha, tau)
    kept = float(adjusted.var() / residuals.var()) if residuals.var() > 0 else 1.0
    verdict: Literal["better", "worse", "open"] = "open"
    if abs(difference) > width:
        verdict = "better" if difference > 0 else "worse"
    return Look(*counts, *rates, difference, difference - width, difference + width, kept, verdict)


def half_width(variance: float, alpha: float, tau: float) -> float:
    """Half the width of the confidence sequence at level 1 − alpha, for a difference with this variance."""
    if variance <= 0:
        return math.inf
    total = variance + tau**2
    return math.sqrt(variance * total / tau**2 * (2 * math.log(1 / alpha) + math.log(total / variance)))


def days_to_see(lift: float, before: UserClicks, days: float, *, share: float, alpha: float, tau: float) -> int | None:
    """Days until a relative lift would be seen with a probability of `POWER`.

    None past `MAX_DAYS` or without traffic.

    before: the users of the `days` before, whose traffic is taken to go on.
    """
    active = before.before_showings > 0
    count, clicks, showings = int(active.sum()), before.before_clicks[active], before.before_showings[active]
    rate = _rate(clicks, showings)
    if count < 4 or not 0 < rate < 1 or not 0 < share < 1:
        return None
    within = rate * (1 - rate) / float(showings.mean())  # of a user's residual over all `days`
    between = max(0.0, float(_residuals(clicks, showings).var(ddof=1)) - within)
    between *= within / (between + within)  # what the adjustment leaves of it
    sides = 1 / (count * share) + 1 / (count * (1 - share))
    for day in range(1, MAX_DAYS + 1):
        variance = (between + within * days / day) * sides
        if lift * rate >= half_width(variance, alpha, tau) + _NORMAL.inv_cdf(POWER) * math.sqrt(variance):
            return day
    return None


def _rate(clicks: Floats, showings: Floats) -> float:
    return float(clicks.sum() / showings.sum()) if showings.sum() > 0 else math.nan


def _residuals(clicks: Floats, showings: Floats) -> Floats:
    """(c_u − R n_u) / n̄ per user; 0 where nothing was shown to anybody."""
    if showings.sum() <= 0:
        return np.zeros(len(showings))
    return np.asarray((clicks - _rate(clicks, showings) * showings) / showings.mean())


def _adjusted(residuals: Floats, before_clicks: Floats, before_showings: Floats) -> Floats:
    """The residuals without what the users' residuals before the canary predict.

    Those have nothing to do with the groups.
    """
    before = _residuals(before_clicks, before_showings)
    spread = float(before.var())
    if spread <= 0:
        return residuals
    slope = float(((residuals - residuals.mean()) * (before - before.mean())).mean()) / spread
    return np.asarray(residuals - slope * (before - before.mean()))


def _inflated(ours: float, theirs: float, counts: tuple[int, int], alpha: float) -> float:
    """The variance of the difference.

    It is larger by as much as Student's t is wider than the normal (Welch's degrees of freedom).
    """
    total = ours + theirs
    if total <= 0:
        return 0.0
    degrees = total**2 / (ours**2 / (counts[0] - 1) + theirs**2 / (counts[1] - 1))
    wider = t_quantile(1 - alpha / 2, max(3, int(degrees))) / _NORMAL.inv_cdf(1 - alpha / 2)
    return total * wider**2
