"""Connections to Postgres with the settings' timeouts, and its errors in our words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from schemas.connections import postgres_options
from schemas.errors import InputError, ServerUnavailable
from schemas.settings import DatabaseSettings


def connect(settings: DatabaseSettings) -> Engine:
    """An engine with the timeouts of the settings; it connects at first use."""
    return create_engine(
        settings.url.get_secret_value(),
        pool_size=settings.pool_size,
        pool_pre_ping=True,
        connect_args=postgres_options(settings, "pigeon-night"),
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
