"""Fault 9 on real Postgres: two schedulers, missed moments, failing jobs, clocks that jump.

Commands are recorded, not run, and the clock is the test's own.
"""

from __future__ import annotations

import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text
from sqlalchemy.orm import Session

from generator.nightly.moments import Moment, Moments
from generator.nightly.schedule import LEASE, Scheduler
from generator.nightly.schedule_watch import FAILURES, GAVE_UP
from generator.nightly.status import status_of, words
from generator.storage.lease import lead
from generator.storage.postgres import connect
from schemas.errors import InputError, LockHeld, ServerUnavailable
from schemas.settings import Settings
from schemas.tables import ScheduleMoment
from tests.support.schedule_world import (
    DAY,
    Clock,
    Commands,
    free_port,
    moments,
    publish,
    running,
    scheduled,
    settled,
    told,
    until,
)
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.faults]

TWO = DAY + timedelta(hours=2)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.schedule.STANDBY_SECONDS", 0.05)


def test_of_two_schedulers_one_runs_each_moment_and_the_other_takes_over(settings: Settings) -> None:
    """Fault 9: two schedulers race for one moment; the leader goes."""
    due = scheduled(settings)
    clock, commands = Clock(TWO - timedelta(minutes=1)), Commands(settings)
    with running(due, commands, clock) as (first, one), running(due, commands, clock) as (second, other):
        until(lambda: any("leading" in line for line in one + other), one + other)
        for day in range(3):
            clock.now = TWO + timedelta(days=day)
            until(lambda day=day: len(commands.nights) == day + 1, one + other)  # type: ignore[misc]
        leader, lines = (first, other) if any("leading" in line for line in one) else (second, one)
        told(one if lines is other else other, "ended with exit code 0", 3)
        leader._stopping.set()
        told(lines, "leading with token 2")
        clock.now = TWO + timedelta(days=3)
        told(lines, "ended with exit code 0")
    assert commands.nights == ["2026-03-02", "2026-03-03", "2026-03-04", "2026-03-05"]
    assert moments(settings) == {f"{day}T02:00": ("done", 1) for day in commands.nights}


def test_a_missed_night_is_made_up_for_within_the_grace_only(settings: Settings) -> None:
    """Fault 9: no scheduler over the hour."""
    due = scheduled(settings, misfire_grace_seconds=3600)
    commands = Commands(settings)
    with running(due, commands, Clock(TWO + timedelta(minutes=61))) as (_, echoed):
        told(echoed, "leading")
    assert commands.nights == []
    with running(due, commands, Clock(TWO + timedelta(minutes=59))) as (_, echoed):
        told(echoed, "starts, 3540 s late")
        told(echoed, "ended with exit code 0")
    assert commands.nights == ["2026-03-02"]


@pytest.mark.parametrize("code", [3, 6, 1, 4, 2, 5, -9, 137])
def test_a_night_that_fails_is_tried_again(settings: Settings, code: int) -> None:
    """Fault 9: outage, held lease, crash, model, setting, out of memory."""
    clock, commands = Clock(TWO), Commands(settings, [code, code])
    failures = FAILURES.labels("night", str(code))._value.get()
    with running(scheduled(settings), commands, clock) as (_, echoed):
        told(echoed, f"exit code {code} at try 1")
        assert ("a setting is wrong" in echoed[-1]) == (code == InputError.exit_code)
        assert "next try at 02:01:00 UTC, given up at 10:00 UTC" in echoed[-1]
        assert moments(settings) == {"2026-03-02T02:00": ("waiting", 1)}
        clock.forward(seconds=60)
        told(echoed, f"exit code {code} at try 2")
        wait = 60 if code == LockHeld.exit_code else 120
        assert f"next try at {clock.now + timedelta(seconds=wait):%H:%M:%S}" in echoed[-1]
        clock.forward(seconds=wait)
        told(echoed, "ended with exit code 0")
    assert moments(settings) == {"2026-03-02T02:00": ("done", 3)}
    assert FAILURES.labels("night", str(code))._value.get() == failures + 2


