"""Notice that an operator cancelled the run that is being drawn."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Engine

from generator.nightly import runs
from schemas.errors import ServerUnavailable

LOOK_EVERY_SECONDS = 3.0


class CancelWatch:
    """Asks the ledger now and then, and stops the drawing once."""

    def __init__(self, engine: Engine, run_id: str, stop: Callable[[], None]) -> None:
        self._engine = engine
        self._run_id = run_id
        self._stop = stop
        self._looked_at = time.monotonic()
        self.cancelled = False

    def look(self) -> None:
        """Look when it is time to; while Postgres is away nobody can cancel."""
        now = time.monotonic()
        if self.cancelled or now - self._looked_at < LOOK_EVERY_SECONDS:
            return
        self._looked_at = now
        try:
            self.cancelled = runs.is_cancelled(self._engine, self._run_id)
        except ServerUnavailable:
            return
        if self.cancelled:
            self._stop()
