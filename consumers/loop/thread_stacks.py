"""The stacks of all threads in the log when the loop or its writer stands still.

They show what it hangs in, before anybody restarts it.
"""

from __future__ import annotations

import faulthandler
import time
from typing import IO

REARM_SECONDS = 1.0


class Stacks:
    """Timer that the loop resets each time it comes round.

    It is faulthandler's own thread, which needs no interpreter lock: it works while the loop hangs in C.
    """

    def __init__(self, file: IO[str], loop_seconds: float) -> None:
        """file: has a descriptor, and stays open as long as this."""
        self._file = file
        self._seconds = loop_seconds
        self._armed_at = float("-inf")

    def feed(self) -> None:
        """Reset the timer: the stacks are dumped unless this is called again within `loop_seconds`."""
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
