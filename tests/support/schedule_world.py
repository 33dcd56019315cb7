"""Schedulers whose commands are recorded and not run.

In a thread on the test's own clock, or in a process of their own:

python -m tests.support.schedule_world FILE MINUTES hold|end   # the night was due that many minutes ago

A process appends a line to FILE for each night that it runs; it runs it for ever, or publishes it at once.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly import schedule
from generator.nightly.ledger import run_id_of
from generator.nightly.schedule import Scheduler
from generator.storage.postgres import connect
from schemas.settings import Settings, load_settings
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
    never = dict.fromkeys(("clicks_cron", "retrain_cron", "canary_cron", "upkeep_cron", "erasure_cron"), NEVER)
    values = {"night_cron": "0 2 * * *", **never, **changes}
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


def main() -> None:
    """Lead or stand by until killed; see the module's docstring."""
    file, minutes, how = sys.argv[1:]
    settings = load_settings()

    def command(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(f"{os.getpid()} {arguments[-1]}\n")
        if how == "hold":
            threading.Event().wait()
        publish(settings, date.fromisoformat(arguments[-1]))
        return 0

    schedule.STANDBY_SECONDS = 0.1
    due = datetime.now(UTC) - timedelta(minutes=int(minutes))
    own = scheduled(settings, night_cron=f"{due.minute} {due.hour} * * *")
    Scheduler(own, lambda line: print(line, flush=True), command).run_forever()  # noqa: T201 - what it tells


if __name__ == "__main__":
    main()
