"""Processor time of servers: all processes under one, which the clock's time on shared cores would not tell."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from deploy.local.process import parent_of, processes

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {child: parent_of(child) for child in processes()}
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def seconds(pids: set[int]) -> float:
    """User and system seconds that these processes have taken; those that are gone count nothing."""
    return sum(_seconds(pid) for pid in pids)


def _seconds(pid: int) -> float:
    return sum(_fields(pid)) / _TICKS


def _fields(pid: int) -> Iterator[int]:
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return
    yield from (int(word) for word in words[11:13])
