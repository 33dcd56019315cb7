"""What drawn posters are worth over the items' own, by the control group's click rate.

Readers show the users of the control group the item's own picture where a drawn poster was there (schemas/control.py). Users are
assigned by a hash, so the groups differ by chance only; the intervals are a bootstrap over users.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import text
from sqlalchemy.orm import Session

from schemas.click_features import Array
from schemas.control import CONTROL_PREFIX

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
FROM shown s LEFT JOIN clicked c USING (user_id, poster_id, moment)
WHERE s.shown_at < :closed
GROUP BY s.user_id, s.control ORDER BY s.user_id, s.control
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

    @property
    def words(self) -> str:
        """What was found, in one line."""
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
        """As JSON."""
        return asdict(self)


def read_worth(
    session: Session, start: datetime, stop: datetime, *, closed: datetime, attribution_seconds: float, cap: int
) -> Worth | None:
    """The worth of drawn posters; None where a group was not shown or never clicked.

    Args:
        session: reads only.
        start: first moment of the window.
        stop: its end; clicks up to then count.
        closed: showings from then on are too young.
        attribution_seconds: time within which a click belongs to its showing.
        cap: showings of one user that count at most, so that nobody decides alone.
    """
    bindings = {"start": start, "stop": stop, "closed": closed, "attribution": attribution_seconds, "cap": cap}
    rows = session.execute(_USERS, {**bindings, "control": CONTROL_PREFIX + "%"}).all()
    groups = {
        control: np.array([(row.shown, row.clicked) for row in rows if row.control == control], np.float64)
        for control in (True, False)
    }
    logged = [row.propensity for row in rows if row.control and row.propensity is not None]
    if any(not len(group) or group[:, 1].sum() == 0 for group in groups.values()):
        return None
    return estimate(groups[True], groups[False], float(np.median(logged)) if logged else float("nan"))


def estimate(control: Array, drawn: Array, expected_share: float, seed: int = 0) -> Worth:
    """The worth from (users, 2) arrays of showings and clicks."""
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(RESAMPLES):
        sampled = [_rate(group[rng.integers(len(group), size=len(group))]) for group in (control, drawn)]
        ratios.append(sampled[1] / sampled[0] - 1 if sampled[0] > 0 else np.inf)
    low, high = np.quantile(ratios, [0.025, 0.975])
    users = len(control) + len(drawn)
    deviation = np.sqrt(users * expected_share * (1 - expected_share))
    return Worth(
        control_users=len(control),
        drawn_users=len(drawn),
        control_showings=int(control[:, 0].sum()),
        drawn_showings=int(drawn[:, 0].sum()),
        control_rate=_rate(control),
        drawn_rate=_rate(drawn),
        lift=_rate(drawn) / _rate(control) - 1,
        lift_low=float(low),
        lift_high=float(high),
        expected_share=expected_share,
        doubtful=bool(abs(len(control) - users * expected_share) > UNEVEN * deviation),
    )


def _rate(users: Array) -> float:
    return float(users[:, 1].sum() / users[:, 0].sum())
