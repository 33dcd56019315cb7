"""Processor time of servers, which a clock does not tell where cores are shared."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from deploy.local.process import arguments_of, parent_of, processes

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {child: parent_of(child) for child in processes()}
    found = {pid}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found


def by_model(pids: Iterable[int]) -> Counter[str]:
    """User and system seconds that these processes have taken, by Triton model.

    Triton itself is "server". Processes that are gone count nothing.
    """
    found: Counter[str] = Counter()
    for pid in pids:
        # A stub's command line: program, REPOSITORY/MODEL/VERSION/model.py, ...
        words = arguments_of(pid)
        is_model = len(words) > 1 and words[1].endswith("/model.py")
        found[Path(words[1]).parent.parent.name if is_model else "server"] += _seconds(pid)
    return found


def _seconds(pid: int) -> float:
    return sum(_fields(pid)) / _TICKS


def _fields(pid: int) -> Iterator[int]:
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return
    yield from (int(word) for word in words[11:13])
