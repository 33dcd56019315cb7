"""What drawn posters are worth over the items' own, by the control group's click rate.

Readers show the users of the control group the item's own picture where a drawn poster was there (schemas/control.py). Users are
assigned by a hash, so the groups differ by chance only; the intervals are a bootstrap over users. Where nothing can be told yet,
it is told how much is missing: as a lift's logarithm has a standard error that shrinks with the root of time, the days that
a lift of `FORETOLD` takes to be seen in four of five cases follow from the traffic so far.

Nights' reports and the loop both tell it, and neither imports the other.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from schemas.click_features import Array
from schemas.control import CONTROL_PREFIX
from schemas.settings_loop import ClickSettings

WORTH_DAYS = 28
"""Days of feedback that are compared."""
FORETOLD = 0.1
"""Lift whose time is foretold."""
SEEN = 1.96 + 0.84
"""Standard errors from 0 at which a lift is seen, at 5 %, in four of five cases."""
RESAMPLES = 2_000
UNEVEN = 4.0
"""Standard deviations from the expected share of control users past which the assignment is in doubt."""

_USERS = text("""
WITH feedback AS (
    SELECT f.user_id, f.poster_id LIKE :control AS control, f.action, f.occurred_at, f.poster_id, f.request_id, f.event_id,
           f.propensity
    FROM poster_feedback f
    WHERE f.occurred_at >= :start AND f.occurred_at < :stop AND f.action IN ('impression', 'click')
      AND (f.poster_id LIKE :control OR EXISTS (
          SELECT FROM posters p WHERE p.poster_id = f.poster_id AND p.user_id = f.user_id AND p.item_id = f.item_id))
      AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = f.user_id AND f.occurred_at <= e.requested_at)
), shown AS (
    SELECT user_id, control, poster_id, coalesce(request_id, occurred_at::text) AS moment, min(occurred_at) AS shown_at,
           max(propensity) AS propensity
    FROM feedback WHERE action = 'impression' GROUP BY 1, 2, 3, 4
), clicks AS (
    SELECT DISTINCT ON (c.event_id) c.event_id, s.user_id, s.poster_id, s.moment
    FROM feedback c JOIN shown s ON s.user_id = c.user_id AND s.poster_id = c.poster_id AND s.shown_at <= c.occurred_at
         AND c.occurred_at <= s.shown_at + make_interval(secs => :attribution)
    WHERE c.action = 'click' ORDER BY c.event_id, s.moment = c.request_id DESC NULLS LAST, s.shown_at DESC
), clicked AS (
    SELECT DISTINCT user_id, poster_id, moment FROM clicks
)
SELECT s.user_id, s.control, least(count(*), :cap) AS shown,
       count(c.moment) * least(count(*), :cap)::float / count(*) AS clicked, max(s.propensity) AS propensity
FROM (SELECT *, count(*) OVER (PARTITION BY user_id, (shown_at AT TIME ZONE 'UTC')::date) AS busiest FROM shown) s
LEFT JOIN clicked c USING (user_id, poster_id, moment)
WHERE s.shown_at < :closed
GROUP BY s.user_id, s.control
HAVING max(s.busiest) <= :robot_daily_showings
   AND NOT (count(*) >= :robot_min_showings AND count(c.moment) >= :robot_click_share * count(*))
