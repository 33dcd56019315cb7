"""The scheduler: jobs by cron in a named time zone, each due moment until it is done, by one leader.

Policy. A job is a `pigeon` command in a process of its own. A due moment is taken up in Postgres, under the leader's fencing
token, so one scheduler runs it however many there are. It is done when its command ends with 0, 7 (done, some tasks failed) or
8 (refused by a policy), and a night only when it is published; anything else is tried again with growing waits until
`schedule.deadline_minutes` after the due moment, then given up. What a leader that died was running is tried again by the next.

A moment that a scheduler saw come is taken up within the deadline, also when Postgres was away; one at which none was running
within `schedule.misfire_grace_seconds`. Several open moments of one job become one, the latest. A job does not overlap with
itself. Upkeep gives way to a night that is due soon. The click model's fit is no part of the night: one that fails or is late
leaves the night the model that is active. Erasure needs not: it has a lease of its own, runs every few minutes beside
whatever else runs, and of it only what goes wrong is told.

Clocks. The moment's name is its local wall time: the hour that a clock change repeats runs once, and what falls into the hour
that it skips runs an hour later by the clock. A clock that is set back repeats nothing that has a row, and ends the wait for a
next try; one that is set forward makes up for the latest moment within the grace. The night's logical date is the local date
of its moment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from generator.nightly.cron import JOBS, last_moment, next_moment, triggers
from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.moments import Moment, Moments
from generator.nightly.schedule_watch import (
    DONE_TIMESTAMP,
    FAILURES,
    GAVE_UP,
    JOB_EXIT_CODE,
    JOB_RUNNING,
    JOB_SECONDS,
    LEADING,
    NightAlarm,
    SchedulerHealth,
    log,
    serve,
)
from generator.storage.lease import Lease, lead
from generator.storage.postgres import connect, plain_errors
from schemas.errors import InputError, LockHeld, PartialFailure, Refused, ServerUnavailable
from schemas.runtime.stop_signals import stop_signals
from schemas.runtime.trace import TRACEPARENT, new_traceparent
from schemas.settings import Settings
from schemas.tables import NightRun

LEASE = "scheduler"
QUIET = frozenset({"erasure"})
"""Jobs of every few minutes: only what goes wrong is told."""
STANDBY_SECONDS = 5.0
"""Seconds between two passes of the loop."""
STOP_SECONDS = 30.0

Command = Callable[[list[str], Callable[["subprocess.Popen[bytes]"], None]], int]
"""Runs a command; it tells the process that it started, and returns the exit code."""


def commands(job: str, moment: datetime) -> list[list[str]]:
    """The arguments of the `pigeon` commands of a job, in their order; `moment` is local."""
    if job == "night":
        return [["night", "run", "--date", moment.date().isoformat()]]
    if job == "clicks":
        return [["loop", "fit", "--until", moment.astimezone(UTC).isoformat()]]
    if job == "retrain":
        # Up to the due moment, so that a try an hour later learns from the same.
        return [["retrain", "--until", moment.astimezone(UTC).isoformat()]]
    if job == "canary":
        return [["models", "judge", "--until", moment.astimezone(UTC).isoformat()], ["models", "unload"]]
    if job == "erasure":
        return [["night", "forget"]]
    return [["db", "upkeep"], ["night", "upkeep"], ["retrain", "forget"], ["dlq", "index"]]


def run_pigeon(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
    """Run a `pigeon` command in its own process, in a trace of its own; its exit code."""
    traceparent = new_traceparent()
    environment = {**os.environ, TRACEPARENT: traceparent}
    process = subprocess.Popen([sys.executable, "-m", "generator.cli", *arguments], env=environment)
    log.debug("command started", command=" ".join(arguments), pid=process.pid, traceparent=traceparent)
    started(process)
    return process.wait()


@dataclass
class _Try:
    """A job that runs in a thread, or has ended and is not recorded yet."""

    moment: Moment
    number: int
    thread: threading.Thread
    code: int | None = None


class Scheduler:
    """Leads or stands by; tests replace `run_command` and `clock`."""

    def __init__(
        self,
        settings: Settings,
        echo: Callable[[str], None],
        run_command: Command = run_pigeon,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings.schedule
        self._triggers = triggers(settings.schedule)
        self._zone = ZoneInfo(settings.schedule.time_zone)
        self._engine = connect(settings.database)
        self._moments = Moments(self._engine)
        self._echo = echo
        self._run_command = run_command
        self._clock = clock
        self._stopping = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._tries: dict[str, _Try] = {}
        self._seen_until: datetime | None = None
        self._seen: dict[str, datetime] = {}
        self._problem = ""
        self._alarm = NightAlarm(settings.schedule, self._triggers["night"], self._is_published_since)
        self._health = SchedulerHealth()

    def run_now(self, job: str) -> int:
        """Run a job at once, whatever moments are due; returns the first bad exit code, or 0.

        The job's own lease keeps it from running twice.
        """
        with self._signals():
            return self._run_job(job, self._now().astimezone(self._zone))

    def run_forever(self) -> None:
        """Stand by until there is no leader, then lead until stopped.

        Raises:
            ServerUnavailable: Postgres is away at the start; later outages are waited out.
            InputError: a port is taken, tables are missing, or a pooler lies between (generator/storage/lease.py).
        """
        end_serving = serve(self._settings, self._health)
        standing_by = False
        first = True
        try:
            with self._signals():
                while not self._stopping.is_set():
                    try:
                        with lead(self._engine, LEASE) as lease:
                            standing_by = False
                            self._lead(lease)
                    except LockHeld as error:
                        if not standing_by:
                            self._echo(f"scheduler: standing by; {error}")
                        standing_by, self._health.problem = True, ""
                    except ServerUnavailable as error:
                        if first:
                            raise
                        self._echo(f"scheduler: {error}; trying again")
                        self._health.problem = str(error)
                    first = False
                    self._look_around()
                    self._stopping.wait(STANDBY_SECONDS)
        finally:
            LEADING.set(0)
            end_serving()
            self._end_children()
            self._engine.dispose()

    def _lead(self, lease: Lease) -> None:
        nexts = ", ".join(
            f"{job} {moment:%Y-%m-%d %H:%M %Z}"
            for job, trigger in self._triggers.items()
            if (moment := next_moment(trigger, self._now()))
        )
        self._echo(f"scheduler: leading with token {lease.token}; next: {nexts}")
        LEADING.set(1)
        try:
            while not self._stopping.is_set():
                self._look_around()
                try:
                    self._pass(lease)
                except ServerUnavailable as error:
                    self._tell_problem(f"{error}; no job starts until it is back")
                self._stopping.wait(STANDBY_SECONDS)
            self._end_children()
            self._record_ended(lease)
        except ServerUnavailable as error:
            self._echo(f"scheduler: {error}")
        except LockHeld as error:
            # Jobs under way go on: they have leases of their own.
            self._echo(f"scheduler: {error}; standing by")
        finally:
            LEADING.set(0)

    def _look_around(self) -> None:
        """What every pass does, leading or not: note what is due, and look whether the night is there."""
        now = self._now()
        if self._seen_until is not None and self._seen_until < now:
            # A longer gap is an absence: the process, or the machine, was stopped.
            seconds = min((now - self._seen_until).total_seconds(), self._settings.misfire_grace_seconds)
            for job, trigger in self._triggers.items():
                if moment := last_moment(trigger, now, seconds):
                    self._seen[job] = moment
        self._seen_until = now
        self._alarm.look(now.astimezone(self._zone))
        self._health.beat()

    def _pass(self, lease: Lease) -> None:
        """Record what has ended and start what is due.

        Raises:
            LockHeld: we no longer lead.
            ServerUnavailable: Postgres is away.
        """
        lease.hold()
        with plain_errors(self._engine), self._engine.begin() as connection:
            lease.check(connection)
        self._tell_problem("")
        self._record_ended(lease)
        now = self._now()  # one for all: else upkeep could see a night's moment that the night has not seen
        for job in JOBS:
            if job not in self._tries:
                self._consider(lease, job, now)

    def _consider(self, lease: Lease, job: str, now: datetime) -> None:
        """Start the job when its latest moment is new, or open and to be tried again."""
        moment = self._due(job, now)
        row = self._moments.get(moment) if moment else None
        if moment is not None and row is None:
            if not self._yields(job, moment, now):
                for name in self._moments.supersede(lease, moment):
                    self._echo(f"scheduler: {job} of {name} is given up: that of {moment.name} is due")
                self._start(lease, moment)
            return
        rows = self._moments.read_open(job)
        if not rows:
            return
        row = rows[0]
        moment = Moment(job, row.moment, row.due_at.astimezone(self._zone))
        if now >= self._deadline(moment):
            self._give_up(lease, moment, row.error or "it never ended")
            return
        if row.status == "waiting" and row.next_try_at is not None:
            wait = (row.next_try_at - now).total_seconds()
            # A longer wait than we ever set: the clock was set back.
            if 0 < wait <= max(self._settings.retry_first_seconds, self._settings.retry_longest_seconds):
                return
        if not self._yields(job, moment, now):
            self._start(lease, moment)

    def _due(self, job: str, now: datetime) -> Moment | None:
        """The latest moment that is to be taken up if it was not yet."""
        found = last_moment(self._triggers[job], now, self._settings.misfire_grace_seconds)
        seen = self._seen.get(job)
        if seen is not None and now < self._deadline(Moment.due(job, seen)):
            found = max(filter(None, (found, seen)), key=datetime.timestamp)
        return Moment.due(job, found) if found else None

    def _yields(self, job: str, moment: Moment, now: datetime) -> bool:
        """Whether upkeep waits for a night that is due soon, but not for ever where nights are many."""
        margin = timedelta(minutes=self._settings.upkeep_yields_minutes)
        if job != "upkeep" or now - moment.due_at >= 2 * margin:
            return False
        night = next_moment(self._triggers["night"], now + timedelta(seconds=1))  # one that is due now runs
        return night is not None and night.astimezone(UTC) - now < margin

    def _start(self, lease: Lease, moment: Moment) -> None:
        number = self._moments.take(lease, moment)
        if number is None:
            return
        late = (self._now() - moment.due_at).total_seconds()
        if moment.job not in QUIET:
            self._echo(f"scheduler: {moment} starts, {late:.0f} s late" + (f", try {number}" if number > 1 else ""))

        def work() -> None:
            one.code = self._run_job(moment.job, moment.due_at)

        one = _Try(moment, number, threading.Thread(target=work, name=f"pigeon-{moment.job}", daemon=True))
        self._tries[moment.job] = one
        one.thread.start()

    def _record_ended(self, lease: Lease) -> None:
        for job, one in list(self._tries.items()):
            if not one.thread.is_alive():
                self._record(lease, one)
                del self._tries[job]

    def _record(self, lease: Lease, one: _Try) -> None:
        moment, code = one.moment, one.code if one.code is not None else 1
        done = code in {0, PartialFailure.exit_code, Refused.exit_code}
        words = f"exit code {code}"
        if (
            done
            and moment.job == "night"
            and code != Refused.exit_code
            and not self._is_published(moment.due_at.date())
        ):
            done, words = False, f"{words}, but the night is not published"
        if done:
            self._moments.end(lease, moment, "done", words if code else None)
            DONE_TIMESTAMP.labels(moment.job).set_to_current_time()
            if code or moment.job not in QUIET:
                self._echo(f"scheduler: {moment} ended with {words}")
            if code == PartialFailure.exit_code:
                log.warning("done, but some tasks failed", job=moment.job, moment=moment.name)
            return
        now = self._now()
        if self._stopping.is_set():
            self._moments.wait(lease, moment, f"the scheduler was stopped; {words}", now)
            self._echo(f"scheduler: {moment} was stopped; the next leader goes on with it")
            return
        FAILURES.labels(moment.job, str(code)).inc()
        next_try = now + timedelta(seconds=self._wait_seconds(one.number, code))
        if next_try >= self._deadline(moment):
            self._give_up(lease, moment, words)
            return
        self._moments.wait(lease, moment, words, next_try)
        advice = "; a setting is wrong, which no try will mend: see its message" if code == InputError.exit_code else ""
        self._echo(
            f"scheduler: {moment} failed with {words} at try {one.number}{advice}; "
            f"next try at {next_try.astimezone(self._zone):%H:%M:%S %Z}, "
            f"given up at {self._deadline(moment).astimezone(self._zone):%H:%M %Z}"
        )
        tell = log.error if code == InputError.exit_code else log.warning
        tell("job failed", job=moment.job, moment=moment.name, exit_code=code, attempt=one.number)

    def _give_up(self, lease: Lease, moment: Moment, error: str) -> None:
        self._moments.end(lease, moment, "gave_up", error)
        GAVE_UP.labels(moment.job).inc()
        self._echo(f"scheduler: {moment} is given up: {error}")
        log.error("job given up at its deadline", job=moment.job, moment=moment.name, error=error)

    def _wait_seconds(self, number: int, code: int) -> float:
        """A held lease costs nothing to ask for, so its wait does not grow."""
        first, longest = self._settings.retry_first_seconds, self._settings.retry_longest_seconds
        if code == LockHeld.exit_code:
            return first
        return float(min(first * 2.0 ** min(number - 1, 30), max(first, longest)))

    def _deadline(self, moment: Moment) -> datetime:
        return moment.due_at.astimezone(UTC) + timedelta(minutes=self._settings.deadline_minutes)

    def _is_published(self, logical_date: date) -> bool:
        run = Ledger(self._engine).get_run(logical_date)
        return run is not None and run.status == "published"

    def _is_published_since(self, logical_date: date) -> bool:
        with plain_errors(self._engine), Session(self._engine) as session:
            query = select(func.count()).where(
                NightRun.scope == EVERYBODY, NightRun.status == "published", NightRun.logical_date >= logical_date
            )
            return bool(session.scalar(query))

    def _tell_problem(self, problem: str) -> None:
        if problem and problem != self._problem:
            self._echo(f"scheduler: {problem}")
        self._problem = self._health.problem = problem

    def _now(self) -> datetime:
        return self._clock().astimezone(UTC)

    def _run_job(self, job: str, moment: datetime) -> int:
        start = time.monotonic()
        with JOB_RUNNING.labels(job).track_inprogress():
            code = self._run_commands(job, moment)
        JOB_SECONDS.labels(job).set(time.monotonic() - start)
        JOB_EXIT_CODE.labels(job).set(code)
        return code

    def _run_commands(self, job: str, moment: datetime) -> int:
        codes = []
        for arguments in commands(job, moment):
            if self._stopping.is_set():
                codes.append(128 + 15)
                break
            codes.append(self._run_command(arguments, self._children.add))
        return next((code for code in codes if code), 0)

    def _end_children(self) -> None:
        """Jobs stop as on Ctrl-C; they keep what they finished."""
        running = [child for child in list(self._children) if child.poll() is None]
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        for one in self._tries.values():
            one.thread.join(STOP_SECONDS)

    def _signals(self) -> AbstractContextManager[list[int]]:
        def stop(_: int) -> None:
            self._stopping.set()
            for child in list(self._children):
                if child.poll() is None:
                    child.terminate()

        return stop_signals(stop)
