"""The latest night and the newest published one, as samples."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.metrics import names
from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.runs import read_unannounced_runs
from generator.nightly.sessions import sessions_of, total_of
from schemas.runtime.metrics import Samples
from schemas.tables import NightRun

STATUSES = ("planned", "running", "published", "failed", "cancelled")
"""Statuses of a night; a trial's own one is left out."""


TOMORROW = timedelta(days=1)
"""Some time zone's date is a day ahead of UTC's."""


def read(ledger: Ledger, session: Session) -> Samples:
    """What is known of nights; trials are left out."""
    yield from _published(ledger, session)
    run = ledger.get_latest_run()
    if run is None or run.scope != EVERYBODY:
        return
    for status in STATUSES:
        yield names.NIGHT_STATUS, (status,), float(run.status == status)
    yield names.NIGHT_DATE, (), _midnight(run.logical_date)
    yield names.NIGHT_STARTED, (), run.started_at.timestamp()
    yield names.NIGHT_PROGRESS, (), _progress(run)
    counts = ledger.count_tasks(run.run_id)
    for status in ("pending", "done", "refused", "failed"):
        yield names.NIGHT_TASKS, (status,), counts.get(status, 0)
    for reason, count in ledger.count_skips(run.run_id).items():
        yield names.NIGHT_SKIPPED, (reason,), count
    yield from _drawn(run.figures)


def _published(ledger: Ledger, session: Session) -> Samples:
    newest = select(NightRun.logical_date, NightRun.finished_at).order_by(NightRun.logical_date.desc()).limit(1)
    row = session.execute(newest.where(NightRun.scope == EVERYBODY, NightRun.status == "published")).first()
    if row is not None:
        yield names.PUBLISHED_DATE, (), _midnight(row.logical_date)
        if row.finished_at is not None:
            yield names.PUBLISHED, (), row.finished_at.timestamp()
    yield names.UNANNOUNCED, (), len(read_unannounced_runs(ledger, datetime.now(UTC).date() + TOMORROW))


def _progress(run: NightRun) -> float:
    stored = [one.get("saved_at") for one in run.figures.get("sessions", [])]
    moments = [datetime.fromisoformat(moment) for moment in stored if moment]
    return max(filter(None, (run.started_at, run.finished_at, *moments))).timestamp()


def _drawn(figures: Mapping[str, Any]) -> Samples:
    for kind in ("drawn", "carried", "withheld"):
        if f"posters_{kind}" in figures:
            yield names.NIGHT_POSTERS, (kind,), figures[f"posters_{kind}"]
    total, seconds = total_of(sessions_of(figures))
    yield names.NIGHT_SECONDS, (), seconds
    yield names.NIGHT_PICTURES, ("drawn",), total.pictures_drawn
    yield names.NIGHT_PICTURES, ("reused",), total.pictures_reused
    yield names.NIGHT_RETRIES, (), total.model_retries
    yield names.NIGHT_UPLOADED, (), total.uploaded_bytes
    for stage, at_work in total.stage_seconds.items():
        yield names.NIGHT_STAGE_SECONDS, (stage,), at_work
    for reason, refusals in total.refusals.items():
        yield names.NIGHT_REFUSALS, (reason,), refusals.count
    for address, server in total.servers.items():
        yield names.NIGHT_REQUESTS, (address, "answered"), server.requests
        yield names.NIGHT_REQUESTS, (address, "failed"), server.failures
        yield names.NIGHT_UNUSED, (address,), float(bool(server.problem))


def _midnight(day: date) -> float:
    return datetime.combine(day, time(), tzinfo=UTC).timestamp()