ORDER BY s.user_id, s.control
""")


@dataclass(frozen=True)
class Worth:
    """Click rates of both groups and the lift of drawn posters, each with its 95 % interval."""

    control_users: int
    drawn_users: int
    control_showings: int
    drawn_showings: int
    control_rate: float
    drawn_rate: float
    lift: float
    """drawn_rate / control_rate - 1."""
    lift_low: float
    lift_high: float
    expected_share: float
    """Share of users that readers logged as the control group's."""
    doubtful: bool
    """The groups' sizes are not those of the assignment: showings of one group are lost, or readers differ."""
    days: float
    """Length of the window."""
    days_for_lift: float | None
    """Days of such traffic in which a lift of FORETOLD would be seen in four of five cases; None where nobody can tell."""

    @property
    def decided(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.lift_low > 0 or self.lift_high < 0

    @property
    def words(self) -> str:
        """What was found, and what is missing, in one line."""
        return self._found() + ("" if self.decided else f"; {self._missing()}")

    def _missing(self) -> str:
        wanted = f"a lift of {FORETOLD:.0%} would be seen in four of five cases"
        if self.days_for_lift is None:
            return f"too little to tell when {wanted}"
        if self.days_for_lift <= self.days:
            return f"{wanted} by now, so it is likely smaller"
        return f"too little to decide: {wanted} after {self.days_for_lift:,.0f} days of such traffic, {self.days:.0f} are there"

    def _found(self) -> str:
        line = (
            f"drawn posters are clicked {self.drawn_rate:.2%} of {self.drawn_showings:,} times ({self.drawn_users:,} users), the "
            f"items' own {self.control_rate:.2%} of {self.control_showings:,} ({self.control_users:,} users): lift "
            f"{self.lift:+.1%}, 95 % interval {self.lift_low:+.1%} to {self.lift_high:+.1%}"
        )
        share = self.control_users / (self.control_users + self.drawn_users)
        return line + (
            f"; in doubt: {share:.1%} of the users are in the control group, {self.expected_share:.1%} were to be"
            if self.doubtful
            else ""
        )

    def figures(self) -> dict[str, Any]:
        """As JSON; None for what is infinite."""
        figures = {**asdict(self), "decided": self.decided}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


@dataclass(frozen=True)
class TooLittle:
    """Why the groups cannot be compared yet, in numbers."""

    control_users: int
    drawn_users: int
    control_showings: int
    drawn_showings: int
    control_clicks: int
    drawn_clicks: int

    @property
    def words(self) -> str:
        """What is missing, in one line."""
        groups = (
            (self.control_showings, self.control_clicks, "the control group"),
            (self.drawn_showings, self.drawn_clicks, "others"),
        )
        parts = [f"{shown:,} showings with {clicks:,} clicks of {name}" for shown, clicks, name in groups]
        if not self.control_showings:
            why = (
                "no showing of the control group was reported: readers show it (reader.control_share) the items' own posters, and "
                "those are reported like any other"
            )
        elif not self.drawn_showings:
            why = "no showing of a drawn poster was reported"
        else:
            why = "one of the groups has no clicks yet"
        return f"what drawn posters are worth cannot be told: {', '.join(parts)}; {why}"

    def figures(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "decided": False}


def read_worth(session: Session, settings: ClickSettings, stop: datetime, days: int = WORTH_DAYS) -> Worth | TooLittle:
    """The worth of drawn posters in the days before a moment, or what is missing.

    A showing counts once `clicks.attribution_hours` have passed by then; at most `clicks.daily_cap` per day count of one user,
    so that nobody decides alone, and robots not at all.
    """
    attribution = timedelta(hours=settings.attribution_hours)
    bindings = {
        "start": stop - timedelta(days=days),
        "stop": stop,
        "closed": stop - attribution,
        "attribution": attribution.total_seconds(),
        "cap": settings.daily_cap * days,
        "robot_min_showings": settings.robot_min_showings,
        "robot_click_share": settings.robot_click_share,
        "robot_daily_showings": settings.robot_daily_showings,
    }
    rows = session.execute(_USERS, {**bindings, "control": CONTROL_PREFIX + "%"}).all()
    groups = {
        control: np.array([(row.shown, row.clicked) for row in rows if row.control == control], np.float64).reshape(
            -1, 2
        )
        for control in (True, False)
    }
    logged = [row.propensity for row in rows if row.control and row.propensity is not None]
    if any(not len(group) or group[:, 1].sum() == 0 for group in groups.values()):
        (control_shown, control_clicks), (shown, clicks) = (
            groups[side].sum(axis=0).astype(int).tolist() for side in (True, False)
        )
        return TooLittle(len(groups[True]), len(groups[False]), control_shown, shown, control_clicks, clicks)
    return estimate(groups[True], groups[False], float(np.median(logged)) if logged else float("nan"), days)


def estimate(control: Array, drawn: Array, expected_share: float, days: float = WORTH_DAYS, seed: int = 0) -> Worth:
    """The worth from (users, 2) arrays of showings and clicks."""
    rng = np.random.default_rng(seed)
    theirs, ours = (_resampled_rates(group, rng) for group in (control, drawn))
    ratios = np.divide(ours, theirs, out=np.full(RESAMPLES, np.inf), where=theirs > 0) - 1
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")  # no mean of two infinite ones
    users = len(control) + len(drawn)
    deviation = np.sqrt(users * expected_share * (1 - expected_share))
    return Worth(
        control_users=len(control),
        drawn_users=len(drawn),
        control_showings=int(control[:, 0].sum()),
        drawn_showings=int(drawn[:, 0].sum()),
        control_rate=_rate(control.sum(axis=0)),
        drawn_rate=_rate(drawn.sum(axis=0)),
        lift=_rate(drawn.sum(axis=0)) / _rate(control.sum(axis=0)) - 1,
        lift_low=float(low),
        lift_high=float(high),
        expected_share=expected_share,
        doubtful=bool(abs(len(control) - users * expected_share) > UNEVEN * deviation),
        days=days,
        days_for_lift=_days_for_lift(ratios, days),
    )


def _resampled_rates(users: Array, rng: np.random.Generator) -> Array:
    """(RESAMPLES,): click rates of as many users, drawn with replacement.

    Users with the same numbers are drawn together: of most, there are many.
    """
    alike, counts = np.unique(users, axis=0, return_counts=True)
    rates = [_rate(rng.multinomial(len(users), counts / len(users)) @ alike) for _ in range(RESAMPLES)]
    return np.array(rates, np.float64)


def _days_for_lift(lifts: Array, days: float) -> float | None:
    """Days until FORETOLD is seen, from resampled lifts after `days`."""
    logs = np.log1p(lifts[np.isfinite(lifts) & (lifts > -1)])
    if len(logs) < 0.99 * len(lifts):  # with so few clicks a resample has none
        return None
    return float(days * (SEEN * logs.std(ddof=1) / math.log1p(FORETOLD)) ** 2)


def _rate(totals: Array) -> float:
    """Clicks per showing, of the sum of both."""
    shown, clicked = totals.tolist()
    return float(clicked / shown)
