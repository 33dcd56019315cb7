"""The rows of `night_runs` beyond the steps of one night.

Runs that are cancelled, drawn for a look, taken up again or announced later, and their figures.
As in the ledger, each of these may be done twice; those that write check the lease, but for `cancel`, which an operator calls
while another process leads.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import EVERYBODY, Ledger, waits_out
from generator.storage.postgres import plain_errors
from schemas.errors import InputError, Refused
from schemas.tables import NightRun, NightTask, Poster

RATE_NIGHTS = 7
"""Published nights that an estimate goes by."""

ANNOUNCE_DAYS = 7
"""Days after which what a night left unannounced is announced no more."""

_UNFINISHED = ("planned", "running", "failed")


@dataclass(frozen=True)
class Rates:
    """What the last published nights needed."""

    nights: int
    tasks: int
    pictures: int
    seconds: float


def cancel(engine: Engine, run_id: str) -> None:
    """Mark an unfinished run as cancelled; the process that draws it notices and stops.

    Raises:
        InputError: there is no such run, or it is over.
        Refused: it is being published at this moment.
    """
    with plain_errors(engine), Session(engine) as session, session.begin():
        run = session.get(NightRun, run_id, with_for_update=True)
        if run is None:
            raise InputError(f"no run {run_id}: nothing to cancel (a plan under way is no run yet)")
        if run.status == "cancelled":
            return
        if run.status not in _UNFINISHED:
            raise InputError(f"run {run_id} is {run.status}: there is nothing left to cancel")
        if run.figures.get("publishing"):
            raise Refused(
                f"run {run_id} is being published: nothing was changed. If its process died, `pigeon night resume` ends it"
            )
        run.status = "cancelled"


def is_cancelled(engine: Engine, run_id: str) -> bool:
    """Whether an operator cancelled the run."""
    with plain_errors(engine), Session(engine) as session:
        return session.scalar(select(NightRun.status).where(NightRun.run_id == run_id)) == "cancelled"


@waits_out
def begin_publishing(ledger: Ledger, run_id: str) -> bool:
    """Take the step after which the run can no longer be cancelled; False when it was cancelled before."""
    ledger.hold_lease()
    with ledger.writing() as session:
        taken = session.execute(
            update(NightRun)
            .where(NightRun.run_id == run_id, NightRun.status != "cancelled")
            .values(figures=NightRun.figures.op("||")({"publishing": True}))
            .returning(NightRun.run_id)
        )
        return taken.one_or_none() is not None


@waits_out
def mark_drawn(ledger: Ledger, run_id: str, figures: dict[str, Any], report_key: str | None) -> None:
    """Record that a trial is over and nobody is shown its posters."""
    with ledger.writing() as session:
        session.execute(
            update(NightRun)
            .where(NightRun.run_id == run_id, NightRun.status != "cancelled")
            .values(status="drawn", error=None, finished_at=func.now(), figures=figures, report_key=report_key)
        )


@waits_out
def get_by_id(ledger: Ledger, run_id: str) -> NightRun | None:
    """The run with that id."""
    with ledger.reading() as session:
        return session.get(NightRun, run_id)


@waits_out
def read_others(ledger: Ledger, run: NightRun) -> dict[str, str]:
    """Other runs of the same date with their status."""
    with ledger.reading() as session:
        rows = session.execute(
            select(NightRun.run_id, NightRun.status)
            .where(NightRun.logical_date == run.logical_date, NightRun.run_id != run.run_id)
            .order_by(NightRun.started_at)
        )
        return {str(run_id): str(status) for run_id, status in rows}


@waits_out
def find_open(ledger: Ledger) -> NightRun | None:
    """The latest run that is not finished, nights before trials; else the latest not announced."""
    query = (
        select(NightRun)
        .where(NightRun.status.in_(_UNFINISHED))
        .order_by((NightRun.scope == EVERYBODY).desc(), NightRun.logical_date.desc(), NightRun.run_id)
        .limit(1)
    )
    with ledger.reading() as session:
        run = session.scalar(query)
        last = session.scalar(select(func.max(NightRun.logical_date)))
    if run is not None or last is None:
        return run
    waiting = [run for run in read_unannounced_runs(ledger, last) if ledger.read_unannounced(run.run_id, page=1)]
    return waiting[-1] if waiting else None


@waits_out
def read_unannounced_runs(ledger: Ledger, until: date) -> list[NightRun]:
    """Published runs of the days up to a date whose announcement did not end, oldest first."""
    with ledger.reading() as session:
        return list(
            session.scalars(
                select(NightRun)
                .where(
                    NightRun.status == "published",
                    NightRun.manifest_key.is_not(None),
                    text("NOT night_runs.figures ? 'announced'"),
                    NightRun.logical_date.between(until - timedelta(days=ANNOUNCE_DAYS), until),
                )
                .order_by(NightRun.logical_date, NightRun.started_at)
            )
        )


@waits_out
def mark_run_announced(ledger: Ledger, run_id: str, outcome: str) -> None:
    """Record that nothing of the run is left to announce: all was, or readers are led to a later night."""
    with ledger.writing() as session:
        session.execute(
            update(NightRun)
            .where(NightRun.run_id == run_id)
            .values(figures=NightRun.figures.op("||")({"announced": outcome}))
        )


@waits_out
def save_session(ledger: Ledger, run_id: str, figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Add the figures of one process's drawing to the run's; returns those of all that drew for it.

    `figures` holds "started_at", by which the same figures are recognised.
    """
    with ledger.writing() as session:
        run = session.get_one(NightRun, run_id, with_for_update=True)
        others = [one for one in run.figures.get("sessions", []) if one["started_at"] != figures["started_at"]]
        sessions: list[dict[str, Any]] = [*others, figures]
        run.figures = {**run.figures, "sessions": sessions}
        return sessions


