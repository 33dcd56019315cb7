"""The night's progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from generator.nightly.tally import Tally

log = structlog.get_logger("pigeon.night")

LINE_EVERY_SECONDS = 10.0


class NightProgress:
    """Shows a tally against the number of tasks; a context manager."""

    def __init__(self, tasks: int, *, every_seconds: float = LINE_EVERY_SECONDS, as_json: bool = False) -> None:
        """as_json: whether the lines are log lines."""
        self._tasks = tasks
        self._every = every_seconds
        self._as_json = as_json
        self._start = self._printed_at = time.monotonic()
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not as_json:
            self._bar = Progress(
                TextColumn("[bold]Draw posters"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.2f}/s  {task.fields[failed]} failed{task.fields[away]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("draw", total=tasks, rate=0.0, failed=0, away="")

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, tally: Tally) -> None:
        """Bring the bar up to date, or print a line when it is due."""
        now = time.monotonic()
        rate = tally.finished / max(1e-9, now - self._start)
        if self._bar:
            self._bar.update(self._task, completed=tally.finished, rate=rate, failed=tally.failed, away=tally.away())
        elif now - self._printed_at >= self._every:
            self._printed_at = now
            self._tell(tally, rate)

    def _tell(self, tally: Tally, rate: float) -> None:
        if self._as_json:
            counts = {"finished": tally.finished, "refused": tally.refused, "failed": tally.failed}
            figures = {"tasks": self._tasks, **counts, "posters": tally.posters, "tasks_per_second": round(rate, 3)}
            log.info("drawing", **figures, servers_away=sum(bool(one.problem) for one in tally.servers.values()))
            return
        sys.stderr.write(
            f"night: {tally.finished} of {self._tasks} tasks, {tally.posters} posters, {rate:.2f}/s, "
            f"{tally.refused} refused, {tally.failed} failed{tally.away()}\n"
        )
        sys.stderr.flush()
