"""When there will be enough feedback to learn from, if it goes on as it came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from schemas.tables import PosterFeedback

DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Outlook:
    """Time in which what is there has come, and the longest that counts: `retrain.window_days`."""

    days: float
    window_days: int

    def words(self, have: int, wanted: int) -> str:
        """After how many more days `have` will be `wanted`."""
        if not have:
            return f"none in {self.days:.0f} days, so that nobody can tell when it will suffice"
        needed = math.ceil(wanted * self.days / have)
        if needed > self.window_days:
            return (
                f"at this rate {needed:,} days of feedback are needed, more than retrain.window_days {self.window_days}: a longer "
                "window or more showings would do"
            )
        more = max(1, math.ceil(needed - self.days))
        return f"at this rate it will suffice in about {more} more {'day' if more == 1 else 'days'}"


def read_outlook(session: Session, start: datetime, stop: datetime) -> Outlook:
    """From the first showing of a window to its end."""
    shown_at = PosterFeedback.occurred_at
    of_window = (PosterFeedback.action == "impression", shown_at >= start, shown_at < stop)
    first = session.scalars(select(func.min(shown_at)).where(*of_window)).one()
    days = (stop - (first or start)).total_seconds() / DAY_SECONDS
    return Outlook(days, (stop - start).days)
