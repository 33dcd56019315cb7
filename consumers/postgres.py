"""Connections to Postgres with the settings' timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from sqlalchemy import make_url

from consumers.outage import first_line, is_outage
from schemas.connections import postgres_options
from schemas.errors import InputError, PigeonError, ServerUnavailable
from schemas.settings import DatabaseSettings


def postgres_connection(settings: DatabaseSettings, application: str, *, end_idle_transactions: bool = False) -> Any:
    """Connect by psycopg2 to the database of the settings, with `postgres_options`.

    Raises:
        psycopg2.OperationalError: Postgres does not answer or refuses the login.
    """
    return psycopg2.connect(
        settings.url.get_secret_value().replace("+psycopg2", "", 1),  # libpq reads the rest of an SQLAlchemy URL itself
        client_encoding="utf8",
        **postgres_options(settings, application, end_idle_transactions=end_idle_transactions),
    )


def connect(settings: DatabaseSettings, application: str) -> Any:
    """A psycopg2 connection that the server ends when a transaction idles.

    A stalled member so keeps no locks.

    Raises:
        psycopg2.OperationalError: Postgres does not answer or refuses the login.
    """
    return postgres_connection(settings, application, end_idle_transactions=True)


def describe(settings: DatabaseSettings) -> str:
    """The database's address without its password, for messages."""
    return make_url(settings.url.get_secret_value()).render_as_string(hide_password=True)


@contextmanager
def connected(settings: DatabaseSettings, application: str) -> Iterator[Any]:
    """`connect`, closed at the end.

    Raises:
        ServerUnavailable: Postgres does not answer, refuses the login, or gives up in between.
        PigeonError: a statement failed for another reason.
    """
    try:
        connection = connect(settings, application)
    except psycopg2.OperationalError as error:
        raise ServerUnavailable(f"database.url {describe(settings)}: {first_line(error)}") from None
    try:
        yield connection
    except psycopg2.Error as error:
        if is_outage(error):
            raise ServerUnavailable(
                f"database: {first_line(error)}; nothing of this step was kept, try again"
            ) from error
        raise PigeonError(
            f"database: {first_line(error)}: is it at this release's revision? `pigeon db check`"
        ) from error
    finally:
        connection.close()


def require_tables(settings: DatabaseSettings) -> None:
    """Check that the database answers and has our tables.

    Raises:
        ServerUnavailable: it does not answer.
        InputError: it is empty.
    """
    with connected(settings, "pigeon-check") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('consumer_offsets'), to_regclass('interactions')")
        if None in cursor.fetchone():
            raise InputError(f"the database {describe(settings)} has no tables of ours: `pigeon db upgrade`")
