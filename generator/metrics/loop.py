"""Model versions, the canary, the click model and pairs, as samples."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from generator.metrics import names
from schemas.runtime.metrics import Samples
from schemas.settings import Settings
from schemas.tables import ClickModel, ModelEvent, ModelVersion, PreferenceSnapshot

DAY_SECONDS = 86_400.0


def read(session: Session, settings: Settings, now: datetime) -> Samples:
    """What is known of the loop."""
    for state, count in session.execute(select(ModelVersion.state, func.count()).group_by(ModelVersion.state)):
        yield names.VERSIONS, (state,), count
    for state, count in session.execute(select(ModelEvent.to_state, func.count()).group_by(ModelEvent.to_state)):
        yield names.CHANGES, (state,), count
    yield names.CHAMPION, (), session.scalar(select(ModelVersion.number).where(ModelVersion.state == "champion")) or 0
    yield from _canary(session, settings.canary.max_days, now)
    until = session.scalar(select(func.max(ClickModel.window_end)).where(ClickModel.state == "active"))
    if until is not None:
        yield names.CLICK_MODEL_AGE, (), (now - until).total_seconds()
    newest = select(PreferenceSnapshot).order_by(PreferenceSnapshot.created_at.desc()).limit(1)
    snapshot = session.scalars(newest).first()
    if snapshot is not None:
        yield names.PAIRS, ("train",), snapshot.train_pairs
        yield names.PAIRS, ("holdout",), snapshot.holdout_pairs
        yield names.SNAPSHOT, (), snapshot.created_at.timestamp()


def _canary(session: Session, max_days: float, now: datetime) -> Samples:
    began = session.scalar(
        select(func.max(ModelEvent.at))
        .join(ModelVersion, ModelVersion.version == ModelEvent.version)
        .where(ModelVersion.state == "canary", ModelEvent.to_state == "canary")
    )
    seconds = (now - began).total_seconds() if began else 0.0
    if began:
        yield names.CANARY_AGE, (), seconds
    yield names.CANARY_OVERDUE, (), max(0.0, seconds - max_days * DAY_SECONDS)
