"""Whether the web can do its work: `schemas.runtime.health.Checks`."""

from __future__ import annotations

import threading
import time

from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.storage.postgres import plain_errors
from generator.web.context import WebContext
from schemas.errors import PigeonError

KEPT_SECONDS = 5.0


class WebHealth:
    """Alive while it answers at all; ready while posters can be handed out.

    Postgres and Kafka are named and do not make it unready: posters are handed out without them, and a server that is taken out of
    service for them would take the posters along.
    """

    def __init__(self, context: WebContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._problems: dict[str, str] = {}

    def alive(self) -> tuple[bool, str]:
        """Whether a restart would help: never, while this is answered."""
        return True, "ok"

    def ready(self) -> tuple[bool, str]:
        """Whether a manifest was read, and what else is in the way."""
        problems = self.problems()
        words = "; ".join(f"{name}: {words}" for name, words in problems.items())
        return "manifest" not in problems, words or "ok"

    def problems(self) -> dict[str, str]:
        """What is away, by name; looked up at most every few seconds."""
        with self._lock:
            if time.monotonic() - self._asked_at > KEPT_SECONDS:
                self._problems = self._ask()
                self._asked_at = time.monotonic()
            return self._problems

    def _ask(self) -> dict[str, str]:
        found = {}
        try:
            self._context.reader.require()
        except PigeonError as error:
            found["manifest"] = str(error)
        try:
            with plain_errors(self._context.engine), Session(self._context.engine) as session:
                session.execute(text("SELECT 1"))
        except PigeonError as error:
            found["postgres"] = str(error)
        if problem := self._context.outside.kafka_problem(self._context.settings.kafka):
            found["kafka"] = problem
        return found
