"""The sessions of a run: what each process that worked on it has done, whatever became of the process.

A session is stored when it begins, now and then while it draws, and when it ends, in `night_runs.figures`; so a run that was
killed and resumed adds up to all that was done for it, but for the last moments of a process that was killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from generator.nightly import runs
from generator.nightly.ledger import Ledger
from generator.nightly.tally import Tally
from schemas.errors import PartialFailure, PigeonError
from schemas.tables import NightRun

SAVE_EVERY_SECONDS = 30.0
FINISHED = "finished"
LONGEST_END = 200
"""Characters of an error that are kept."""
RUNNING = "running"
"""How a session ended that has not, or whose process was killed."""


@dataclass(frozen=True)
class Session:
    """What one process did for a run."""

    kind: str
    """"first", "resumed" or "retried"."""
    started_at: str
    """ISO 8601."""
    ended: str
    seconds: float
    """Time that it drew."""
    tally: Tally

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> Session:
        """A session as stored in `night_runs.figures`."""
        return cls(
            stored.get("kind", ""),
            stored["started_at"],
            stored.get("ended", ""),
            stored["seconds"],
            Tally.parse(stored),
        )


def sessions_of(figures: Mapping[str, Any]) -> list[Session]:
    """The sessions of a run, from its figures; the first is the oldest."""
    return [Session.parse(one) for one in figures.get("sessions", [])]


def total_of(sessions: Iterable[Session]) -> tuple[Tally, float]:
    """The sum of sessions' figures and of their seconds."""
    total, seconds = Tally(), 0.0
    for session in sessions:
        total.add(session.tally)
        seconds += session.seconds
    return total, seconds


class SessionLog:
    """Stores this process' session; a context manager, which stores with what error it ended."""

    def __init__(self, ledger: Ledger, run: NightRun, stage_seconds: Mapping[str, float]) -> None:
        self._ledger = ledger
        self._run_id = run.run_id
        self._kind = _kind(run)
        self._own_stages = dict(stage_seconds)
        self._started_at = datetime.now(UTC).isoformat()
        self._seconds = 0.0
        self._saved = time.monotonic()
        self._ended = RUNNING
        self._tally: Callable[[], Tally] = Tally

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            if self._ended == RUNNING:
                self.end(FINISHED)
        elif self._ended == RUNNING or not isinstance(error, PartialFailure):
            self.end(" ".join(str(error).split())[:LONGEST_END] or type(error).__name__)

    @contextmanager
    def drawing(self, tally: Callable[[], Tally]) -> Iterator[None]:
        """The session while it draws; `tally` is asked for its figures."""
        self._tally = tally
        self.save()
        start = self._start = time.monotonic()
        try:
            yield
        finally:  # stored when the session ends
            self._seconds = time.monotonic() - start

    def look(self) -> None:
        """Store what is done so far when that is due."""
        if time.monotonic() - self._saved >= SAVE_EVERY_SECONDS:
            self._seconds = time.monotonic() - self._start
            self.save()

    def stage(self, name: str, seconds: float) -> None:
        """Add a step that is none of the drawing's."""
        self._own_stages[name] = self._own_stages.get(name, 0.0) + seconds

    def end(self, how: str) -> None:
        """Store how the session ended."""
        self._ended = how
        self.save()

    def save(self) -> None:
        """Store the figures; those of a moment ago are replaced."""
        self._saved = time.monotonic()
        tally = Tally()
        tally.add(self._tally())
        tally.add(Tally(stage_seconds=self._own_stages))
        figures = {
            "kind": self._kind,
            "started_at": self._started_at,
            "saved_at": datetime.now(UTC).isoformat(),  # whether a night still gets on is told by it
            "ended": self._ended,
            **tally.figures(self._seconds),
        }
        with suppress(PigeonError):  # only figures: what ended the drawing is told, not what they met
            runs.save_session(self._ledger, self._run_id, figures)


def _kind(run: NightRun) -> str:
    if not run.figures.get("sessions"):
        return "first"
    return "retried" if run.status == "published" else "resumed"
