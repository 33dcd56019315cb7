"""Sessions in which the console's pages read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.storage.postgres import plain_errors


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A session whose rows outlive it.

    Raises:
        ServerUnavailable, InputError: as `plain_errors`.
    """
    with plain_errors(engine), Session(engine, expire_on_commit=False) as session:
        yield session
