"""The scheduler: jobs by cron in a named time zone, each due moment once, by one leader.

Policy. A job is a `pigeon` command in a process of its own. A moment that is due is first claimed in Postgres, under the
leader's fencing token, so it runs once however many schedulers there are. When nobody was there at that moment, it is made
up for within `schedule.misfire_grace_seconds`, and so is a night that was started but never published; several missed
moments of one job become one run, the latest (coalescing). A job does not overlap with itself. The moment's name is its
local wall time: the hour that a clock change repeats runs once, and what falls into the hour that it skips runs an hour
later by the clock. The night's logical date is the local date of its moment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from generator.nightly.ledger import Ledger
from generator.storage.lease import Lease, lead
from generator.storage.postgres import connect, plain_errors
from schemas.errors import InputError, LockHeld, PigeonError, ServerUnavailable
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import ScheduleSettings, Settings

LEASE = "scheduler"
STANDBY_SECONDS = 5.0
STOP_SECONDS = 30.0

JOBS = ("night", "retrain", "upkeep")


def commands(job: str, moment: datetime) -> list[list[str]]:
    """The arguments of the `pigeon` commands of a job, in their order; `moment` is local."""
    if job == "night":
        return [["night", "run", "--date", moment.date().isoformat()]]
    if job == "retrain":
        return [["retrain", "--date", moment.date().isoformat()]]
    return [["db", "upkeep"], ["night", "upkeep"], ["retrain", "forget"]]


def triggers(settings: ScheduleSettings) -> dict[str, CronTrigger]:
    """A trigger per job.

    Raises:
        InputError: the time zone or an expression is wrong.
    """
    try:
        zone = ZoneInfo(settings.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InputError(
            f"setting schedule.time_zone: no time zone {settings.time_zone!r}; for example Europe/Berlin"
        ) from error
    found = {}
    for job in JOBS:
        expression = getattr(settings, f"{job}_cron")
        try:
            found[job] = CronTrigger.from_crontab(expression, timezone=zone)
        except ValueError as error:
            raise InputError(
                f"setting schedule.{job}_cron: {expression!r}: {error}; five fields, for example '0 2 * * *'"
            ) from error
    return found


def last_moment(trigger: CronTrigger, now: datetime, grace_seconds: float) -> datetime | None:
    """The latest moment that was due within the grace, or None."""
    # In UTC: in local time a second added to the repeated hour leads back into its first pass.
    due, at = None, now.astimezone(UTC) - timedelta(seconds=grace_seconds)
    while (moment := trigger.get_next_fire_time(None, at)) is not None and moment <= now:
        due, at = moment, moment.astimezone(UTC) + timedelta(seconds=1)
    return due


def claim(engine: Engine, lease: Lease, job: str, moment: datetime) -> bool:
    """Claim a moment for this process; False when it, or a later one, was claimed before.

    Raises:
        LockHeld: we no longer lead.
    """
    name = f"{LEASE}: {job}"
    wall = moment.replace(tzinfo=None).isoformat(timespec="minutes")
    with plain_errors(engine), engine.begin() as connection:
        lease.check(connection)
        taken = connection.execute(
            text(
                "INSERT INTO leases (name, holder, token) VALUES (:n, :w, :t) ON CONFLICT (name) DO UPDATE "
                'SET holder = :w, token = :t, acquired_at = now() WHERE leases.holder COLLATE "C" < :w RETURNING name'
            ),
            {"n": name, "w": wall, "t": lease.token},
        )
        return taken.one_or_none() is not None


def run_pigeon(arguments: list[str], started: Callable[[subprocess.Popen[bytes]], None]) -> int:
    """Run a `pigeon` command in its own process; its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "generator.cli", *arguments], env=os.environ.copy())
    started(process)
    return process.wait()


