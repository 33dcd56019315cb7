"""What is looked after while a run is drawn: whether it was cancelled, and that its lease is held."""

from __future__ import annotations

import time
from collections.abc import Callable

from generator.nightly import runs
from generator.nightly.ledger import Ledger
from schemas.errors import ServerUnavailable

LOOK_EVERY_SECONDS = 3.0


class CancelWatch:
    """Asks the ledger now and then, stops the drawing of a cancelled run, and keeps the lease's lock."""

    def __init__(self, ledger: Ledger, run_id: str, stop: Callable[[], None]) -> None:
        self._ledger = ledger
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
            self._ledger.hold_lease()
            self.cancelled = runs.is_cancelled(self._ledger.engine, self._run_id)
        except ServerUnavailable:
            return
        if self.cancelled:
            self._stop()