@pytest.mark.parametrize("code", [7, 8])
def test_partial_and_refused_are_done(settings: Settings, code: int) -> None:
    """Fault 9: a published night with failed tasks, and a policy's refusal, are not tried again."""
    clock, commands = Clock(TWO), Commands(settings, [code])
    with running(scheduled(settings), commands, clock) as (scheduler, echoed):
        told(echoed, f"ended with exit code {code}")
        clock.forward(hours=1)
        settled(scheduler, clock)
    assert commands.nights == ["2026-03-02"]


def test_a_command_that_ends_well_without_a_published_night_is_a_failure(settings: Settings) -> None:
    """Fault 9: done means published."""
    commands = Commands(settings, publish=False)
    with running(scheduled(settings), commands, Clock(TWO)) as (_, echoed):
        told(echoed, "exit code 0, but the night is not published at try 1; next try")
    assert moments(settings) == {"2026-03-02T02:00": ("waiting", 1)}


def test_a_job_is_given_up_at_its_deadline_and_the_next_moment_runs(settings: Settings) -> None:
    """Fault 9: nothing is tried for ever."""
    clock, commands = Clock(TWO), Commands(settings, [3] * 4)
    gave_up = GAVE_UP.labels("night")._value.get()
    with running(scheduled(settings, deadline_minutes=5), commands, clock) as (_, echoed):
        told(echoed, "at try 1")
        clock.forward(seconds=60)
        told(echoed, "at try 2")
        clock.forward(seconds=120)
        told(echoed, "night of 2026-03-02 02:00 UTC is given up: exit code 3")
        assert GAVE_UP.labels("night")._value.get() == gave_up + 1
        clock.forward(hours=3)
        commands._codes.clear()
        clock.now = TWO + timedelta(days=1)
        told(echoed, "ended with exit code 0")
    assert moments(settings) == {"2026-03-02T02:00": ("gave_up", 3), "2026-03-03T02:00": ("done", 1)}


def test_a_night_whose_wait_outlasts_the_deadline_is_given_up(settings: Settings) -> None:
    """Fault 9: the scheduler was down while a try was due."""
    clock = Clock(TWO)
    with running(scheduled(settings), Commands(settings, [3]), clock) as (_, echoed):
        told(echoed, "at try 1")
    clock.forward(hours=8)
    commands = Commands(settings)
    with running(scheduled(settings), commands, clock) as (_, echoed):
        told(echoed, "is given up: exit code 3")
    assert (commands.nights, moments(settings)) == ([], {"2026-03-02T02:00": ("gave_up", 1)})


def test_postgres_away_at_the_due_moment_costs_time_only(settings: Settings) -> None:
    """Fault 9: the moment comes while Postgres is away, and goes past the grace."""
    url = make_url(settings.database.url.get_secret_value())
    assert url.host
    assert url.port
    clock, commands = Clock(TWO - timedelta(minutes=1)), Commands(settings)
    with TcpProxy(url.host, url.port) as proxy:
        near = url.set(port=proxy.port).render_as_string(hide_password=False)
        database = settings.database.model_copy(update={"url": SecretStr(near)})
        due = scheduled(settings.model_copy(update={"database": database}))
        with running(due, commands, clock) as (scheduler, echoed):
            told(echoed, "leading")
            proxy.cut()
            told(echoed, "no job starts until it is back")
            assert not scheduler._health.ready()[0]
            assert scheduler._health.alive()[0]
            clock.forward(minutes=2)
            until(lambda: scheduler._seen, echoed)
            clock.forward(hours=5)
            proxy.refused.clear()
            until(proxy.refused.is_set, echoed)
            assert commands.nights == []
            proxy.mend()
            told(echoed, "ended with exit code 0")
    assert commands.nights == ["2026-03-02"]


def test_what_a_dead_leader_was_running_is_tried_again(settings: Settings) -> None:
    """Fault 9: the leader is killed while its night runs; the night was started and never published."""
    engine = connect(settings.database)
    moment = Moment.due("night", TWO)
    with lead(engine, LEASE) as lease:
        assert Moments(engine).take(lease, moment) == 1
    commands = Commands(settings)
    with running(scheduled(settings), commands, Clock(TWO + timedelta(hours=5))) as (_, echoed):
        told(echoed, "starts, 18000 s late, try 2")
        told(echoed, "ended with exit code 0")
    assert commands.nights == ["2026-03-02"]
    with lead(engine, LEASE) as lease:
        assert Moments(engine).take(lease, moment) is None
    engine.dispose()


