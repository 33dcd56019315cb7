"""Tables of the night: runs, tasks, posters, what was taken back, how far upkeep is, and who leads."""

from __future__ import annotations

from datetime import date, datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Ints, Json, Key, Now, Object, Timestamp


class NightRun(Base):
    """One night, keyed by its logical date and scope.

    `scope` is "all" for the night itself; a run for some users ("trial-...") never stands in for it, and ends as "drawn" when
    its posters are shown to nobody.
    The plan's inputs are frozen in `settings`, the outcome is in `figures`; `skipped` counts by reason what the plan left out
    without a row in `night_skips`: users and targets that are as an earlier plan left them. `retired_at` is when upkeep deleted
    what the run had replaced (generator/upkeep/replaced.py).
    """

    __tablename__ = "night_runs"
    __table_args__ = (
        CheckConstraint("status in ('planned', 'running', 'published', 'failed', 'cancelled', 'drawn')", name="status"),
        UniqueConstraint("logical_date", "scope"),
    )

    run_id: Mapped[Key]
    logical_date: Mapped[date]
    scope: Mapped[str] = mapped_column(server_default="all")
    status: Mapped[str]
    model_version: Mapped[str]
    settings: Mapped[Object]
    skipped: Mapped[Object]
    figures: Mapped[Object]
    fencing_token: Mapped[int]
    started_at: Mapped[Now]
    finished_at: Mapped[datetime | None]
    manifest_key: Mapped[str | None]
    manifest_sha256: Mapped[str | None]
    report_key: Mapped[str | None]
    error: Mapped[str | None]
    retired_at: Mapped[datetime | None]


class NightTask(Base):
    """One (user, item) to draw; all that its pictures depend on is frozen here at plan time.

    `weights` is the hash of the base checkpoint and the adapter that answer (`model_version` is only their name);
    `answers_fingerprint` that part of the input which answers depend on: with the weights it names the task's `answer_sets`.
    `prompt` names the pictures and texts (generator/nightly/frozen_prompt.py); their visual tokens join it when it is drawn.
    `candidates` is a JSON array of every picture that was considered with its scores and, when it was not kept, why.
    """

    __tablename__ = "night_tasks"
    __table_args__ = (
        CheckConstraint("status in ('pending', 'done', 'refused', 'failed')", name="status"),
        Index("ix_night_tasks_run_id_status", "run_id", "status"),
        Index("ix_night_tasks_user_id_item_id", "user_id", "item_id"),
    )

    run_id: Mapped[Key] = mapped_column(ForeignKey("night_runs.run_id", ondelete="CASCADE"))
    user_id: Mapped[Key]
    item_id: Mapped[Key]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    reason: Mapped[str | None]
    input_fingerprint: Mapped[str]
    model_version: Mapped[str]
    weights: Mapped[str] = mapped_column(server_default="")
    answers_fingerprint: Mapped[str] = mapped_column(server_default="")
    adapter_version: Mapped[int]
    seed: Mapped[int]
    prompt: Mapped[Object]
    candidates: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    seconds: Mapped[float | None]
    finished_at: Mapped[datetime | None]


class NightSkip(Base):
    """A user or target that the plan left out when it looked at the user, with its reason.

    When the reason is `unchanged`, fingerprint and weights tell which earlier posters become current again. Whatever is as an
    earlier plan left it has no row: it is counted in `NightRun.skipped`.
    """

    __tablename__ = "night_skips"

    run_id: Mapped[Key] = mapped_column(ForeignKey("night_runs.run_id", ondelete="CASCADE"))
    user_id: Mapped[Key]
    item_id: Mapped[Key] = mapped_column(server_default="")
    reason: Mapped[str]
    input_fingerprint: Mapped[str | None]
    model_version: Mapped[str | None]
    weights: Mapped[str | None]


