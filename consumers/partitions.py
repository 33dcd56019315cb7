"""The months of `interactions`, and the years of long ago: made on demand, dropped by retention.

There is no DEFAULT partition: one would forbid DETACH ... CONCURRENTLY. An event of a month that has no partition makes
it, in the event's own transaction. New partitions are attached, which blocks neither readers nor writers. Events of long ago
have a partition for each year, so that imported ones, whatever their dates, do not make hundreds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

import psycopg2.errors

from consumers import postgres
from consumers.outage import Outage
from schemas.errors import ServerUnavailable
from schemas.settings import DatabaseSettings

ADVISORY_LOCK = 7_046_002
"""Key of the lock under which partitions of `interactions` are made; its neighbour is in migrations/database.py."""


MONTHLY_YEARS = 5
"""Years before this one of which each month has a partition of its own; of earlier ones each year has one."""


class Span(NamedTuple):
    """A month or a year: its first day, and the first day after it."""

    begin: date
    end: date

    @classmethod
    def of_month(cls, month: date) -> Span:
        """The month of its first day."""
        return cls(month, add_months(month, 1))

    @classmethod
    def of_year(cls, year: int) -> Span:
        """A whole year."""
        return cls(date(year, 1, 1), date(year + 1, 1, 1))

    @property
    def name(self) -> str:
        """Its partition's name."""
        whole_year = self.end.year > self.begin.year and self.begin.month == 1
        return f"interactions_{self.begin:%Y}" if whole_year else f"interactions_{self.begin:%Y_%m}"


def _midnight(month: date) -> datetime:
    return datetime.combine(month, time.min, UTC)


def add_months(month: date, count: int) -> date:
    """The first day of the month `count` months later (or earlier)."""
    years, index = divmod(month.year * 12 + month.month - 1 + count, 12)
    return date(years, index + 1, 1)


def _states(cursor: Any) -> dict[Span, str]:
    """Every month or year that has a table, in order: attached, pending (half-way detached) or detached."""
    cursor.execute(
        """SELECT substr(c.relname, 14),
                  CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END
           FROM pg_class c LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
           WHERE c.relkind = 'r' AND c.relnamespace = (
                   SELECT relnamespace FROM pg_class WHERE oid = 'interactions'::regclass)
             AND c.relname ~ '^interactions_[0-9]{4}(_(0[1-9]|1[0-2]))?$' ORDER BY c.relname"""
    )
    return {_span_named(name): state for name, state in cursor.fetchall()}


def _span_named(name: str) -> Span:
    year, _, month = name.partition("_")
    return Span.of_month(date(int(year), int(month), 1)) if month else Span.of_year(int(year))


def _span_of(month: date, states: Mapping[Span, str], today: date) -> Span:
    """The partition that a month's events belong to, given those that there are."""
    year, own = Span.of_year(month.year), Span.of_month(month)
    recent = month.year >= today.year - MONTHLY_YEARS
    divided = any(span.begin.year == month.year and span != year for span in states)
    return own if year not in states and (recent or divided) else year


def _attach(cursor: Any, span: Span) -> None:
    cursor.execute(
        f"ALTER TABLE interactions ATTACH PARTITION {span.name} FOR VALUES FROM (%s) TO (%s)",
        (_midnight(span.begin), _midnight(span.end)),
    )


def make(cursor: Any, months: list[date], today: date | None = None) -> list[Span]:
    """Make the partitions of `months` that are missing, in the caller's transaction; returns those made.

    Raises:
        Outage: retention is taking one of these months away, or the login may not make tables; nothing can be done before that
            has changed.
    """
    today = today or datetime.now(UTC).date()
    states = _states(cursor)
    if all(states.get(_span_of(month, states, today)) == "attached" for month in months):
        return []
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", (ADVISORY_LOCK,))
    states = _states(cursor)  # another member may have been quicker
    made = []
    for span in sorted({_span_of(month, states, today) for month in months}):
        state = states.get(span)
        if state == "attached":
            continue
        if state is not None:
            raise Outage(f"database: {span.name} is half-way out by retention; `pigeon db upkeep` ends that")
        _create(cursor, span)
        made.append(span)
    return made


def _create(cursor: Any, span: Span) -> None:
    try:
        cursor.execute(f"CREATE TABLE {span.name} (LIKE interactions INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
        _attach(cursor, span)
    except psycopg2.errors.InsufficientPrivilege as error:
        # A login of deploy/postgres/roles.sql: the events wait until the owner's job has made the month.
        raise Outage(
            f"database: there is no {span.name} and this login may not make it; run `pigeon db upkeep` as the tables' owner"
        ) from error


def upkeep(
    settings: DatabaseSettings, ahead_months: int, retention_months: int, today: date | None = None
) -> tuple[list[str], list[str]]:
    """Make this and the next `ahead_months` partitions, drop those older than `retention_months`.

    A month (or a year of long ago) goes when all of it is that old and came in that long ago: history that was imported
    yesterday is not old. Detaching is CONCURRENTLY, so writers are not blocked; one that was interrupted is ended by the next call.

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
                made = make(cursor, [add_months(month, n) for n in range(ahead_months + 1)], month)
        except Outage as error:
            raise ServerUnavailable(str(error)) from error
    return [span.name for span in made], dropped


def _retire(cursor: Any, oldest_kept: date) -> list[str]:
    """Drop the months before `oldest_kept` in which nothing came in since then; returns their names."""
    cursor.execute(
        "SET statement_timeout = 0"
    )  # a large month takes long to look through; lock_timeout bounds the waits

    def expired(span: Span) -> bool:
        if span.end > oldest_kept:
            return False
        cursor.execute(
            f"SELECT NOT EXISTS (SELECT FROM {span.name} WHERE ingested_at >= %s)",  # noqa: S608 - our own name
            (_midnight(oldest_kept),),
        )
        return bool(cursor.fetchone()[0])

    dropped = []
    # Postgres refuses to detach one partition while another is half-way: that one comes first.
    for span, state in sorted(_states(cursor).items(), key=lambda item: item[1] != "pending"):
        if state == "attached":
            if not expired(span):
                continue
            cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {span.name} CONCURRENTLY")
        elif state == "pending":
            cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {span.name} FINALIZE")
        if expired(span):
            cursor.execute(f"DROP TABLE {span.name}")
            dropped.append(span.name)
        else:  # a late event came in meanwhile, or retention has been prolonged
            _attach(cursor, span)
    return dropped
