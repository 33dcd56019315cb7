"""The months of `interactions`: made on demand by the consumer and ahead by upkeep, detached and dropped by retention.

There is no DEFAULT partition: one would forbid DETACH ... CONCURRENTLY. An event of a month that has no partition makes
it, in the event's own transaction. New partitions are attached, which blocks neither readers nor writers.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Any

from consumers import database
from schemas.settings import DatabaseSettings

# Names the lock "partitions of interactions are being made"; see migrations/database.py for its neighbour.
ADVISORY_LOCK = 7_046_002
_NAME = re.compile(r"^interactions_(\d{4})_(\d{2})$")


def name_of(month: date) -> str:
    """The partition that holds a month."""
    return f"interactions_{month:%Y_%m}"


def add_months(month: date, count: int) -> date:
    """The first day of the month `count` months later (or earlier)."""
    years, index = divmod(month.year * 12 + month.month - 1 + count, 12)
    return date(years, index + 1, 1)


def _exists(cursor: Any, month: date) -> bool:
    cursor.execute(
        """SELECT 1 FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
           WHERE i.inhparent = 'interactions'::regclass AND c.relname = %s AND NOT i.inhdetachpending""",
        (name_of(month),),
    )
    return cursor.fetchone() is not None


def make(cursor: Any, months: list[date]) -> list[date]:
    """Make the partitions of `months` that are missing, in the caller's transaction; returns those made."""
    if all(_exists(cursor, month) for month in months):
        return []
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
    made = []
    for month in sorted(months):
        if _exists(cursor, month):  # another member was quicker
            continue
        name = name_of(month)
        cursor.execute(f"CREATE TABLE {name} (LIKE interactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        cursor.execute(
            f"ALTER TABLE interactions ATTACH PARTITION {name} FOR VALUES FROM (%s) TO (%s)",
            (
                datetime(month.year, month.month, 1, tzinfo=UTC),
                datetime.combine(add_months(month, 1), datetime.min.time(), UTC),
            ),
        )
        made.append(month)
    return made


def _partitions(cursor: Any) -> list[tuple[date, str, str]]:
    """(month, table, state) of every table that is or was a partition; state: attached, pending or detached."""
    cursor.execute(
        """SELECT c.relname, CASE WHEN i.inhrelid IS NULL THEN 'detached'
                                  WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
           WHERE c.relkind = 'r' AND c.relnamespace = (
                   SELECT relnamespace FROM pg_class WHERE oid = 'interactions'::regclass)
             AND c.relname ~ '^interactions_[0-9]{4}_[0-9]{2}$' ORDER BY c.relname"""
    )
    found = []
    for name, state in cursor.fetchall():
        match = _NAME.match(name)
        if match and 1 <= int(match[2]) <= 12:
            found.append((date(int(match[1]), int(match[2]), 1), str(name), str(state)))
    return found


def upkeep(
    settings: DatabaseSettings, ahead_months: int, retention_months: int, today: date | None = None
) -> tuple[list[str], list[str]]:
    """Make this month's and the next `ahead_months` partitions; detach and drop those older than `retention_months`.

    Detaching is CONCURRENTLY, so writers are not blocked; one that was interrupted is finished by the next call.

    Returns:
        The names of the partitions made and of those dropped.

    Raises:
        ServerUnavailable: Postgres cannot be reached, or a lock did not come in time.
    """
    month = (today or datetime.now(UTC).date()).replace(day=1)
    oldest_kept = add_months(month, -retention_months)
    with database.connected(settings, "pigeon-upkeep") as connection:
        with connection, connection.cursor() as cursor:
            made = make(cursor, [add_months(month, n) for n in range(ahead_months + 1)])
        connection.autocommit = True
        dropped = []
        with connection.cursor() as cursor:
            for old, name, state in _partitions(cursor):
                if old >= oldest_kept:
                    continue
                if state == "attached":
                    cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {name} CONCURRENTLY")
                elif state == "pending":
                    cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {name} FINALIZE")
                cursor.execute(f"DROP TABLE {name}")
                dropped.append(name)
    return [name_of(m) for m in made], dropped
