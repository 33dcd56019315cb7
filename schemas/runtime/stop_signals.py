"""Stop signals while a part runs: one context manager for every part."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_signals(
    stop: Callable[[int], None], *, numbers: Sequence[signal.Signals] = STOP, once: bool = False
) -> Iterator[list[int]]:
    """Call `stop` with the number of each stop signal that comes while the block runs.

    Yields the numbers that came, in order: a part that was stopped exits with 128 + the first one (130 for SIGINT, 143 for
    SIGTERM). Signals reach the main thread only: in another thread the block runs and nothing is handled.

    Args:
        stop: asks the part to end; what it raises is raised in the main thread, wherever that is.
        numbers: the signals handled.
        once: whether a second signal acts as it did before the block.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if once:
            restore()
        stop(number)

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
