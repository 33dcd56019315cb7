"""Tables of the feedback loop: snapshots of pairs, click models, model versions and their history."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Key, Now, Object, Timestamp


class PreferenceSnapshot(Base):
    """An immutable set of preference pairs in S3; its id is the hash of its content.

    `created_at` is when its pairs were read. A row without an object is one whose writer died, or whose users were erased.
    """

    __tablename__ = "preference_snapshots"

    snapshot_id: Mapped[Key]
    key: Mapped[str]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    train_pairs: Mapped[int]
    holdout_pairs: Mapped[int]
    counts: Mapped[Object]
    created_at: Mapped[Now]


class PreferenceSnapshotUser(Base):
    """A user with pairs in a snapshot; the row goes when the user is erased."""

    __tablename__ = "preference_snapshot_users"
    __table_args__ = (Index("ix_preference_snapshot_users_user_id", "user_id"),)

    snapshot_id: Mapped[Key] = mapped_column(ForeignKey("preference_snapshots.snapshot_id", ondelete="CASCADE"))
    user_id: Mapped[Key]


class ClickModel(Base):
    """A click model that was judged; its id is the hash of its artifact (schemas/click_model.py).

    At most one is active: the nights choose by it. A refused one keeps its figures and why; `base_weights` names the checkpoint
    whose previews it reads.
    """

    __tablename__ = "click_models"
    __table_args__ = (
        CheckConstraint("state in ('refused', 'active', 'retired')", name="state"),
        Index("uq_click_models_one_active", "state", unique=True, postgresql_where=text("state = 'active'")),
    )

    model_id: Mapped[Key]
    number: Mapped[int] = mapped_column(unique=True)
    state: Mapped[str]
    reason: Mapped[str]
    base_weights: Mapped[str]
    artifact: Mapped[bytes] = mapped_column(LargeBinary)
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    metrics: Mapped[Object]
    counts: Mapped[Object]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]


class ModelVersion(Base):
    """A model that serves or might.

    `number` is the version folder of the adapter in Triton: 1 is the checkpoint as shipped, below 0 belongs to an earlier checkpoint.
    """

    __tablename__ = "model_versions"
    __table_args__ = (
        CheckConstraint(
            "state in ('registered', 'refused', 'loaded', 'canary', 'champion', 'retired', 'failed')", name="state"
        ),
        Index("uq_model_versions_one_champion", "state", unique=True, postgresql_where=text("state = 'champion'")),
        Index("uq_model_versions_one_canary", "state", unique=True, postgresql_where=text("state = 'canary'")),
    )

    version: Mapped[Key]
    number: Mapped[int] = mapped_column(unique=True)
    state: Mapped[str]
    parent: Mapped[str | None]
    base_sha256: Mapped[str]
    adapter_key: Mapped[str | None]
    adapter_sha256: Mapped[str | None]
    snapshot_id: Mapped[str | None] = mapped_column(ForeignKey("preference_snapshots.snapshot_id"))
    metrics: Mapped[Object]
    created_at: Mapped[Now]
    updated_at: Mapped[Now]


class ModelEvent(Base):
    """The history of a model version's states, each with its reason.

    Events that change no state say what a canary was found to be.

    `figures`: the numbers that the reason rests on.
    """

    __tablename__ = "model_events"
    __table_args__ = (Index("ix_model_events_version", "version"),)

    event_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    version: Mapped[str] = mapped_column(ForeignKey("model_versions.version"))
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Now]
    figures: Mapped[Object]


class ModelOverride(Base):
    """Somebody's decision that a refused version may serve after all, until a time."""

    __tablename__ = "model_overrides"
    __table_args__ = (Index("ix_model_overrides_version", "version"),)

    override_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    version: Mapped[str] = mapped_column(ForeignKey("model_versions.version"))
    by: Mapped[str]
    reason: Mapped[str]
    at: Mapped[Now]
    expires_at: Mapped[Timestamp]
