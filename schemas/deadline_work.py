"""Work that is waited for until a moment and no longer, whatever it does meanwhile."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class DeadlinePassed(TimeoutError):
    """The time for this work is over."""


def await_until(end: float, work: Callable[[], T], name: str) -> T:
    """Do work in a daemon thread of its own, and wait for it until `end` (time.monotonic).

    Work that is not done by then goes on alone, and what comes of it is dropped: what cannot be interrupted (a lookup, a disk
    that hangs, a library without timeouts) delays nobody.

    Raises:
        DeadlinePassed: it is not done, or no thread could be started for it.
        Exception: what the work raised.
    """
    outcome: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except Exception as error:  # noqa: BLE001 - raised in the thread that waits
            outcome.put((None, error))

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
        result, error = outcome.get(timeout=max(0.0, end - time.monotonic()))
    except queue.Empty:
        raise DeadlinePassed("the deadline has passed") from None
    except RuntimeError as problem:
        raise DeadlinePassed(f"no thread for it: {problem}") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # None only where T is
