"""Tables of what the last plan saw of each user and item."""

from __future__ import annotations

from datetime import date

from sqlalchemy import Index, Sequence, text
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Key, Object, Texts, Timestamp

PLAN_NUMBERS = Sequence("plan_numbers", metadata=Base.metadata)


class PlannedUser(Base):
    """What a user's last plan was made from, so that an unchanged user costs no row and no download.

    `history_fingerprint` is that of `user_histories`, `targets_fingerprint` a hash of the recommendations,
    `drawing_fingerprint` one of the weights and of all settings that the user's tasks depend on. `items` are the items that were
    looked at: the user is planned again when one of them has changed since `plan_number` (`PlannedItem.changed_in`).
    `targets` and `skipped` (counts by reason) are what that plan came to, for the figures of nights that leave the user out.
    `run_id` is the run whose tasks are not drawn and published yet; without one the row can be relied on.
    """

    __tablename__ = "planned_users"
    __table_args__ = (
        Index("ix_planned_users_run_id_user_id", "run_id", "user_id", postgresql_where=text("run_id IS NOT NULL")),
    )

    user_id: Mapped[Key]
    history_fingerprint: Mapped[str]
    targets_fingerprint: Mapped[str]
    drawing_fingerprint: Mapped[str]
    planned_at: Mapped[Timestamp]
    plan_number: Mapped[int] = mapped_column(server_default=text("0"))
    logical_date: Mapped[date] = mapped_column(server_default=text("'infinity'::date"))
    run_id: Mapped[str | None]
    items: Mapped[Texts]
    targets: Mapped[int] = mapped_column(server_default=text("0"))
    skipped: Mapped[Object]


class PlannedItem(Base):
    """An item as plans saw it last, its picture included.

    `changed_in` is the number of the plan that found it changed. Plans are numbered by the sequence `plan_numbers`.
    """

    __tablename__ = "planned_items"

    item_id: Mapped[Key]
    fingerprint: Mapped[str]
    changed_in: Mapped[int] = mapped_column(server_default=text("0"))
