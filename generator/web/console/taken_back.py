"""Withdrawals and erasures for the console."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, select

from generator.web.console.sessions import reading
from schemas.events import Erasure as ErasureEvent
from schemas.tables import Erasure, Withdrawal


@dataclass(frozen=True)
class Erased:
    """A request to erase a user, with its proof."""

    user_id: str
    requested_at: datetime
    completed_at: datetime | None
    proof: str
    """JSON, for people."""


def read_withdrawals(engine: Engine, before: int | None, limit: int, *, only_open: bool) -> list[Withdrawal]:
    """Withdrawals before an id, the newest first."""
    query = select(Withdrawal).order_by(Withdrawal.withdrawal_id.desc()).limit(limit)
    if before is not None:
        query = query.where(Withdrawal.withdrawal_id < before)
    if only_open:
        query = query.where(Withdrawal.lifted_at.is_(None))
    with reading(engine) as session:
        return list(session.scalars(query))


def read_erasures(engine: Engine, user_id: str | None, after: str | None, limit: int) -> list[Erased]:
    """Requests by user id; with `user_id` only that user's."""
    query = select(Erasure).order_by(Erasure.user_id).limit(limit)
    if user_id:
        query = query.where(Erasure.user_id == user_id)
    if after:
        query = query.where(Erasure.user_id > after)
    with reading(engine) as session:
        return [
            Erased(row.user_id, row.requested_at, row.completed_at, json.dumps(row.proof, indent=1, default=str))
            for row in session.scalars(query)
        ]


def erasure_of(user_id: str) -> ErasureEvent:
    """The event that asks for an erasure of all that the user did until now."""
    return ErasureEvent(user_id=user_id, occurred_at=datetime.now(UTC))