class Scheduler:
    """Leads or stands by; tests replace `run_command`."""

    def __init__(
        self,
        settings: Settings,
        echo: Callable[[str], None],
        run_command: Callable[[list[str], Callable[[subprocess.Popen[bytes]], None]], int] = run_pigeon,
    ) -> None:
        self._settings = settings.schedule
        self._triggers = triggers(settings.schedule)
        self._zone = ZoneInfo(settings.schedule.time_zone)
        self._engine = connect(settings.database)
        self._echo = echo
        self._run_command = run_command
        self._stopping = threading.Event()
        self._lost = threading.Event()
        self._children: set[subprocess.Popen[bytes]] = set()

    def run_now(self, job: str) -> int:
        """Run a job at once, without a claim; returns the first bad exit code, or 0.

        The job's own lease keeps it from running twice.
        """
        with self._signals():
            return self._run_job(job, datetime.now(self._zone))

    def run_forever(self) -> None:
        """Stand by until there is no leader, then lead until stopped.

        Raises:
            ServerUnavailable: Postgres is away at the start; later outages are waited out.
        """
        with self._signals():
            standing_by = False
            first = True
            while not self._stopping.is_set():
                try:
                    with lead(self._engine, LEASE) as lease:
                        standing_by = False
                        self._lead(lease)
                except LockHeld as error:
                    if not standing_by:
                        self._echo(f"scheduler: standing by; {error}")
                    standing_by = True
                except ServerUnavailable as error:
                    if first:
                        raise
                    self._echo(f"scheduler: {error}; trying again")
                first = False
                self._stopping.wait(STANDBY_SECONDS)
        self._engine.dispose()

    def _lead(self, lease: Lease) -> None:
        self._lost.clear()
        pool = BackgroundScheduler(timezone=self._zone, executors={"default": ThreadPoolExecutor(len(JOBS))})
        for job, trigger in self._triggers.items():
            pool.add_job(
                self._due,
                trigger,
                args=(job, lease),
                id=job,
                misfire_grace_time=self._settings.misfire_grace_seconds,
                coalesce=True,
                max_instances=1,
            )
        pool.start()
        nexts = ", ".join(f"{job.id} {job.next_run_time:%Y-%m-%d %H:%M %Z}" for job in pool.get_jobs())
        self._echo(f"scheduler: leading with token {lease.token}; next: {nexts}")
        for job in JOBS:  # moments that passed while nobody led
            pool.add_job(self._due, args=(job, lease, True), id=f"{job} missed", misfire_grace_time=None)
        try:
            while not self._stopping.is_set() and not self._lost.is_set():
                self._stopping.wait(STANDBY_SECONDS)
                self._check(lease)
        finally:
            if self._stopping.is_set():
                self._end_children()
            # When only the lead was lost, jobs go on: they have leases of their own.
            pool.shutdown(wait=True)

    def _check(self, lease: Lease) -> None:
        try:
            with plain_errors(self._engine), self._engine.begin() as connection:
                lease.check(connection)
        except LockHeld as error:
            self._echo(f"scheduler: {error}; standing by")
            self._lost.set()
        except ServerUnavailable as error:
            self._echo(f"scheduler: {error}; no job starts until it is back")

    def _due(self, job: str, lease: Lease, after_absence: bool = False) -> None:
        """Claim and run the latest due moment, unless that is done."""
        moment = last_moment(self._triggers[job], datetime.now(self._zone), self._settings.misfire_grace_seconds)
        if moment is None:
            return
        try:
            claimed = claim(self._engine, lease, job, moment)
            if not claimed and not (after_absence and job == "night" and self._unpublished(moment.date())):
                return
        except LockHeld as error:
            self._echo(f"scheduler: {error}")
            self._lost.set()
            return
        except (PigeonError, DBAPIError) as error:
            self._echo(f"scheduler: {job} of {moment:%Y-%m-%d %H:%M %Z} could not be claimed: {error}")
            return
        late = datetime.now(UTC) - moment
        self._echo(f"scheduler: {job} of {moment:%Y-%m-%d %H:%M %Z} starts, {late.total_seconds():.0f} s late")
        code = self._run_job(job, moment)
        self._echo(f"scheduler: {job} of {moment:%Y-%m-%d %H:%M %Z} ended with exit code {code}")

    def _unpublished(self, logical_date: date) -> bool:
        run = Ledger(self._engine).get_run(logical_date)
        return run is not None and run.status != "published"

    def _run_job(self, job: str, moment: datetime) -> int:
        codes = []
        for arguments in commands(job, moment):
            if self._stopping.is_set():
                break
            codes.append(self._run_command(arguments, self._children.add))
        return next((code for code in codes if code), 0)

    def _end_children(self) -> None:
        """Jobs stop as on Ctrl-C; they keep what they finished."""
        running = [child for child in self._children if child.poll() is None]
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()

    def _signals(self) -> AbstractContextManager[list[int]]:
        def stop(_: int) -> None:
            self._stopping.set()
            for child in list(self._children):
                if child.poll() is None:
                    child.terminate()

        return stop_signals(stop)
