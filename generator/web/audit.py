"""The audit log: each change is written down before it is tried, then what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from generator.storage.postgres import plain_errors
from generator.web import metrics
from schemas.errors import InputError, PigeonError, Refused
from schemas.tables import AuditEntry

LONGEST_DETAIL = 2_000
"""Characters of what was said that are kept."""


@dataclass(frozen=True)
class Change:
    """What somebody asks for."""

    actor: str
    client: str
    action: str
    subject: str
    reason: str


def audited(engine: Engine, change: Change, work: Callable[[], str]) -> str:
    """Do the work between two writes of the log; returns what the work says.

    Raises:
        InputError: no reason was given.
        ServerUnavailable: the log cannot be written; nothing was done.
        PigeonError: as the work does; the log has it.
    """
    if len(change.reason.strip()) < 3:
        raise InputError("reason: say why, for whoever looks later")
    audit_id = _start(engine, change)
    outcome, detail = "failed", "an unexpected error"
    try:
        detail = work()
        outcome = "done"
    except PigeonError as error:
        outcome = "refused" if isinstance(error, Refused | InputError) else "failed"
        detail = str(error)
        raise
    finally:
        metrics.AUDITED.labels(change.action, outcome).inc()
        _end(engine, audit_id, outcome, detail)
    return detail


def read_page(engine: Engine, before: int | None, limit: int) -> list[AuditEntry]:
    """Entries before an id, the newest first."""
    query = select(AuditEntry).order_by(AuditEntry.audit_id.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.audit_id < before)
    with plain_errors(engine), Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(query))


def _start(engine: Engine, change: Change) -> int:
    entry = AuditEntry(
        actor=change.actor,
        client=change.client,
        action=change.action,
        subject=change.subject,
        reason=change.reason.strip(),
        outcome="started",
    )
    with plain_errors(engine), Session(engine, expire_on_commit=False) as session, session.begin():
        session.add(entry)
        session.flush()
        return entry.audit_id


def _end(engine: Engine, audit_id: int, outcome: str, detail: str) -> None:
    values = {"outcome": outcome, "detail": detail[:LONGEST_DETAIL], "ended_at": func.now()}
    with plain_errors(engine), Session(engine) as session, session.begin():
        session.execute(update(AuditEntry).where(AuditEntry.audit_id == audit_id).values(values))
