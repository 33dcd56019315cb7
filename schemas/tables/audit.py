"""The table of what people changed at the console."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Now


class AuditEntry(Base):
    """A change that somebody asked for at the console.

    Written before it is tried, and completed with what became of it.

    `outcome` is "started" for one whose process died in the middle: whether it was made, only what it changes can tell.
    """

    __tablename__ = "audit_entries"
    __table_args__ = (CheckConstraint("outcome in ('started', 'done', 'refused', 'failed')", name="outcome"),)

    audit_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[Now]
    actor: Mapped[str]
    client: Mapped[str]
    """The address that it came from."""
    action: Mapped[str]
    subject: Mapped[str]
    reason: Mapped[str]
    outcome: Mapped[str]
    detail: Mapped[str | None]
    """What was said to the person."""
    ended_at: Mapped[datetime | None]
