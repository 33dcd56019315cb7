"""Named points of the write path, at which tests kill or hold the process. Nobody listens in production."""

from __future__ import annotations

from collections.abc import Callable


def _nobody(point: str) -> None:
    """Listen to nothing."""


# Called with the point's name, in the thread that reached it:
# claimed, dead_letters_sent, staged, before_commit, after_commit, after_kafka_commit
listener: Callable[[str], None] = _nobody


def reached(point: str) -> None:
    """Tell the listener, if a test set one."""
    listener(point)
