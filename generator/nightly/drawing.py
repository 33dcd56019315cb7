"""What draws a run's tasks: threads of this process (`Generator`), or Ray's workers (`RayDrawing`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from generator.nightly.tally import Tally


class Drawing(Protocol):
    """The drawing of one run."""

    @property
    def tally(self) -> Tally:
        """What is done so far."""

    def run(self, tick: Callable[[Tally], None]) -> Tally:
        """Draw all pending tasks; returns early, without an error, after `stop`.

        `tick` is called now and then.

        Raises:
            ServerUnavailable: a server is away for too long; finished tasks are kept.
            LockHeld: another process has taken the night over.
        """

    def stop(self) -> None:
        """Take no further tasks; may be called by signal handlers."""