@waits_out
def count_pending(ledger: Ledger, run_id: str) -> int:
    """Tasks that would be drawn; those of users to be erased are not."""
    with ledger.reading() as session:
        query = select(func.count()).where(
            NightTask.run_id == run_id, NightTask.status == "pending", NightTask.user_id.not_in(ledger.users_to_erase())
        )
        return session.scalar(query) or 0


@waits_out
def count_posters(ledger: Ledger, run_id: str) -> int:
    """Posters of the run's finished tasks, whichever run drew them first."""
    drawn = (
        (NightTask.user_id == Poster.user_id)
        & (NightTask.item_id == Poster.item_id)
        & (NightTask.input_fingerprint == Poster.input_fingerprint)
        & (NightTask.model_version == Poster.model_version)
    )
    with ledger.reading() as session:
        query = select(func.count()).select_from(NightTask).join(Poster, drawn)
        return session.scalar(query.where(NightTask.run_id == run_id, NightTask.status == "done")) or 0


@waits_out
def read_drawers(ledger: Ledger, run_id: str) -> list[tuple[str, int]]:
    """Model versions that the run's tasks are drawn by, with the numbers of their adapters in Triton."""
    with ledger.reading() as session:
        rows = session.execute(
            select(NightTask.model_version, NightTask.adapter_version)
            .where(NightTask.run_id == run_id, NightTask.status.in_(("pending", "failed")))
            .distinct()
            .order_by(NightTask.adapter_version)
        )
        return [(version, number) for version, number in rows]


@waits_out
def read_rates(ledger: Ledger) -> Rates:
    """Sums over the sessions of the last published nights that drew something."""
    with ledger.reading() as session:
        figures = session.scalars(
            select(NightRun.figures)
            .where(NightRun.status == "published", text("night_runs.figures ? 'sessions'"))
            .order_by(NightRun.logical_date.desc())
            .limit(RATE_NIGHTS)
        ).all()
    sessions = [one for night in figures for one in night["sessions"] if one.get("tasks")]
    return Rates(
        len(figures),
        sum(one["tasks"] for one in sessions),
        sum(one.get("pictures_drawn", 0) for one in sessions),
        sum(one["seconds"] for one in sessions),
    )
