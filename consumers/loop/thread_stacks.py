"""When the loop or its writer stands still, the log gets the stacks of all threads: what it hangs in, before anybody restarts it."""

from __future__ import annotations

import faulthandler
import time
from typing import IO

REARM_SECONDS = 1.0


class Stacks:
    """Fed by the loop. The timer is faulthandler's own thread, which needs no interpreter lock: it sees a loop that hangs in C."""

    def __init__(self, file: IO[str], loop_seconds: float) -> None:
        """file: has a descriptor, and stays open as long as this."""
        self._file = file
        self._seconds = loop_seconds
        self._armed_at = float("-inf")

    def feed(self) -> None:
        """The loop came round: the stacks are dumped if it does not again for `loop_seconds`."""
        now = time.monotonic()
        if now - self._armed_at >= min(REARM_SECONDS, self._seconds / 4):
            faulthandler.dump_traceback_later(self._seconds, file=self._file)
            self._armed_at = now

    def dump(self) -> None:
        """Dump them now."""
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)

    def close(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