def test_a_stopped_scheduler_leaves_its_job_to_the_next(settings: Settings) -> None:
    """Fault 9: a deployment in the middle of the night."""
    clock = Clock(TWO)

    def stopped(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        scheduler._stopping.set()  # as SIGTERM does
        return 143

    with running(scheduled(settings), stopped, clock) as (scheduler, echoed):
        told(echoed, "was stopped; the next leader goes on with it")
    commands = Commands(settings)
    with running(scheduled(settings), commands, clock) as (_, echoed):
        told(echoed, "ended with exit code 0")
    assert moments(settings) == {"2026-03-02T02:00": ("done", 2)}


def test_a_clock_that_is_set_back_repeats_nothing_and_ends_a_wait(settings: Settings) -> None:
    """Fault 9: the clock jumps back by hours."""
    clock, commands = Clock(TWO), Commands(settings, [0, 3])
    with running(scheduled(settings), commands, clock) as (scheduler, echoed):
        told(echoed, "ended with exit code 0")
        for now in (TWO - timedelta(hours=3), TWO, TWO + timedelta(hours=1)):
            clock.now = now
            settled(scheduler, clock)
        clock.now = TWO + timedelta(days=1)
        told(echoed, "failed with exit code 3 at try 1")
        clock.forward(hours=-6)
        told(echoed, "ended with exit code 0", 2)
    assert commands.nights == ["2026-03-02", "2026-03-03", "2026-03-03"]


def test_a_clock_that_is_set_forward_makes_up_for_the_latest_moment(settings: Settings) -> None:
    """Fault 9: the clock jumps forward over several moments, then past the grace of one."""
    clock, commands = Clock(TWO - timedelta(minutes=1)), Commands(settings)
    with running(scheduled(settings), commands, clock) as (scheduler, echoed):
        told(echoed, "leading")
        clock.now = TWO + timedelta(days=3, hours=1)
        told(echoed, "ended with exit code 0")
        clock.now = TWO + timedelta(days=5, hours=5)
        settled(scheduler, clock)
        clock.now = TWO + timedelta(days=6)
        told(echoed, "ended with exit code 0", 2)
    assert commands.nights == ["2026-03-05", "2026-03-08"]


@pytest.mark.parametrize(
    ("day", "cron", "steps", "expected"),
    [
        # 02:30 is skipped on 29 March 2026: it runs at 03:30; on 25 October it comes twice and runs once.
        (datetime(2026, 3, 29, tzinfo=UTC), "30 2 * * *", (0.9, 1.6, 2.6), ["2026-03-29"]),
        (datetime(2026, 10, 25, tzinfo=UTC), "30 2 * * *", (0.4, 0.6, 1.4, 1.6, 2.6), ["2026-10-25"]),
    ],
)
def test_a_clock_change_runs_one_night(
    settings: Settings, day: datetime, cron: str, steps: tuple[float, ...], expected: list[str]
) -> None:
    """Fault 9: daylight saving time begins, and ends."""
    due = scheduled(settings, night_cron=cron, time_zone="Europe/Berlin")
    clock, commands = Clock(day), Commands(settings)
    with running(due, commands, clock) as (scheduler, echoed):
        told(echoed, "leading")
        for hours in steps:
            clock.now = day + timedelta(hours=hours)
            settled(scheduler, clock)
        told(echoed, "ended with exit code 0")
    assert commands.nights == expected


def test_the_repeated_hour_runs_once_also_when_another_leads_in_it(settings: Settings) -> None:
    """Fault 9: 02:30 of 25 October comes twice in Berlin; between the two the leader goes."""
    due = scheduled(settings, night_cron="30 2 * * *", time_zone="Europe/Berlin")
    first_half_past_two = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    clock, commands = Clock(first_half_past_two), Commands(settings)
    with running(due, commands, clock) as (_, echoed):
        told(echoed, "ended with exit code 0")
    clock.forward(hours=1)  # half past two again, in winter's time
    with running(due, commands, clock) as (scheduler, echoed):
        told(echoed, "leading")
        settled(scheduler, clock)
    assert commands.nights == ["2026-10-25"]
    assert moments(settings) == {"2026-10-25T02:30": ("done", 1)}


def test_upkeep_gives_way_to_a_night_that_is_due_soon(settings: Settings) -> None:
    """Fault 9: upkeep due shortly before the night waits until the night runs, then has its turn."""
    due = scheduled(settings, upkeep_cron="50 1 * * *")
    clock, commands = Clock(TWO - timedelta(minutes=10)), Commands(settings)
    with running(due, commands, clock) as (scheduler, echoed):
        told(echoed, "leading")
        settled(scheduler, clock)
        assert commands.ran == []
        clock.now = TWO
        told(echoed, "night of 2026-03-02 02:00 UTC ended")
        told(echoed, "upkeep of 2026-03-02 01:50 UTC ended")
    # Each in a thread of its own: which of them comes first to its command is open, which is started first is not.
    starts = [line.split()[1] for line in echoed if " starts, " in line]
    assert starts == ["night", "upkeep"]
    assert commands.nights == ["2026-03-02"]
    assert [command[:2] for command in commands.ran if command[:2] != ["night", "run"]] == [
        ["db", "upkeep"],
        ["night", "upkeep"],
        ["retrain", "forget"],
        ["dlq", "index"],
    ]


def test_erasure_runs_beside_a_night_and_only_its_failures_are_told(settings: Settings) -> None:
    """Fault 9: a job of every few minutes while the night takes hours."""
    ended, erasures = threading.Event(), [0, 3]
    commands = Commands(settings)

    def run(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        if arguments == ["night", "forget"]:
            commands.ran.append(arguments)
            return erasures.pop(0) if erasures else 0
        ended.wait(60)
        return commands(arguments, started)

    clock = Clock(TWO)
    with running(scheduled(settings, erasure_cron="*/5 * * * *"), run, clock) as (_, echoed):
        told(echoed, "night of 2026-03-02 02:00 UTC starts")
        for minutes in range(3):
            until(lambda count=minutes: commands.ran.count(["night", "forget"]) == count + 1, echoed)  # type: ignore[misc]
            until(lambda count=minutes: len(moments(settings, "erasure")) == count + 1)  # type: ignore[misc]
            clock.forward(minutes=5)
        ended.set()
        told(echoed, "night of 2026-03-02 02:00 UTC ended")
        until(lambda: [status for status, _ in moments(settings, "erasure").values()].count("done") >= 2, echoed)
    about = [line for line in echoed if line.startswith("scheduler: erasure")]
    assert about[0].startswith("scheduler: erasure of 2026-03-02 02:05 UTC failed with exit code 3 at try 1"), about
    assert not any("starts" in line or "exit code 0" in line for line in about)


def test_a_click_model_that_cannot_be_fitted_does_not_hold_the_night_up(settings: Settings) -> None:
    """Fault 9: the fit before the night hangs, then fails; the night runs, and its status tells of it."""
    ended, commands = threading.Event(), Commands(settings)

    def run(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        if arguments[:2] != ["loop", "fit"]:
            return commands(arguments, started)
        commands.ran.append(arguments)
        ended.wait(60)
        return 3

    clock = Clock(TWO - timedelta(minutes=1))
    with running(scheduled(settings, clicks_cron="0 1 * * *"), run, clock) as (_, echoed):
        told(echoed, "clicks of 2026-03-02 01:00 UTC starts")
        clock.now = TWO
        told(echoed, "night of 2026-03-02 02:00 UTC ended with exit code 0")
        assert commands.ran[0] == ["loop", "fit", "--until", "2026-03-02T01:00:00+00:00"]
        assert moments(settings, "clicks") == {"2026-03-02T01:00": ("running", 1)}
        ended.set()
        told(echoed, "clicks of 2026-03-02 01:00 UTC failed with exit code 3 at try 1")
    found = words(status_of(settings, DAY.date()))
    assert "fit of 2026-03-02T01:00: waiting, exit code 3" in found


def test_a_lease_that_is_still_held_costs_a_minute(settings: Settings) -> None:
    """Fault 9: a night by an operator's hand runs into the scheduler's (F2)."""
    engine = connect(settings.database)
    commands = Commands(settings)

    def night(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        mine = connect(settings.database)
        try:
            with lead(mine, "night"):
                return commands(arguments, started)
        except LockHeld as error:
            return error.exit_code
        finally:
            mine.dispose()

    clock = Clock(TWO)
    with running(scheduled(settings), night, clock) as (_, echoed):
        with lead(engine, "night"):
            told(echoed, "exit code 6 at try 1")
            clock.forward(seconds=60)
            told(echoed, "exit code 6 at try 2")
        clock.forward(seconds=60)
        told(echoed, "ended with exit code 0")
    assert commands.nights == ["2026-03-02"]
    engine.dispose()


def test_a_night_that_is_not_there_in_the_morning_is_an_alarm(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fault 9: no flip by HH:MM."""
    port = free_port()
    clock, commands = Clock(TWO), Commands(settings, [3] * 100)

    def read(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())

    def unpublished() -> float:
        name = "pigeon_night_unpublished_seconds "
        return next(float(line.split()[1]) for line in read("/metrics").splitlines() if line.startswith(name))

    due = scheduled(settings, alarm_at="06:30", metrics_port=port, deadline_minutes=60)
    publish(settings, (DAY - timedelta(days=1)).date())
    with running(due, commands, clock) as (_, echoed):
        told(echoed, "at try 1")
        assert unpublished() == 0
        assert read("/ready") == "ok\n"
        assert "the loop came round" in read("/live")
        assert 'pigeon_schedule_failures_total{exit_code="3",job="night"}' in read("/metrics")
        assert 'pigeon_schedule_gave_up_total{job="canary"} 0.0' in read("/metrics"), (
            "or its first increase is not seen"
        )
        assert "pigeon_schedule_leading 1.0" in read("/metrics")
        clock.now = DAY + timedelta(hours=7)
        told(echoed, "is given up")
        until(lambda: unpublished() == 1800, echoed)
        publish(settings, DAY.date())  # somebody ran it by hand
        until(lambda: unpublished() == 0, echoed)
    output = capsys.readouterr()
    assert "night not published" in output.out + output.err


def test_a_replaced_leader_takes_nothing_up_and_stands_by(settings: Settings) -> None:
    """Fault 9: another process has taken over unnoticed."""
    engine = connect(settings.database)
    moment = Moment.due("night", TWO)
    with lead(engine, LEASE) as lease:
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE leases SET token = token + 1, holder = 'other' WHERE name = :n"), {"n": LEASE}
            )
        for write in (
            lambda: Moments(engine).take(lease, moment),
            lambda: Moments(engine).end(lease, moment, "done"),
            lambda: Moments(engine).wait(lease, moment, "", TWO),
            lambda: Moments(engine).supersede(lease, moment),
        ):
            with pytest.raises(LockHeld, match="other"):
                write()
    with Session(engine) as session:
        assert session.get(ScheduleMoment, ("night", moment.name)) is None
    commands = Commands(settings)
    with running(scheduled(settings), commands, Clock(DAY)) as (_, echoed):
        told(echoed, "leading")
        with engine.begin() as connection:
            connection.execute(
                text("UPDATE leases SET token = token + 1, holder = 'thief' WHERE name = :n"), {"n": LEASE}
            )
        told(echoed, "went to thief")
    engine.dispose()


def test_once_runs_a_job_now_and_gives_its_exit_code(settings: Settings) -> None:
    """Fault 9: no scheduler, and an operator runs its job by hand."""
    codes = iter([0, 5, 0, 0])
    seen: list[list[str]] = []

    def runner(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
        seen.append(arguments)
        return next(codes)

    assert Scheduler(settings, lambda line: None, runner).run_now("upkeep") == 5
    assert seen == [["db", "upkeep"], ["night", "upkeep"], ["retrain", "forget"], ["dlq", "index"]]


def test_postgres_away_at_the_start_is_told(settings: Settings) -> None:
    """Fault 9: Postgres away when the scheduler starts."""
    gone = settings.database.model_copy(update={"url": SecretStr("postgresql+psycopg2://x@127.0.0.1:9/x")})
    with pytest.raises(ServerUnavailable, match=r"database\.url"):
        Scheduler(settings.model_copy(update={"database": gone}), lambda line: None).run_forever()
