"""Which showings count: not those of robots, and not more of one user and day than a cap.

A robot is a user with more showings on one day than `clicks.robot_daily_showings`, or who clicks `clicks.robot_click_share` of at
least `clicks.robot_min_showings` showings; nothing of a robot counts. What is left out is counted by its rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.settings_loop import ClickSettings


@dataclass(frozen=True)
class LoggedShowing:
    """A poster shown once, and what came of it."""

    user_id: str
    item_id: str
    run_id: str
    codes: tuple[int, ...]
    shown_at: datetime
    position: int
    """-1 where none was reported."""
    surface: str
    propensity: float
    """Probability with which this answer was drawn and shown."""
    clicked: bool


def clean(showings: Sequence[LoggedShowing], settings: ClickSettings) -> tuple[list[LoggedShowing], dict[str, int]]:
    """The showings that count, in their order, and what was left out by which rule."""
    robots = find_robots(showings, settings)
    people = [one for one in showings if one.user_id not in robots]
    kept, taken = [], Counter[tuple[str, int]]()
    for one in sorted(people, key=lambda one: (one.shown_at, one.user_id, one.item_id)):
        day = one.user_id, one.shown_at.toordinal()
        taken[day] += 1
        if taken[day] <= settings.daily_cap:
            kept.append(one)
    counts = {
        "robots": len(robots),
        "showings_of_robots": len(showings) - len(people),
        "showings_past_the_cap": len(people) - len(kept),
    }
    return kept, counts


def find_robots(showings: Sequence[LoggedShowing], settings: ClickSettings) -> set[str]:
    """Users who are no people, by the rules above."""
    by_day = Counter((one.user_id, one.shown_at.toordinal()) for one in showings)
    shown = Counter(one.user_id for one in showings)
    clicked = Counter(one.user_id for one in showings if one.clicked)
    busy = {user for (user, _), count in by_day.items() if count > settings.robot_daily_showings}
    eager = {
        user
        for user, count in shown.items()
        if count >= settings.robot_min_showings and clicked[user] >= settings.robot_click_share * count
    }
    return busy | eager
