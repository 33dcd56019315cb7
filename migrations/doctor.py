"""What is asked of Postgres for `pigeon doctor`: version, pooler, rights, clock, migrations."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import sqlalchemy as sa

from migrations import database
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings
from schemas.tables import Base

AREA = "postgres"
OLDEST_RUN = 15
"""Oldest major version of PostgreSQL that this project has been run on."""
CLOCK_SECONDS = 5.0
"""Seconds by which a server's clock may differ from ours before it is worth a word."""
_TABLE_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


def _server(settings: Settings) -> Iterator[Finding]:
    with database.connected(settings.database) as connection:
        version = int(connection.scalar(sa.text("SHOW server_version_num")))
        named = connection.scalar(sa.text("SHOW server_version"))
        if version // 10_000 < OLDEST_RUN:
            yield warn(
                AREA, "version", f"PostgreSQL {named} is older than any this was run on", f"{OLDEST_RUN} or newer"
            )
        else:
            yield ok(AREA, "version", f"PostgreSQL {named}")
        encoding = connection.scalar(sa.text("SHOW server_encoding"))
        if encoding != "UTF8":
            yield wrong(
                AREA, "encoding", f"the database is in {encoding}: ids and titles do not fit", "create it with UTF8"
            )
        if connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
            standby = connection.scalar(sa.text("SELECT pg_is_in_recovery()"))
            what = "is a standby" if standby else "is read-only (default_transaction_read_only)"
            yield wrong(AREA, "writes", f"it {what}", "database.url must lead to the primary")
        yield from _clock(connection)


def _clock(connection: sa.Connection) -> Iterator[Finding]:
    """How far the server's clock is from ours, the time of the question left out."""
    before = datetime.now(UTC)
    theirs = connection.scalar(sa.text("SELECT clock_timestamp()"))
    after = datetime.now(UTC)
    apart = max((before - theirs).total_seconds(), (theirs - after).total_seconds(), 0.0)
    if apart > CLOCK_SECONDS:
        yield warn(AREA, "clock", f"differs from ours by {apart:.0f} s", "let both machines follow a time server (NTP)")
    else:
        yield ok(AREA, "clock", "agrees with ours")


def _pooler(settings: Settings) -> Iterator[Finding]:
    """Whether a pooler is in between, and in which mode.

    It makes up the number of the session that Postgres tells at login; in session mode nobody else has our session.
    """
    with database.connected(settings.database) as connection:
        told = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr] # psycopg2's
        backend = connection.scalar(sa.text("SELECT pg_backend_pid()"))
        connection.rollback()
        if told == backend:
            yield ok(AREA, "pooler", "none in between")
        elif settings.database.pooler != "session":
            mend = "run it in session mode and set PIGEON_DATABASE__POOLER=session"
            yield wrong(AREA, "pooler", "a pooler (PgBouncer) is in between", mend)
        else:
            with database.connected(settings.database) as other:
                shared = other.scalar(sa.text("SELECT pg_backend_pid()")) == backend
            if shared:
                yield wrong(
                    AREA,
                    "pooler",
                    "the pooler is not in session mode, though database.pooler says so",
                    "pool_mode = session",
                )
            else:
                yield ok(AREA, "pooler", "in session mode")


def _head(settings: Settings) -> Iterator[Finding]:
    with database.connected(settings.database) as connection:
        now, head = database.current(connection), database.head()
    if now == head:
        yield ok(AREA, "migrations", f"at {now}")
    else:
        empty = "the database is empty" if now == "base" else f"at {now}, this release needs {head}"
        mend = "`pigeon db upgrade`" + ("" if now == "base" else " (or this release is older than the database)")
        yield wrong(AREA, "migrations", empty, mend)


def _rights(settings: Settings) -> Iterator[Finding]:
    with database.connected(settings.database) as connection:
        user = connection.scalar(sa.text("SELECT current_user"))
        lacking = [
            f"{right} on {table}"
            for table in sorted(Base.metadata.tables)
            if connection.scalar(sa.text("SELECT to_regclass(:t) IS NOT NULL"), {"t": table})
            for right in _TABLE_RIGHTS
            if not connection.scalar(sa.text("SELECT has_table_privilege(:t, :r)"), {"t": table, "r": right})
        ]
        owns = connection.scalar(
            sa.text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = to_regclass('interactions')")
        )
        creates = connection.scalar(sa.text("SELECT has_schema_privilege(current_schema(), 'CREATE')"))
    if lacking:
        more = f" and {len(lacking) - 3} more" if lacking[3:] else ""
        yield wrong(AREA, "rights", f"{user} lacks {', '.join(lacking[:3])}{more}", f"GRANT them to {user}")
    elif owns is False or not creates:
        mend = f"let {user} own the table and GRANT CREATE on its schema"
        yield wrong(AREA, "rights", f"{user} cannot make partitions of interactions, nor drop them", mend)
    else:
        yield ok(AREA, "rights", f"{user} may read, write and make partitions")


PROBES = (
    Probe(AREA, "server", _server, seconds=20.0),
    Probe(AREA, "pooler", _pooler, seconds=20.0),
    Probe(AREA, "migrations", _head, seconds=20.0),
    Probe(AREA, "rights", _rights, seconds=20.0),
)
