"""A progress bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback (stage, done, total)."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("        {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, int] = {}

        def step(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = int(progress.add_task(stage, total=total))
            progress.update(progress.task_ids[tasks[stage]], completed=done, total=total)

        yield step


def _lines() -> Callable[[str, int, int], None]:
    """Writes a stage's end, and before it how far it is, with that much time between lines."""
    finished: set[str] = set()
    written = time.monotonic()

    def line(stage: str, done: int, total: int) -> None:
        nonlocal written
        if stage in finished or (done < total and time.monotonic() - written < LINE_EVERY_SECONDS):
            return
        written = time.monotonic()
        if done >= total:
            finished.add(stage)
        sys.stderr.write(f"        {stage}: {done} of {total}\n")
        sys.stderr.flush()

    return line
