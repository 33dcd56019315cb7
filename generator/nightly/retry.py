"""Retries of model calls: a task's own failures cost it attempts, an outage costs time only."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from generator.serving.api import InferenceCorrupt, InferenceError, InferenceUnavailable, ServedPigeon
from schemas.errors import ServerUnavailable

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0


class Stopped(Exception):
    """The night was asked to stop while a call was waiting; the task stays pending."""


class ModelRetry:
    """Calls the model with retries; safe to use from several threads."""

    def __init__(
        self, model: ServedPigeon, *, max_attempts: int, outage_seconds: float, stopping: threading.Event
    ) -> None:
        self._model = model
        self._max_attempts = max_attempts
        self._outage_seconds = outage_seconds
        self._stopping = stopping
        self.retries = 0

    def call(self, work: Callable[[], T], *, attempted: Callable[[], None] = lambda: None) -> T:
        """The result of `work`; `attempted` is called for each attempt that counts.

        Unavailable and corrupt answers are retried with growing waits. When the server has not all models loaded, as after a
        restart, or does not answer a small question either, the failure is not this call's: no attempt is counted, until the
        outage has lasted too long.

        Raises:
            InferenceError: rejected, or still failing after the last attempt.
            ServerUnavailable: the server has been away for longer than the night waits.
            Stopped: the night is being stopped.
        """
        attempts = 0
        wait = FIRST_WAIT_SECONDS
        away_since: float | None = None
        while True:
            try:
                result = work()
            except (InferenceUnavailable, InferenceCorrupt) as error:
                self.retries += 1
                if self._answers():
                    away_since = None
                    attempts += 1
                    attempted()
                    if attempts >= self._max_attempts:
                        raise
                else:
                    now = time.monotonic()
                    away_since = away_since if away_since is not None else now
                    if now - away_since >= self._outage_seconds:
                        raise ServerUnavailable(
                            f"the model server has not answered for {self._outage_seconds:.0f} s: {error} "
                            "(settings triton.url, night.outage_seconds); `pigeon night resume` continues"
                        ) from error
                if self._stopping.wait(wait * random.uniform(0.5, 1)):
                    raise Stopped from error
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            except InferenceError:
                attempted()
                raise
            else:
                attempted()
                return result

    def _answers(self) -> bool:
        try:
            if not self._model.ready():
                return False
            self._model.text_embeddings(["?"])
        except InferenceUnavailable:
            return False
        except InferenceError:
            return True
        return True
