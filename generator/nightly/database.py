"""The night's connection to Postgres, and the lease that makes one process lead."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from schemas.errors import InputError, LockHeld, ServerUnavailable
from schemas.settings import DatabaseSettings


def connect(settings: DatabaseSettings) -> Engine:
    """An engine with the timeouts of the settings; it connects at first use."""
    timeouts = (
        f"-c statement_timeout={round(settings.statement_timeout_seconds * 1000)} "
        f"-c lock_timeout={round(settings.lock_timeout_seconds * 1000)} -c timezone=UTC"
    )
    return create_engine(
        settings.url.get_secret_value(),
        pool_size=settings.pool_size,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": max(1, round(settings.connect_timeout_seconds)),
            "options": timeouts,
            "application_name": "pigeon-night",
        },
    )


@contextlib.contextmanager
def plain_errors(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        ServerUnavailable: Postgres is away, refuses us or takes too long.
        InputError: the tables are missing or of another release.
    """
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except OperationalError as error:
        raise ServerUnavailable(f"Postgres {where}: {_first_line(error)} (setting database.url)") from error
    except ProgrammingError as error:
        code = getattr(error.orig, "pgcode", None)
        if code in {"42P01", "42703"}:  # undefined table, undefined column
            raise InputError(
                f"Postgres {where} lacks our tables: {_first_line(error)}; run `pigeon db upgrade`"
            ) from error
        raise


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__


@dataclass(frozen=True)
class Lease:
    """Leadership of `name`: `token` grows with every leader, so a late write of an older one can be refused."""

    name: str
    token: int
    holder: str

    def check(self, connection: Connection) -> None:
        """Refuse to go on when another process has taken over; holds until the transaction ends.

        Raises:
            LockHeld: a newer leader exists.
        """
        now = connection.execute(text("SELECT token, holder FROM leases WHERE name = :n FOR SHARE"), {"n": self.name})
        token, holder = now.one()
        if token != self.token:
            raise LockHeld(f"the {self.name} lease went to {holder} (token {token}, ours was {self.token})")


@contextlib.contextmanager
def lead(engine: Engine, name: str) -> Iterator[Lease]:
    """Lead `name` until the block ends: a Postgres advisory lock, which a dead process cannot keep, and a new token.

    Raises:
        LockHeld: another process leads; the message names it.
        ServerUnavailable: Postgres is away.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}"
    with plain_errors(engine), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # Its own session for the whole time: the lock is the session's.
        taken = connection.execute(
            text("SELECT pg_try_advisory_lock(hashtext('pigeon'), hashtext(:n))"), {"n": name}
        ).scalar_one()
        if not taken:
            row = connection.execute(text("SELECT holder FROM leases WHERE name = :n"), {"n": name}).one_or_none()
            raise LockHeld(f"the {name} is led by {row.holder if row else 'another process'}; nothing was done")
        token = connection.execute(
            text(
                "INSERT INTO leases (name, holder, token) VALUES (:n, :h, 1) ON CONFLICT (name) DO UPDATE "
                "SET holder = :h, token = leases.token + 1, acquired_at = now() RETURNING token"
            ),
            {"n": name, "h": holder},
        ).scalar_one()
        try:
            yield Lease(name, token, holder)
        finally:
            with contextlib.suppress(DBAPIError):
                connection.execute(text("SELECT pg_advisory_unlock(hashtext('pigeon'), hashtext(:n))"), {"n": name})
