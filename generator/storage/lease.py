"""The lease of the one process that leads: an advisory lock, and a token that fences late writes."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from generator.storage.postgres import plain_errors
from schemas.errors import LockHeld


@dataclass(frozen=True)
class Lease:
    """Leadership of `name`; `token` grows with every leader, so late writes of older ones are refused."""

    name: str
    token: int
    holder: str

    def check(self, connection: Connection) -> None:
        """Refuse to go on when another process has taken over; valid until the transaction ends.

        Raises:
            LockHeld: a newer leader exists.
        """
        now = connection.execute(text("SELECT token, holder FROM leases WHERE name = :n FOR SHARE"), {"n": self.name})
        token, holder = now.one()
        if token != self.token:
            raise LockHeld(f"the {self.name} lease went to {holder} (token {token}, ours was {self.token})")


@contextlib.contextmanager
def lead(engine: Engine, name: str) -> Iterator[Lease]:
    """Lead `name` until the block ends, under a new token.

    The lock is Postgres's advisory one, which a dead process cannot keep.

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
