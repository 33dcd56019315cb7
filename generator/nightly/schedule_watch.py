"""The scheduler's metrics and health, and the alarm of a night that is not published in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as clock_time

import structlog
from apscheduler.triggers.base import BaseTrigger
from prometheus_client import Counter, Gauge

from generator.nightly.cron import JOBS, last_moment
from schemas.errors import InputError, PigeonError
from schemas.runtime import health
from schemas.runtime.metrics import registry
from schemas.settings import ScheduleSettings

log = structlog.get_logger("pigeon.schedule")

REGISTRY = registry()
UNPUBLISHED_SECONDS = Gauge(
    "pigeon_night_unpublished_seconds",
    "Time since schedule.alarm_at without a published night; 0 while there is no alarm.",
    registry=REGISTRY,
)
FAILURES = Counter("pigeon_schedule_failures", "Tries of a job that failed.", ["job", "exit_code"], registry=REGISTRY)
GAVE_UP = Counter(
    "pigeon_schedule_gave_up", "Due moments of a job that were given up at the deadline.", ["job"], registry=REGISTRY
)
LEADING = Gauge("pigeon_schedule_leading", "1 while this scheduler leads, 0 while it stands by.", registry=REGISTRY)
DONE_TIMESTAMP = Gauge(
    "pigeon_schedule_done_timestamp_seconds", "Unix time at which a job was last done.", ["job"], registry=REGISTRY
)
JOB_RUNNING = Gauge("pigeon_schedule_job_running", "1 while a job runs.", ["job"], registry=REGISTRY)
JOB_SECONDS = Gauge("pigeon_schedule_job_seconds", "How long a job's last try took.", ["job"], registry=REGISTRY)
JOB_EXIT_CODE = Gauge("pigeon_schedule_job_exit_code", "Exit code of a job's last try.", ["job"], registry=REGISTRY)

STUCK_SECONDS = 300.0
"""Seconds after which a scheduler whose loop has not come round is stuck; a statement may take one minute."""

ALARM_EVERY_SECONDS = 3600.0
DAY = timedelta(days=1)


class NightAlarm:
    """Tells when the night of a day is not published by `schedule.alarm_at`.

    Args:
        is_published: whether the night of this date, or of a later one, is published. What it cannot be asked counts as not.
    """

    def __init__(self, settings: ScheduleSettings, trigger: BaseTrigger, is_published: Callable[[date], bool]) -> None:
        self._at = clock_time.fromisoformat(settings.alarm_at) if settings.alarm_at else None
        self._trigger = trigger
        self._is_published = is_published
        self._published: date | None = None
        self._told_at: float | None = None

    def look(self, now: datetime) -> float:
        """Set the metric, and log an error when the alarm begins and hourly; returns the metric's seconds.

        now: in the scheduler's time zone.
        """
        alarm = self._last_alarm(now)
        night = last_moment(self._trigger, alarm, DAY.total_seconds()) if alarm else None
        seconds = 0.0
        if alarm is not None and night is not None and not self._check(night.date()):
            seconds = now.timestamp() - alarm.timestamp()
            if self._told_at is None or abs(now.timestamp() - self._told_at) >= ALARM_EVERY_SECONDS:
                self._told_at = now.timestamp()
                log.error("night not published", night=night.date().isoformat(), alarm_at=f"{alarm:%Y-%m-%d %H:%M %Z}")
        else:
            self._told_at = None
        UNPUBLISHED_SECONDS.set(seconds)
        return seconds

    def _last_alarm(self, now: datetime) -> datetime | None:
        if self._at is None:
            return None
        today = datetime.combine(now.date(), self._at, tzinfo=now.tzinfo)
        return today if today <= now else datetime.combine(now.date() - DAY, self._at, tzinfo=now.tzinfo)

    def _check(self, night: date) -> bool:
        if self._published is None or self._published < night:
            try:
                if not self._is_published(night):
                    return False
            except PigeonError:
                return False
            self._published = night
        return True


class SchedulerHealth:
    """`schemas.runtime.health.Checks` of the scheduler: liveness is progress of its loop."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self.problem = "not connected yet"
        """Why no job could be started at the last pass, empty when one could."""

    def beat(self) -> None:
        """Note that the loop came round."""
        self._beat = time.monotonic()

    def alive(self) -> tuple[bool, str]:
        """Whether the loop comes round."""
        seconds = time.monotonic() - self._beat
        return seconds < STUCK_SECONDS, f"the loop came round {seconds:.0f} s ago"

    def ready(self) -> tuple[bool, str]:
        """Whether Postgres answered; a scheduler that stands by is ready."""
        return not self.problem, self.problem or "ok"


def _begin() -> None:
    """Show each counter at zero: Prometheus sees no increase in one that appears with its first count."""
    for job in JOBS:
        GAVE_UP.labels(job)
        for code in {-signal.SIGKILL, PigeonError.exit_code, *(one.exit_code for one in PigeonError.__subclasses__())}:
            FAILURES.labels(job, str(int(code)))


def serve(settings: ScheduleSettings, checks: SchedulerHealth) -> Callable[[], None]:
    """Answer /metrics, /live and /ready if `schedule.metrics_port` is set; returns what ends it.

    Raises:
        InputError: the port is taken.
    """
    if settings.metrics_port is None:
        return lambda: None
    _begin()
    try:
        server = health.serve(checks, settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise InputError(f"setting schedule.metrics_port: {settings.metrics_port}: {error.strerror}") from error

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end
