"""Named points at which the fault tests kill or stop a process.

In production no handler is set and `reach` does nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

ConsumePoint = Literal[
    "claimed",
    "dead_letters_sent",
    "staged",
    "before_commit",
    "after_commit",
    "after_kafka_commit",
]
"""Points of the consumers' write path."""
LetterPoint = Literal["letters indexed"]
"""Point of reading a dead-letter topic into its index: rows are written, the place to go on at is not yet."""
NightPoint = Literal[
    "planned",
    "answered",
    "chosen",
    "claimed picture",
    "drawn",
    "intended",
    "stored",
    "composed",
    "composition stored",
    "finished",
    "judged",
    "manifest stored",
    "pointer flipped",
    "published",
    "announced",
]
"""Points of a night, in order.

A picture is claimed, drawn, intended (its row names its file) and stored; a composition is composed (its row names its file)
and stored.
"""
UpkeepPoint = Literal[
    "fenced",
    "clean copies stored",
    "file deleted",
    "rows retired",
    "adapter deleted",
]
"""Points of erasure and retention.

An erased user's tasks are fenced; sets without the user are stored beside the old ones; a file is deleted and its rows are
not yet; a page of replaced rows is deleted.
"""
TrainPoint = Literal["step done", "state written", "state saved", "adapter trained", "adapter stored"]
"""Points of a training, and of what `pigeon retrain` does with its adapter.

A state is written beside the last one, then takes its place.
"""
RolloutPoint = Literal["before install", "installed", "probed", "before change", "changed"]
"""Points of a promotion or rollback, in order: the adapter is installed in Triton and probed, then the registry changes."""
Point = ConsumePoint | LetterPoint | NightPoint | UpkeepPoint | TrainPoint | RolloutPoint

handler: Callable[[Point], None] | None = None
"""Called with the point's name, in the thread that reached it; set by tests only."""


def reach(point: Point) -> None:
    """Call the handler, if a test set one."""
    if handler is not None:
        handler(point)
