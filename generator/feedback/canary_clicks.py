"""Users' showings and clicks, before the canary and since, as its test takes them."""

from __future__ import annotations

from datetime import datetime

import numpy as np
from sqlalchemy.orm import Session

from generator.feedback.canary_test import UserClicks
from generator.feedback.queries import USER_CLICKS
from generator.nightly.frozen_prompt import share
from generator.storage.showings import hygiene
from schemas.settings_loop import ClickSettings

Between = tuple[datetime, datetime]


def read_users(
    session: Session, version: str, shares: tuple[float, float], before: Between, since: Between, clicks: ClickSettings
) -> UserClicks:
    """All users with a showing in either time.

    shares: of the users that the canary draws for, when it began and now. Whoever changed sides between them is left out.
    clicks: who counts as a robot, and how much of one user and day counts.
    """
    rows = [_clicks(session, between, clicks) for between in (before, since)]
    users = [user for user in sorted(set(rows[0]) | set(rows[1])) if not _switched(user, version, shares)]
    earlier, later = (
        np.array([found.get(user, (0, 0)) for user in users], dtype=np.float64).reshape(-1, 2) for found in rows
    )
    canary = np.array([position(user, version) < shares[0] for user in users], dtype=np.bool_)
    return UserClicks(canary, later[:, 0], later[:, 1], earlier[:, 0], earlier[:, 1])


def position(user: str, version: str) -> float:
    """A user's place in [0, 1) for a canary.

    Below its share it draws for them (generator/nightly/plan.py).
    """
    return share(user, f"canary {version}")


def _switched(user: str, version: str, shares: tuple[float, float]) -> bool:
    return min(shares) <= position(user, version) < max(shares)


def _clicks(session: Session, between: Between, clicks: ClickSettings) -> dict[str, tuple[int, int]]:
    rows = session.execute(USER_CLICKS, {"start": between[0], "stop": between[1], **hygiene(clicks)})
    return {row.user_id: (row.showings, row.clicks) for row in rows}
