"""How far a run has come, on stderr: a bar on a terminal, one line per N seconds elsewhere."""

from __future__ import annotations

import time

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumers.loop.summary import Summary

log = structlog.get_logger("pigeon.consume")


class Reporter:
    """Called by the loop about once a poll."""

    def __init__(self, every_seconds: float) -> None:
        self._every = every_seconds
        self._last = time.monotonic()
        self._last_records = 0
        self._last_offsets: dict[tuple[str, int], int] = {}
        console = Console(stderr=True)
        self._bar = (
            Progress(
                TextColumn("consume"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        if self._bar:
            self._bar.start()
            self._row = self._bar.add_task("consume", total=None, note="joining the group")

    def __call__(self, summary: Summary, lag: int) -> None:
        """Show `summary` and the known lag in records."""
        now = time.monotonic()
        if self._bar:
            note = f"{summary.poison} poison, {summary.written.duplicates} duplicates"
            self._bar.update(self._row, completed=summary.records, total=summary.records + lag, note=note)
            return
        if now - self._last < self._every:
            return
        rate = (summary.records - self._last_records) / (now - self._last)
        moved = {
            f"{topic}/{partition}": offset
            for (topic, partition), offset in sorted(summary.next_offsets.items())
            if self._last_offsets.get((topic, partition)) != offset
        }
        log.info(
            "consuming",
            records=summary.records,
            per_second=round(rate),
            lag=lag,
            poison=summary.poison,
            next_offsets=moved,
        )
        self._last, self._last_records, self._last_offsets = now, summary.records, dict(summary.next_offsets)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar:
            self._bar.stop()


class Counting:
    """Count of an import's rows: a bar on a terminal, nothing elsewhere, where the last line has the sum."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._bar = (
            Progress(
                TextColumn(name),
                TextColumn("{task.completed:.0f} rows"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Counting:
        if self._bar:
            self._bar.start()
            self._row = self._bar.add_task("rows", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, count: int) -> None:
        """Show that `count` rows are done."""
        if self._bar:
            self._bar.update(self._row, completed=count)
