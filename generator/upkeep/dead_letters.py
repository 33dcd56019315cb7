"""What an erasure's proof tells of dead letters: how many wait, hidden, for their topic's retention."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from schemas.events import CATALOG, DLQ_SUFFIX

SEGMENT_DAYS = 1
"""Days that a record may stay past retention: a broker deletes segments, of a day as `pigeon topics create` makes them."""

_OF_USER = text("SELECT count(*), max(written_at) FROM dead_letters WHERE user_ids @> ARRAY[CAST(:user AS text)]")
_OF_NOBODY = text(
    "SELECT count(*), max(written_at) FROM dead_letters WHERE user_ids = '{}' AND topic NOT LIKE :catalog"
)
_COMPARED = text("SELECT max(checked_at) FROM dead_letter_marks")


@dataclass(frozen=True)
class WaitingLetters:
    """Dead letters that are in their topics still."""

    of_user: int
    """Number of those that name the user: not shown, never sent again."""
    of_user_gone_by: str | None
    of_nobody: int
    """Number of those whose user cannot be told from key and value."""
    of_nobody_gone_by: str | None
    index_compared_at: str | None
    """When the index was last compared with the topics; None when it never was, and the numbers are only of what came since."""


def waiting_letters(session: Session, user: str, retention_days: int) -> dict[str, Any]:
    """What waits now, by the index of dead letters, and until when at most."""
    days = timedelta(days=retention_days + SEGMENT_DAYS)
    of_user, newest = session.execute(_OF_USER, {"user": user}).one()
    # An item of the catalogue names no user.
    of_nobody, newest_of_nobody = session.execute(_OF_NOBODY, {"catalog": f"%{CATALOG}{DLQ_SUFFIX}"}).one()
    compared = session.scalar(_COMPARED)
    return asdict(
        WaitingLetters(
            of_user=of_user,
            of_user_gone_by=_iso(newest, days),
            of_nobody=of_nobody,
            of_nobody_gone_by=_iso(newest_of_nobody, days),
            index_compared_at=_iso(compared, timedelta()),
        )
    )


def _iso(moment: datetime | None, later: timedelta) -> str | None:
    return (moment + later).isoformat() if moment else None
