"""Named points of the night at which a process may die; the fault tests put their handler here, nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Point = Literal[
    "planned",
    "drawn",
    "intended",
    "stored",
    "finished",
    "judged",
    "manifest stored",
    "pointer flipped",
    "published",
    "announced",
]
POINTS: tuple[Point, ...] = Point.__args__  # type: ignore[attr-defined]

handler: Callable[[Point], None] | None = None


def reach(point: Point) -> None:
    """Say that the process is at `point`."""
    if handler is not None:
        handler(point)
