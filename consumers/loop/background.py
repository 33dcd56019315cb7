"""One task at a time in a thread beside the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

# Work for the background, and what to do with its result in the loop's own thread.
Job = tuple[Callable[[], Any], Callable[[Any], None]]


class Background:
    """Runs jobs in daemon threads: one that hangs in a dead server does not keep the process from ending."""

    def __init__(self, name: str = "pigeon-writer") -> None:
        """`name`: of its threads."""
        self._name = name
        self._future: Future[Any] | None = None
        self._finish: Callable[[Any], None] = lambda result: None

    @property
    def busy(self) -> bool:
        """Whether a job is under way or its result is still to be collected."""
        return self._future is not None

    def submit(self, job: Job) -> None:
        """Begin a job; the one before it must have been collected."""
        work, self._finish = job
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - `collect` raises it again, in the loop's thread
                future.set_exception(error)

        self._future = future
        threading.Thread(target=run, name=self._name, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait until the job is done, at most so long."""
        if self._future is not None:
            wait([self._future], timeout=seconds)

    def collect(self) -> Callable[[], None] | None:
        """None while nothing is done; else what is left to do with the result.

        Raises: what the job raised.
        """
        if self._future is None or not self._future.done():
            return None
        future, self._future = self._future, None
        result, finish = future.result(), self._finish
        return lambda: finish(result)
