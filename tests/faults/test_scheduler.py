"""Fault 9 on real Postgres: two schedulers, a missed moment, a leader that is replaced.

Commands are recorded, not run.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.nightly.schedule import LEASE, Scheduler, claim
from generator.storage.lease import lead
from generator.storage.postgres import connect
from schemas.errors import LockHeld
from schemas.settings import Settings
from schemas.tables import NightRun

pytestmark = [pytest.mark.integration, pytest.mark.faults]


class Recorder:
    """Test double of the command runner."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.ran = threading.Event()

    def __call__(self, arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        self.commands.append(arguments)
        self.ran.set()
        return 0


def scheduled(settings: Settings, **changes: Any) -> Settings:
    """The night was due some minutes ago, today in UTC; the other jobs are far away."""
    moment = datetime.now(UTC) - timedelta(minutes=3)
    values = {
        "night_cron": f"{moment.minute} {moment.hour} * * *",
        "retrain_cron": "0 0 29 2 *",
        "upkeep_cron": "0 0 29 2 *",
        "misfire_grace_seconds": 3600,
        **changes,
    }
    return settings.model_copy(update={"schedule": settings.schedule.model_copy(update=values)})


def start(scheduler: Scheduler) -> threading.Thread:
    thread = threading.Thread(target=scheduler.run_forever)
    thread.start()
    return thread


def wait_for(lines: list[str], words: str) -> None:
    tick = threading.Event()
    for _ in range(600):
        if any(words in line for line in lines):
            return
        tick.wait(0.1)
    raise AssertionError(f"{words!r} was never echoed: {lines}")


def test_two_schedulers_and_a_missed_night_run_it_once(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.schedule.STANDBY_SECONDS", 0.2)
    due = scheduled(settings)
    ran = Recorder()
    echoed: list[list[str]] = [[], []]
    schedulers = [Scheduler(due, lines.append, ran) for lines in echoed]
    threads = [start(schedulers[0])]
    wait_for(echoed[0], "ended with exit code 0")
    threads.append(start(schedulers[1]))
    wait_for(echoed[1], "standing by")
    schedulers[0]._stopping.set()
    threads[0].join()
    wait_for(echoed[1], "leading with token 2")
    schedulers[1]._stopping.set()
    threads[1].join()
    expected = (datetime.now(UTC) - timedelta(minutes=3)).date().isoformat()
    assert ran.commands == [["night", "run", "--date", expected]]


def test_a_night_that_was_never_published_is_gone_on_with(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.schedule.STANDBY_SECONDS", 0.2)
    due = scheduled(settings)
    engine = connect(settings.database)
    today = (datetime.now(UTC) - timedelta(minutes=3)).date()
    with lead(engine, LEASE) as lease:  # a leader claimed the night and died
        moment = datetime.now(UTC) - timedelta(minutes=3)
        assert claim(engine, lease, "night", moment)
        assert not claim(engine, lease, "night", moment)
        assert not claim(engine, lease, "night", moment - timedelta(days=1))
    with Session(engine) as session, session.begin():
        session.add(NightRun(run_id="n", logical_date=today, status="running", model_version="m", fencing_token=1))
    ran, echoed = Recorder(), list[str]()
    scheduler = Scheduler(due, echoed.append, ran)
    thread = start(scheduler)
    wait_for(echoed, "ended with exit code 0")
    scheduler._stopping.set()
    thread.join()
    assert ran.commands == [["night", "run", "--date", today.isoformat()]]
    engine.dispose()


def test_a_night_past_its_grace_is_not_run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.schedule.STANDBY_SECONDS", 0.2)
    ran, echoed = Recorder(), list[str]()
    scheduler = Scheduler(scheduled(settings, misfire_grace_seconds=60), echoed.append, ran)
    thread = start(scheduler)
    wait_for(echoed, "leading")
    scheduler._stopping.set()
    thread.join()
    assert ran.commands == []


def test_a_replaced_leader_claims_nothing_and_stands_by(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.schedule.STANDBY_SECONDS", 0.2)
    engine = connect(settings.database)
    with lead(engine, LEASE) as lease:
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE leases SET token = token + 1, holder = 'other' WHERE name = :n"), {"n": LEASE}
            )
        with pytest.raises(LockHeld, match="other"):
            claim(engine, lease, "night", datetime(2026, 3, 1, 2, tzinfo=UTC))
    echoed: list[str] = []
    scheduler = Scheduler(scheduled(settings, misfire_grace_seconds=1), echoed.append, Recorder())
    thread = start(scheduler)
    wait_for(echoed, "leading")
    with engine.begin() as connection:
        connection.execute(text("UPDATE leases SET token = token + 1, holder = 'thief' WHERE name = :n"), {"n": LEASE})
    wait_for(echoed, "went to thief")
    scheduler._stopping.set()
    thread.join()
    engine.dispose()


def test_once_runs_a_job_now_and_gives_its_exit_code(settings: Settings) -> None:
    codes = iter([0, 5, 0])
    seen: list[list[str]] = []

    def runner(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        seen.append(arguments)
        return next(codes)

    assert Scheduler(settings, lambda line: None, runner).run_now("upkeep") == 5
    assert seen == [["db", "upkeep"], ["night", "upkeep"], ["retrain", "forget"]]
