"""The table `click_models`: which was fitted, how it was judged, and which one the nights choose by.

Each change is one transaction; a partial unique index allows one active model. `get_` and `list_` functions read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session

from schemas.click_model import ClickModel as Fitted
from schemas.errors import Refused
from schemas.tables import ClickModel

# Taken for the length of each changing transaction: numbers are unique and two activations cannot interleave.
_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('pigeon:click_models', 0))")


def get_active(session: Session) -> ClickModel | None:
    """The model that nights choose by."""
    return session.scalars(select(ClickModel).where(ClickModel.state == "active")).one_or_none()


def list_models(session: Session) -> Sequence[ClickModel]:
    """All models, oldest first."""
    return session.scalars(select(ClickModel).order_by(ClickModel.number)).all()


def record(
    session: Session,
    model: Fitted,
    state: Literal["active", "refused"],
    reason: str,
    window: tuple[datetime, datetime],
    metrics: Mapping[str, Any],
    counts: Mapping[str, int],
) -> ClickModel:
    """Write a judged model; an active one replaces the one before. The same model again changes nothing."""
    session.execute(_LOCK)
    found = session.get(ClickModel, model.model_id)
    if found is not None:
        return found
    number = 1 + (session.scalar(select(func.max(ClickModel.number))) or 0)
    if state == "active":
        _retire(session, f"replaced by click model {number}")
    made = ClickModel(
        model_id=model.model_id,
        number=number,
        state=state,
        reason=reason,
        base_weights=model.base_weights,
        artifact=model.pack(),
        window_start=window[0],
        window_end=window[1],
        metrics=dict(metrics),
        counts=dict(counts),
    )
    session.add(made)
    session.flush()
    return made


def retire(session: Session, reason: str) -> int:
    """Retire the active model; returns its number.

    The next night chooses by the model's own preference.

    Raises:
        Refused: none is active.
    """
    session.execute(_LOCK)
    number = _retire(session, reason)
    if number is None:
        raise Refused("no click model is active: nights choose by the model's own preference already")
    return number


def _retire(session: Session, reason: str) -> int | None:
    changed = update(ClickModel).where(ClickModel.state == "active").returning(ClickModel.number)
    found: int | None = session.scalar(changed.values(state="retired", reason=reason, updated_at=func.now()))
    return found
