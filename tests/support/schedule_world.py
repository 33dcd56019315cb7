"""A scheduler in a thread, on the test's own clock, whose commands are recorded and not run."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.ledger import run_id_of
from generator.nightly.schedule import Scheduler
from generator.storage.postgres import connect
from schemas.settings import Settings
from schemas.tables import NightRun, ScheduleMoment

NEVER = "0 0 29 2 *"
DAY = datetime(2026, 3, 2, tzinfo=UTC)


class Clock:
    """A clock that stands still until it is set; safe to use from several threads."""

    def __init__(self, now: datetime) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        """Set it forward, or back."""
        self.now += timedelta(**by)


class Commands:
    """Test double of the command runner: nights end with the exit codes in turn, then with 0.

    A night that ends with 0 or 7 is published, unless `publish` is false.
    """

    def __init__(self, settings: Settings, codes: Sequence[int] = (), *, publish: bool = True) -> None:
        self._settings = settings
        self._codes = list(codes)
        self._publish = publish
        self._lock = threading.Lock()
        self.ran: list[list[str]] = []

    def __call__(self, arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        with self._lock:
            self.ran.append(arguments)
            code = self._codes.pop(0) if self._codes and arguments[:2] == ["night", "run"] else 0
            if code in {0, 7} and self._publish and arguments[:2] == ["night", "run"]:
                publish(self._settings, date.fromisoformat(arguments[-1]))
            return code

    @property
    def nights(self) -> list[str]:
        """Dates of the nights that were run."""
        return [arguments[-1] for arguments in self.ran if arguments[:2] == ["night", "run"]]


def publish(settings: Settings, day: date) -> None:
    """Leave the row that a published night leaves."""
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        session.merge(
            NightRun(run_id=run_id_of(day), logical_date=day, status="published", model_version="m", fencing_token=1)
        )
    engine.dispose()


def scheduled(settings: Settings, **changes: Any) -> Settings:
    """The night is due at 02:00 UTC, nothing else ever; tries are a minute apart."""
    values = {"night_cron": "0 2 * * *", "retrain_cron": NEVER, "canary_cron": NEVER, "upkeep_cron": NEVER, **changes}
    return settings.model_copy(update={"schedule": settings.schedule.model_copy(update=values)})


@contextmanager
def running(settings: Settings, commands: Callable[..., int], clock: Clock) -> Iterator[tuple[Scheduler, list[str]]]:
    """A scheduler that runs in a thread until the block ends, and what it echoes."""
    echoed: list[str] = []
    scheduler = Scheduler(settings, echoed.append, commands, clock)
    thread = threading.Thread(target=scheduler.run_forever)
    thread.start()
    try:
        yield scheduler, echoed
    finally:
        scheduler._stopping.set()
        thread.join()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(condition: Callable[[], object], told: Sequence[object] = ()) -> None:
    """Wait until it holds, for a minute at most."""
    tick = threading.Event()
    for _ in range(1200):
        if condition():
            return
        tick.wait(0.05)
    raise AssertionError(f"it never came to be: {list(told)}")


def told(lines: list[str], words: str, times: int = 1) -> None:
    """Wait until so many lines with these words were echoed."""
    until(lambda: sum(words in line for line in lines) >= times, lines)


def settled(scheduler: Scheduler, clock: Clock) -> None:
    """Wait until the scheduler has done all that it does at this time."""
    until(lambda: scheduler._seen_until == clock.now.astimezone(UTC))
    for _ in range(2):  # the pass under way, and the one that records what it started
        beat = scheduler._health._beat
        until(lambda beat=beat: scheduler._health._beat != beat and not scheduler._tries)  # type: ignore[misc]


def moments(settings: Settings, job: str = "night") -> dict[str, tuple[str, int]]:
    """Status and attempts of a job's moments."""
    engine = connect(settings.database)
    with Session(engine) as session:
        rows = session.scalars(select(ScheduleMoment).where(ScheduleMoment.job == job)).all()
        found = {row.moment: (row.status, row.attempts) for row in rows}
    engine.dispose()
    return found
