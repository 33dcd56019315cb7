"""The lease of the one process that leads: an advisory lock, and a token that fences late writes.

The lock belongs to a session of Postgres, so a dead process cannot keep it. Behind a pooler that lends sessions to one
transaction at a time it would be worth nothing: two processes could share the session, and the lock. There `lead` refuses;
a pooler in session mode has to be named as such (setting database.pooler). Whoever leads writes under a token that only grows,
and each of its transactions checks it: even when a lock was lost unnoticed, one process alone writes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from generator.storage.postgres import POOLER, POOLER_ADVICE, plain_errors
from schemas.errors import InputError, LockHeld

_TAKE = text("SELECT pg_try_advisory_lock(hashtext('pigeon'), hashtext(:n))")
# The two keys of an advisory lock are shown as unsigned numbers.
_LED = text("""
SELECT EXISTS (
  SELECT FROM pg_locks
  WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND classid::bigint = hashtext('pigeon')::bigint & 4294967295 AND objid::bigint = hashtext(:n)::bigint & 4294967295
)
""")
_RELEASE = text("SELECT pg_advisory_unlock(hashtext('pigeon'), hashtext(:n))")


@dataclass(frozen=True)
class Lease:
    """Leadership of `name`; `token` grows with every leader, so late writes of older ones are refused."""

    name: str
    token: int
    holder: str
    hold: Callable[[], None] = field(default=lambda: None, compare=False)
    """Takes the lock again when its session was lost, as in a restart of Postgres. Raises LockHeld or ServerUnavailable."""

    def check(self, connection: Connection) -> None:
        """Refuse to go on when another process has taken over; valid until the transaction ends.

        Raises:
            LockHeld: a newer leader exists.
        """
        now = connection.execute(text("SELECT token, holder FROM leases WHERE name = :n FOR SHARE"), {"n": self.name})
        token, holder = now.one()
        if token != self.token:
            raise LockHeld(f"the {self.name} lease went to {holder} (token {token}, ours was {self.token})")


class _Lock:
    """The advisory lock in a session of its own, open for the whole time."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._guard = threading.Lock()
        self.connection = self._open()

    def take(self) -> bool:
        return bool(self.connection.execute(_TAKE, {"n": self._name}).scalar_one())

    def hold(self) -> None:
        """Take it again in a new session when the old one is gone.

        Another process that was quicker has a new token, which the next `Lease.check` finds; a session that the server has not
        yet missed still has the lock. In both cases there is nothing to take.
        """
        with self._guard, plain_errors(self._engine):
            if not self._is_open():
                self.close()
                self.connection = self._open()
                self.take()

    def release(self) -> None:
        if not self.connection.closed:
            with contextlib.suppress(DBAPIError):
                self.connection.execute(_RELEASE, {"n": self._name})

    def close(self) -> None:
        """End the session, and with it the lock."""
        if not self.connection.closed:
            with contextlib.suppress(DBAPIError):
                self.connection.invalidate()
            self.connection.close()

    def _is_open(self) -> bool:
        if self.connection.closed:
            return False
        try:
            self.connection.execute(text("SELECT 1"))
        except DBAPIError:
            return False
        return True

    def _open(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            _refuse_shared_session(self._engine, connection)
        except BaseException:
            connection.close()
            raise
        return connection


@contextlib.contextmanager
def lead(engine: Engine, name: str) -> Iterator[Lease]:
    """Lead `name` until the block ends, under a new token.

    Raises:
        LockHeld: another process leads; the message names it.
        ServerUnavailable: Postgres is away.
        InputError: a pooler is in between that does not keep sessions apart.
    """
    holder = f"{socket.gethostname()}:{os.getpid()}"
    with plain_errors(engine):
        lock = _Lock(engine, name)
        try:
            if not lock.take():
                row = lock.connection.execute(
                    text("SELECT holder FROM leases WHERE name = :n"), {"n": name}
                ).one_or_none()
                raise LockHeld(f"the {name} is led by {row.holder if row else 'another process'}; nothing was done")
            token = lock.connection.execute(
                text(
                    "INSERT INTO leases (name, holder, token) VALUES (:n, :h, 1) ON CONFLICT (name) DO UPDATE "
                    "SET holder = :h, token = leases.token + 1, acquired_at = now() RETURNING token"
                ),
                {"n": name, "h": holder},
            ).scalar_one()
            try:
                yield Lease(name, token, holder, lock.hold)
            finally:
                lock.release()
        finally:
            lock.close()


def is_led(connection: Connection, name: str) -> bool:
    """Whether a process holds the lock of `name` at this moment."""
    return bool(connection.execute(_LED, {"n": name}).scalar_one())


def _refuse_shared_session(engine: Engine, connection: Connection) -> None:
    """Refuse a pooler, unless it was declared to be in session mode and does not show otherwise.

    Postgres tells a client its backend's number at login; a pooler makes one up. In session mode no other connection has our
    backend while we are connected.
    """
    told = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr] # psycopg2's
    backend = _backend(connection)
    if told == backend:
        return
    where = engine.url.render_as_string(hide_password=True)
    if engine.get_execution_options().get(POOLER) != "session":
        raise InputError(f"Postgres {where}: {POOLER_ADVICE}")
    with engine.connect() as other:
        if _backend(other) == backend:
            raise InputError(f"Postgres {where}: the pooler is not in session mode, though database.pooler says so")


def _backend(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
