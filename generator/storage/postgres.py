"""Connections to Postgres with the settings' timeouts, and its errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from schemas.connections import postgres_options, set_session
from schemas.errors import InputError, ServerUnavailable
from schemas.settings import DatabaseSettings

POOLER = "pigeon_pooler"
"""Execution option of an engine: the setting database.pooler."""

READ_ONLY = "25006"
"""SQLSTATE of a write to a server that takes none: a standby, or a leader that is being replaced."""


def connect(settings: DatabaseSettings) -> Engine:
    """An engine with the timeouts of the settings; it connects at first use."""
    engine = create_engine(
        settings.url.get_secret_value(),
        pool_size=settings.pool_size,
        pool_pre_ping=True,
        connect_args=postgres_options(settings, "pigeon-night"),
        execution_options={POOLER: settings.pooler},
    )
    if settings.pooler == "session":

        @event.listens_for(engine, "connect")
        def begin_session(connection: Any, _: Any) -> None:
            set_session(connection, settings)

    return engine


@contextlib.contextmanager
def plain_errors(engine: Engine) -> Iterator[None]:
    """Turn the driver's errors into ours.

    Raises:
        ServerUnavailable: Postgres is away, refuses us, is read-only or takes too long.
        InputError: the tables are missing or of another release, or a pooler refuses our options.
    """
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except OperationalError as error:
        if "unsupported startup parameter" in str(error.orig):
            raise InputError(f"Postgres {where}: {_first_line(error)}; {POOLER_ADVICE}") from error
        raise ServerUnavailable(f"Postgres {where}: {_first_line(error)} (setting database.url)") from error
    except ProgrammingError as error:
        code = getattr(error.orig, "pgcode", None)
        if code in {"42P01", "42703"}:  # undefined table, undefined column
            raise InputError(
                f"Postgres {where} lacks our tables: {_first_line(error)}; run `pigeon db upgrade`"
            ) from error
        raise
    except DBAPIError as error:
        if not error.connection_invalidated and getattr(error.orig, "pgcode", None) != READ_ONLY:
            raise
        raise ServerUnavailable(f"Postgres {where}: {_first_line(error)} (setting database.url)") from error


POOLER_ADVICE = (
    "a connection pooler answers there. Point database.url at Postgres itself, or at a pool in session mode and say so "
    "with PIGEON_DATABASE__POOLER=session; pools in transaction or statement mode cannot be used"
)


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
