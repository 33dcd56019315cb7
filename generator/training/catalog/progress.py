"""Progress of long commands: bars on a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar per step on a terminal's standard error, a line per tenth elsewhere."""
    import sys

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not sys.stderr.isatty():
        yield _lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        known: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bar.add_task(what, total=total)
            bar.update(known[what], completed=done)

        yield show


def _lines() -> Callable[[str, int, int], None]:
    said: dict[str, int] = {}

    def say(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if said.get(what) != tenth:
            said[what] = tenth
            typer.echo(f"{what}: {done} of {total}", err=True)

    return say
