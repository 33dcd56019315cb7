"""Nights for the console: tonight at a glance, and the list."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from typing import Any
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, func, select, tuple_
from sqlalchemy.orm import Session

from generator.nightly.cron import last_moment, next_moment, triggers
from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.report.nights import NightLine, Step, charts_of, funnel_of, read_last_nights
from generator.nightly.sessions import RUNNING, sessions_of
from generator.storage.postgres import plain_errors
from generator.web.console.sessions import reading
from schemas.settings import ScheduleSettings
from schemas.tables import NightRun, NightTask, ScheduleMoment

DAY = timedelta(days=1)
COUNT_AGAIN = 20.0
"""How many times as long as it took a count of a running night is kept, so that looking costs a running night little."""
COUNT_AGAIN_SECONDS = 5.0
"""Seconds for which it is kept at least."""
MOMENTS = 6


@dataclass(frozen=True)
class Counts:
    """Tasks of a run by status, and why some came to nothing."""

    tasks: Mapping[str, int]
    reasons: Mapping[str, int]
    skips: Mapping[str, int]


@dataclass(frozen=True)
class Tonight:
    """A run as a person wants to see it."""

    run: NightRun
    counts: Counts
    funnel: list[Step]
    rate: float | None
    """Tasks per second of the session that draws, or drew last."""
    eta: datetime | None
    charts: list[tuple[str, str, str]]
    nights: list[NightLine]

    @property
    def left(self) -> int:
        """Tasks that wait."""
        return self.counts.tasks.get("pending", 0)


class Nights:
    """Reads nights; counts of a running one are kept for a moment."""

    def __init__(self, engine: Engine, schedule: ScheduleSettings) -> None:
        self._engine = engine
        self._ledger = Ledger(engine)
        self._schedule = schedule
        self._kept: dict[str, tuple[float, Counts]] = {}

    def latest(self) -> Tonight | None:
        """The latest night; the latest trial when there is no night, None before the first one."""
        with plain_errors(self._engine):
            run = self._ledger.get_latest_run()
        return self._tonight(run) if run else None

    def get(self, run_id: str) -> Tonight | None:
        """A run by its id."""
        with self._reading() as session:
            run = session.get(NightRun, run_id)
        return self._tonight(run) if run else None

    def page(self, before: tuple[date, str] | None, limit: int) -> list[NightRun]:
        """Runs before a place (date, id), the latest first."""
        query = select(NightRun).order_by(NightRun.logical_date.desc(), NightRun.run_id.desc()).limit(limit)
        if before:
            query = query.where(tuple_(NightRun.logical_date, NightRun.run_id) < before)
        with self._reading() as session:
            return list(session.scalars(query))

    def tasks(self, run_id: str, status: str, after: tuple[str, str] | None, limit: int) -> list[NightTask]:
        """Tasks of a run with one status, by user and item."""
        query = select(NightTask).where(NightTask.run_id == run_id, NightTask.status == status)
        if after:
            query = query.where(tuple_(NightTask.user_id, NightTask.item_id) > after)
        with self._reading() as session:
            return list(session.scalars(query.order_by(NightTask.user_id, NightTask.item_id).limit(limit)))

    def moments(self) -> list[ScheduleMoment]:
        """The scheduler's latest moments."""
        query = select(ScheduleMoment).where(ScheduleMoment.job.in_(("night", "retrain", "upkeep")))
        with self._reading() as session:
            return list(session.scalars(query.order_by(ScheduleMoment.due_at.desc()).limit(MOMENTS)))

    def lateness(self, now: datetime | None = None) -> tuple[bool, str]:
        """Whether a night is late, and in words what is due when."""
        zone = ZoneInfo(self._schedule.time_zone)
        now = (now or datetime.now(zone)).astimezone(zone)
        trigger = triggers(self._schedule)["night"]
        due = last_moment(trigger, now, 7 * DAY.total_seconds())
        coming = next_moment(trigger, now)
        words = f"next night: {coming:%a %H:%M %Z}" if coming else "no night is due"
        alarm = self._alarm(due) if due else None
        if due is None or alarm is None:
            return False, words + ("" if self._schedule.alarm_at else "; no schedule.alarm_at is set")
        with self._reading() as session:
            last = session.scalar(
                select(func.max(NightRun.logical_date)).where(
                    NightRun.status == "published", NightRun.scope == EVERYBODY
                )
            )
        if last is not None and last >= due.date():
            return False, f"the night of {due.date()} is published; {words}"
        late = now >= alarm
        return (
            late,
            f"the night of {due.date()} {'should have been' if late else 'is to be'} published by {alarm:%H:%M %Z}",
        )

    def _alarm(self, due: datetime) -> datetime | None:
        if self._schedule.alarm_at is None:
            return None
        alarm = datetime.combine(due.date(), clock_time.fromisoformat(self._schedule.alarm_at), tzinfo=due.tzinfo)
        return alarm if alarm > due else alarm + DAY

    def _tonight(self, run: NightRun) -> Tonight:
        counts = self._counts(run)
        sessions = sessions_of(run.figures)
        last = sessions[-1] if sessions else None
        rate = last.tally.finished / last.seconds if last and last.seconds and last.tally.finished else None
        drawing = run.status == "running" and last is not None and last.ended == RUNNING
        left = counts.tasks.get("pending", 0)
        eta = datetime.now().astimezone() + timedelta(seconds=left / rate) if drawing and rate and left else None
        with plain_errors(self._engine):
            nights = [*read_last_nights(self._ledger, run), NightLine.of(run.logical_date.isoformat(), run.figures)]
        figures: dict[str, Any] = {"tasks": dict(counts.tasks), "skips": dict(counts.skips)}
        return Tonight(run, counts, funnel_of(figures), rate, eta, charts_of(nights), nights)

    def _counts(self, run: NightRun) -> Counts:
        """As the run's end has stored them, else counted."""
        figures = run.figures
        if run.status in {"published", "drawn"} and "tasks" in figures:
            return Counts(figures["tasks"], figures.get("reasons", {}), figures.get("skips", {}))
        until, counts = self._kept.get(run.run_id, (0.0, None))
        if counts is None or time.monotonic() > until:
            start = time.monotonic()
            with plain_errors(self._engine):
                counts = Counts(
                    self._ledger.count_tasks(run.run_id),
                    self._ledger.count_reasons(run.run_id),
                    self._ledger.count_skips(run.run_id),
                )
            now = time.monotonic()
            self._kept = {run.run_id: (now + max(COUNT_AGAIN_SECONDS, COUNT_AGAIN * (now - start)), counts)}
        return counts

    def _reading(self) -> AbstractContextManager[Session]:
        return reading(self._engine)
