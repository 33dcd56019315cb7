"""The months of `interactions`: made on demand and ahead of time, dropped by retention.

There is no DEFAULT partition: one would forbid DETACH ... CONCURRENTLY. An event of a month that has no partition makes
it, in the event's own transaction. New partitions are attached, which blocks neither readers nor writers.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any

import psycopg2.errors

from consumers import postgres
from consumers.outage import Outage
from schemas.errors import ServerUnavailable
from schemas.settings import DatabaseSettings

ADVISORY_LOCK = 7_046_002
"""Key of the lock under which partitions of `interactions` are made; its neighbour is in migrations/database.py."""


def name_of(month: date) -> str:
    """The name of a month's partition."""
    return f"interactions_{month:%Y_%m}"


def _midnight(month: date) -> datetime:
    return datetime.combine(month, time.min, UTC)


def add_months(month: date, count: int) -> date:
    """The first day of the month `count` months later (or earlier)."""
    years, index = divmod(month.year * 12 + month.month - 1 + count, 12)
    return date(years, index + 1, 1)


def _states(cursor: Any) -> dict[date, str]:
    """Every month that has a table, in order: attached, pending (half-way detached) or detached."""
    cursor.execute(
        """SELECT to_date(right(c.relname, 7), 'YYYY_MM'),
                  CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
           WHERE c.relkind = 'r' AND c.relnamespace = (
                   SELECT relnamespace FROM pg_class WHERE oid = 'interactions'::regclass)
             AND c.relname ~ '^interactions_[0-9]{4}_(0[1-9]|1[0-2])$' ORDER BY c.relname"""
    )
    return dict(cursor.fetchall())


def _attach(cursor: Any, month: date) -> None:
    cursor.execute(
        f"ALTER TABLE interactions ATTACH PARTITION {name_of(month)} FOR VALUES FROM (%s) TO (%s)",
        (_midnight(month), _midnight(add_months(month, 1))),
    )


def make(cursor: Any, months: list[date]) -> list[date]:
    """Make the partitions of `months` that are missing, in the caller's transaction; returns those made.

    Raises:
        Outage: retention is taking one of these months away, or the login may not make tables; nothing can be done before that
            has changed.
    """
    states = _states(cursor)
    if all(states.get(month) == "attached" for month in months):
        return []
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
    states = _states(cursor)  # another member may have been quicker
    made = []
    for month in sorted(months):
        state = states.get(month)
        if state == "attached":
            continue
        if state is not None:
            raise Outage(f"database: {name_of(month)} is half-way out by retention; `pigeon db upkeep` ends that")
        _create(cursor, month)
        made.append(month)
    return made


def _create(cursor: Any, month: date) -> None:
    try:
        cursor.execute(f"CREATE TABLE {name_of(month)} (LIKE interactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        _attach(cursor, month)
    except psycopg2.errors.InsufficientPrivilege as error:
        # A login of deploy/postgres/roles.sql: the events wait until the owner's job has made the month.
        raise Outage(
            f"database: there is no {name_of(month)} and this login may not make it; run `pigeon db upkeep` as the tables' owner"
        ) from error


def upkeep(
    settings: DatabaseSettings, ahead_months: int, retention_months: int, today: date | None = None
) -> tuple[list[str], list[str]]:
    """Make this and the next `ahead_months` partitions, drop those older than `retention_months`.

    A month goes when it is that old and everything in it came in that long ago: history that was imported yesterday is
    not old. Detaching is CONCURRENTLY, so writers are not blocked; one that was interrupted is ended by the next call.

    Returns:
        The names of the partitions made and of those dropped.

    Raises:
        ServerUnavailable: Postgres cannot be reached, a lock did not come in time, or the login may not make tables.
    """
    month = (today or datetime.now(UTC).date()).replace(day=1)
    with postgres.connected(settings, "pigeon-upkeep") as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            dropped = _retire(cursor, add_months(month, -retention_months))
        connection.autocommit = False
        try:
            with connection, connection.cursor() as cursor:
                made = make(cursor, [add_months(month, n) for n in range(ahead_months + 1)])
        except Outage as error:
            raise ServerUnavailable(str(error)) from error
    return [name_of(m) for m in made], dropped


def _retire(cursor: Any, oldest_kept: date) -> list[str]:
    """Drop the months before `oldest_kept` in which nothing came in since then; returns their names."""
    cursor.execute(
        "SET statement_timeout = 0"
    )  # a large month takes long to look through; lock_timeout bounds the waits

    def expired(month: date) -> bool:
        if month >= oldest_kept:
            return False
        cursor.execute(
            f"SELECT NOT EXISTS (SELECT FROM {name_of(month)} WHERE ingested_at >= %s)",  # noqa: S608 - our own name
            (_midnight(oldest_kept),),
        )
        return bool(cursor.fetchone()[0])

    dropped = []
    # Postgres refuses to detach one partition while another is half-way: that one comes first.
    for month, state in sorted(_states(cursor).items(), key=lambda item: item[1] != "pending"):
        name = name_of(month)
        if state == "attached":
            if not expired(month):
                continue
            cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {name} CONCURRENTLY")
        elif state == "pending":
            cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {name} FINALIZE")
        if expired(month):
            cursor.execute(f"DROP TABLE {name}")
            dropped.append(name)
        else:  # a late event came in meanwhile, or retention has been prolonged
            _attach(cursor, month)
    return dropped