class Poster(Base):
    """A variant that a user can be shown.

    Its id is derived from (user, item, model, variant, input, picture), so doing it again gives the same row.
    `picture_key` names the picture, which other users may share (none in rows of the release before); `explored` tells a
    variant that was chosen to learn from apart from the best one, `choice_propensity` with which probability it was chosen.

    `look` is what near-duplicates are found by (generator/nightly/select.py); `renditions` lists further sizes
    ({"width", "height", "image_key", "image_sha256"}); `withheld` says why a kept variant is not in the manifest;
    `shown_again_at` is when it last became current again after it had been replaced.
    """

    __tablename__ = "posters"
    __table_args__ = (
        Index("ix_posters_user_id_item_id", "user_id", "item_id"),
        Index("ix_posters_run_id", "run_id"),
        Index("ix_posters_item_id_poster_id", "item_id", "poster_id"),
        Index("ix_posters_picture_key", "picture_key"),
        Index("ix_posters_image_key", "image_key"),
        Index("ix_posters_art_key", "art_key"),
        Index(
            "ix_posters_renditions",
            "renditions",
            postgresql_using="gin",
            postgresql_ops={"renditions": "jsonb_path_ops"},
        ),
    )

    poster_id: Mapped[Key]
    run_id: Mapped[str] = mapped_column(ForeignKey("night_runs.run_id", ondelete="CASCADE"))
    user_id: Mapped[str]
    item_id: Mapped[str]
    variant: Mapped[int]
    input_fingerprint: Mapped[str]
    model_version: Mapped[str]
    alpha: Mapped[float]
    seed: Mapped[int]
    tokens: Mapped[Ints]
    weights: Mapped[str] = mapped_column(server_default="")
    picture_key: Mapped[str | None]
    explored: Mapped[bool] = mapped_column(server_default=text("false"))
    choice_propensity: Mapped[float] = mapped_column(server_default=text("1"))
    art_key: Mapped[str]
    art_sha256: Mapped[str]
    image_key: Mapped[str]
    image_sha256: Mapped[str]
    width: Mapped[int]
    height: Mapped[int]
    renditions: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    look: Mapped[str]
    cs: Mapped[float]
    cis_reference: Mapped[float]
    cis_history: Mapped[float]
    score: Mapped[float]
    propensity: Mapped[float]
    safety: Mapped[str]
    synthetic: Mapped[bool] = mapped_column(server_default=text("false"))
    withheld: Mapped[str | None]
    created_at: Mapped[Now]
    announced_at: Mapped[datetime | None]
    shown_again_at: Mapped[datetime | None]


class CurrentPosters(Base):
    """Which task's posters a user is shown for an item: the latest that was done.

    What the manifest is written from.
    """

    __tablename__ = "current_posters"
    __table_args__ = (Index("ix_current_posters_logical_date", "logical_date"),)

    user_id: Mapped[Key]
    item_id: Mapped[Key]
    input_fingerprint: Mapped[str]
    model_version: Mapped[str]
    weights: Mapped[str]
    run_id: Mapped[str]
    logical_date: Mapped[date]


class ScheduleMoment(Base):
    """A moment at which a job was due: done when its work is done, else tried again within the deadline."""

    __tablename__ = "schedule_moments"
    __table_args__ = (CheckConstraint("status in ('running', 'waiting', 'done', 'gave_up')", name="status"),)

    job: Mapped[Key]
    moment: Mapped[Key]
    status: Mapped[str]
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    due_at: Mapped[Timestamp]
    next_try_at: Mapped[datetime | None]
    error: Mapped[str | None]
    token: Mapped[int]
    updated_at: Mapped[Now]


class Withdrawal(Base):
    """What an operator took back: no reader shows it and no later night publishes it until it is lifted."""

    __tablename__ = "withdrawals"
    __table_args__ = (
        CheckConstraint("kind in ('poster', 'picture', 'item', 'user', 'night')", name="kind"),
        Index("ix_withdrawals_kind_subject", "kind", "subject"),
    )

    withdrawal_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    subject: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Now]
    lifted_at: Mapped[datetime | None]


class UserObjection(Base):
    """A user who objects to drawn posters (or no longer does); an objection is not an erasure."""

    __tablename__ = "user_objections"

    user_id: Mapped[Key]
    objects: Mapped[bool]
    occurred_at: Mapped[Timestamp]
    reason: Mapped[str | None]
    updated_at: Mapped[Now]


class UpkeepProgress(Base):
    """How far upkeep has come with what it looks through piece by piece.

    `until`: what was last used before it was looked at; `place`: the piece of the bucket that was looked at last.
    """

    __tablename__ = "upkeep_progress"

    kind: Mapped[Key]
    until: Mapped[datetime | None]
    place: Mapped[str | None]
    updated_at: Mapped[Now]


class Lease(Base):
    """Who leads (night, scheduler, retrain, erasure, upkeep).

    `token` only grows: a write with an older one is refused.
    """

    __tablename__ = "leases"

    name: Mapped[Key]
    holder: Mapped[str]
    token: Mapped[int]
    acquired_at: Mapped[Now]
