"""SQL of showings of posters, from feedback events.

What robots did, and what is past one user's daily cap, is none.
Nights and the feedback loop count by it; the reasons are in the docstring of generator/feedback/pairs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.settings_loop import ClickSettings

# Rows of users to be erased never enter, even before the consumers' and the night's deletions have run: while a request is open
# nothing of its user does, for what a poster rests on may be older than the poster.
SHOWINGS = """
WITH events AS (
    SELECT f.event_id, f.user_id, f.poster_id, p.item_id, p.run_id, f.action, f.position, f.surface, f.occurred_at,
           coalesce(f.propensity, p.propensity) AS propensity,
           count(*) FILTER (WHERE f.action = 'impression') OVER (
               PARTITION BY f.user_id, f.poster_id
               ORDER BY f.occurred_at, f.action <> 'impression', f.event_id ROWS UNBOUNDED PRECEDING) AS showing
    FROM poster_feedback f
    JOIN posters p ON p.poster_id = f.poster_id AND p.user_id = f.user_id AND p.item_id = f.item_id
    WHERE f.occurred_at >= :start AND f.occurred_at < :stop
      AND (CAST(:users AS text[]) IS NULL OR f.user_id = ANY (CAST(:users AS text[])))
      AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = f.user_id
                      AND (e.completed_at IS NULL OR f.occurred_at <= e.requested_at OR p.created_at <= e.requested_at))
), logged AS (
    SELECT user_id, poster_id, item_id, run_id, showing,
           coalesce(max(surface) FILTER (WHERE action = 'impression'), '') AS surface,
           coalesce(max(position) FILTER (WHERE action = 'impression'), 0) AS position,
           max(propensity) FILTER (WHERE action = 'impression') AS propensity,
           min(occurred_at) FILTER (WHERE action = 'impression') AS shown_at,
           (bool_or(action = 'click') AND NOT bool_or(action = 'dismiss'))::int AS clicked
    FROM events WHERE showing > 0
    GROUP BY user_id, poster_id, item_id, run_id, showing
), robots AS (
    SELECT user_id FROM logged GROUP BY user_id
    HAVING count(*) >= :robot_min_showings AND sum(clicked) >= :robot_click_share * count(*)
    UNION
    SELECT user_id FROM logged GROUP BY user_id, (shown_at AT TIME ZONE 'UTC')::date
    HAVING count(*) > :robot_daily_showings
), showings AS (
    SELECT user_id, poster_id, item_id, run_id, showing, surface, position, propensity, shown_at, clicked
    FROM (SELECT *, row_number() OVER (PARTITION BY user_id, (shown_at AT TIME ZONE 'UTC')::date
                                       ORDER BY shown_at, poster_id, showing) AS of_day
          FROM logged WHERE user_id NOT IN (SELECT user_id FROM robots)) AS people
    WHERE of_day <= :daily_cap
)
"""
"""Common table expressions, `robots` and `showings` among them; bound by :start, :stop and `hygiene`."""


def hygiene(settings: ClickSettings, users: Sequence[str] | None = None) -> dict[str, Any]:
    """Bindings of every statement over showings: whose do not count.

    The rules are those of feedback/clicks/hygiene.py. `users`: these alone are looked at.
    """
    names = ("robot_min_showings", "robot_click_share", "robot_daily_showings", "daily_cap")
    return {**{name: getattr(settings, name) for name in names}, "users": None if users is None else list(users)}
