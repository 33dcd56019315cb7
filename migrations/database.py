"""Upgrade, downgrade and drift check, as functions.

Two migrators at once are serialised by a session-level advisory lock; every statement has a timeout, so that a migration
that meets a busy table gives up instead of queueing all traffic behind it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.pool import NullPool

from schemas.connections import postgres_options, set_session
from schemas.errors import InputError, LockHeld, PigeonError, Refused, ServerUnavailable
from schemas.settings import DatabaseSettings
from schemas.tables import Base

ADVISORY_LOCK = 7_046_001
"""Key of the lock under which migrations run: any constant, as long as it never changes."""
LOCK_WAIT_SECONDS = 120.0
# Types of Alembic's `include_name` callback.
Kind = Literal["schema", "table", "column", "index", "unique_constraint", "foreign_key_constraint", "check_constraint"]
ParentKey = Literal["schema_name", "table_name", "schema_qualified_table_name"]
PARTITION = re.compile(r"^interactions_\d{4}(_\d{2})?$")


def is_ours(
    name: str | None,
    kind: Kind,
    parents: MutableMapping[ParentKey, str | None],
) -> bool:
    """Whether the drift check looks at it: partitions of `interactions` come and go by themselves."""
    table = name if kind == "table" else parents.get("table_name")
    return not (isinstance(table, str) and PARTITION.match(table))


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """The newest revision of this release."""
    return ScriptDirectory.from_config(_config()).get_current_head() or "base"


@contextmanager
def connected(settings: DatabaseSettings) -> Iterator[sa.Connection]:
    """A connection of its own, with the settings' timeouts.

    Raises:
        ServerUnavailable: Postgres does not answer, or refuses the login; the message says which address.
    """
    engine = sa.create_engine(
        settings.url.get_secret_value(),
        poolclass=NullPool,
        connect_args=postgres_options(settings, "pigeon-migrations"),
    )
    if settings.pooler == "session":
        sa.event.listen(engine, "connect", lambda connection, _: set_session(connection, settings))
    try:
        connection = engine.connect()
    except sa.exc.OperationalError as error:
        address = sa.make_url(settings.url.get_secret_value()).render_as_string(hide_password=True)
        raise ServerUnavailable(f"database.url {address}: {str(error.orig).strip().splitlines()[0]}") from None
    try:
        yield connection
    except sa.exc.OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ServerUnavailable(f"the database gave up: {reason}; nothing of this step was kept, try again") from error
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise PigeonError(f"the database refused: {reason}; nothing of this step was kept") from error
    finally:
        connection.close()
        engine.dispose()


@contextmanager
def _alone(settings: DatabaseSettings) -> Iterator[sa.Connection]:
    with connected(settings) as connection:
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while not connection.scalar(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}):
            connection.commit()
            if time.monotonic() > deadline:
                raise LockHeld(f"another migration has been running for {LOCK_WAIT_SECONDS:.0f} s; nothing was done")
            time.sleep(0.1)
        connection.commit()
        try:
            yield connection
        finally:
            connection.rollback()
            if not connection.invalidated:
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_LOCK})
                connection.commit()


def current(connection: sa.Connection) -> str:
    """The revision that the database is at; "base" when it is empty."""
    revision = MigrationContext.configure(connection).get_current_revision() or "base"
    connection.rollback()
    return revision


def _move(settings: DatabaseSettings, verb: Any, revision: str) -> tuple[str, str]:
    with _alone(settings) as connection:
        before = current(connection)
        try:
            verb(_config(connection), revision)
        except CommandError as error:
            raise InputError(f"revision {revision!r}: {error}") from None
        return before, current(connection)


def upgrade(settings: DatabaseSettings, revision: str = "head") -> tuple[str, str]:
    """Move up to `revision`; returns the revisions before and after.

    Raises:
        InputError: no such revision.
        LockHeld: another migration did not finish in time.
        ServerUnavailable: Postgres cannot be reached, or a lock or statement timed out.
    """
    return _move(settings, command.upgrade, revision)


def downgrade(settings: DatabaseSettings, revision: str) -> tuple[str, str]:
    """Move down to `revision` ("base" empties the database); returns the revisions before and after.

    Raises: as `upgrade`.
    """
    return _move(settings, command.downgrade, revision)


def _describe(difference: Any) -> str:
    """One of Alembic's differences in a few words: what to do, and to which table and column."""
    if isinstance(difference, list):  # changes of one column come in a list
        return "; ".join(_describe(one) for one in difference)
    words = [str(difference[0])]
    for part in difference[1:]:
        if isinstance(part, sa.Table | sa.Column | sa.Index | sa.Constraint):
            table = getattr(part, "table", None)
            words.append(f"{table.name}.{part.name}" if table is not None else str(part.name))
        elif isinstance(part, str):
            words.append(part)
    return " ".join(words)


def check(settings: DatabaseSettings) -> str:
    """The revision, when the database is at head and equals schemas/tables/.

    Raises:
        InputError: the database is behind or ahead of this release.
        Refused: tables and models differ; the message names the first differences.
    """
    with connected(settings) as connection:
        revision = current(connection)
        if revision != head():
            raise InputError(
                f"the database is at revision {revision}, this release needs {head()}: `pigeon db upgrade`"
            )
        context = MigrationContext.configure(connection, opts={"include_name": is_ours})
        differences = [_describe(d) for d in compare_metadata(context, Base.metadata)]
        if differences:
            raise Refused(f"{len(differences)} differences between tables and models: {'; '.join(differences[:5])}")
        return revision
