"""Every Postgres table; Alembic's migrations (migrations/) are checked for drift against this file.

`interactions` is partitioned by month of `occurred_at`; its partitions are made by migrations and upkeep, not here.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Any, ClassVar
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, REAL, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]
Key = Annotated[str, mapped_column(Text, primary_key=True)]
Timestamp = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True))]
# Time of the row's last write, by the database's clock, so that all members agree.
Now = Annotated[datetime, mapped_column(TIMESTAMP(timezone=True), server_default=text("now()"))]
Texts = Annotated[list[str], mapped_column(ARRAY(Text), server_default=text("'{}'"))]
Ints = Annotated[list[int], mapped_column(ARRAY(BigInteger))]
Floats = Annotated[list[float], mapped_column(ARRAY(REAL))]
Object = Annotated[Json, mapped_column(JSONB, server_default=text("'{}'::jsonb"))]


class Base(DeclarativeBase):
    """Declarative base with a naming convention, so that every constraint has a name migrations can use."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        datetime: TIMESTAMP(timezone=True),
        int: BigInteger,
        float: REAL,
    }


# --- data in (consumers) -------------------------------------------------------------------------------------------------


class ConsumerOffset(Base):
    """The next offset to read of a partition, and the epoch of the member that owns it (fencing)."""

    __tablename__ = "consumer_offsets"

    group_id: Mapped[Key]
    topic: Mapped[Key]
    partition: Mapped[int] = mapped_column(primary_key=True)
    next_offset: Mapped[int]
    owner: Mapped[str]
    owner_epoch: Mapped[int]
    topic_id: Mapped[str | None]
    updated_at: Mapped[Now]


class Item(Base):
    """The catalogue; a deleted item keeps its row, so that histories and posters still resolve."""

    __tablename__ = "items"

    item_id: Mapped[Key]
    title: Mapped[str]
    description: Mapped[str] = mapped_column(server_default="")
    genres: Mapped[Texts]
    image_uri: Mapped[str | None]
    attributes: Mapped[Object]
    occurred_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    updated_at: Mapped[Now]


class Interaction(Base):
    """The full log of what users did, partitioned by month of `occurred_at`.

    An event dated in the future is stored under the time it came in; `claimed_at` then keeps what it said.
    """

    __tablename__ = "interactions"
    __table_args__ = (
        Index("ix_interactions_user_id_occurred_at", "user_id", "occurred_at"),
        {"postgresql_partition_by": "RANGE (occurred_at)"},
    )

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    occurred_at: Mapped[Timestamp] = mapped_column(primary_key=True)
    user_id: Mapped[str]
    item_id: Mapped[str]
    kind: Mapped[str]
    context: Mapped[Object]
    claimed_at: Mapped[datetime | None]
    ingested_at: Mapped[Now]


class UserHistory(Base):
    """A user's last N positive interactions, newest first, so that the night reads one row per user.

    `entries` is a JSON array of {"event_id", "item_id", "kind", "occurred_at"}; `fingerprint` is a hash of its event ids.
    """

    __tablename__ = "user_histories"

    user_id: Mapped[Key]
    entries: Mapped[list[Json]] = mapped_column(JSONB, server_default=text("'[]'::jsonb"))
    fingerprint: Mapped[str]
    interaction_count: Mapped[int]
    last_occurred_at: Mapped[datetime]
    updated_at: Mapped[Now]


class Recommendation(Base):
    """What the recommender will show a user, best first; the night's targets."""

    __tablename__ = "recommendations"

    user_id: Mapped[Key]
    item_ids: Mapped[Texts]
    occurred_at: Mapped[datetime]
    updated_at: Mapped[Now]


class PosterFeedback(Base):
    """What users did with posters.

    `poster_id` is not a foreign key, because feedback may outlive or precede our row.
    """

    __tablename__ = "poster_feedback"
    __table_args__ = (
        Index("ix_poster_feedback_occurred_at", "occurred_at"),
        Index("ix_poster_feedback_user_id_item_id", "user_id", "item_id"),
    )

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    poster_id: Mapped[str]
    user_id: Mapped[str]
    item_id: Mapped[str]
    action: Mapped[str]
    position: Mapped[int | None]
    surface: Mapped[str | None]
    propensity: Mapped[float | None]
    occurred_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    ingested_at: Mapped[Now]


class Erasure(Base):
    """A user to erase: rows go in the consumer's transaction, images and manifests in the night's upkeep."""

    __tablename__ = "erasures"

    user_id: Mapped[Key]
    requested_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]
    proof: Mapped[Object]


class DeadLetterAction(Base):
    """A dead letter that somebody dealt with; one without a row here is still open.

    `topic_id` distinguishes a recreated topic.
    """

    __tablename__ = "dead_letter_actions"
    __table_args__ = (CheckConstraint("action in ('replayed', 'dropped')", name="action"),)

    topic: Mapped[Key]
    topic_id: Mapped[Key]
    partition: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    at: Mapped[Now]


# --- the night -----------------------------------------------------------------------------------------------------------


class ImageFeature(Base):
    """A catalogue picture's visual tokens and scorer embedding, made once per picture and model."""

    __tablename__ = "image_features"

    image_sha256: Mapped[Key]
    tokenizer_version: Mapped[Key]
    tokens: Mapped[Ints]
    embedding: Mapped[Floats]
    created_at: Mapped[Now]


class NightRun(Base):
    """One night, keyed by its logical date and scope.

    `scope` is "all" for the night itself; a run for some users ("trial-...") never stands in for it, and ends as "drawn" when
    its posters are shown to nobody.
    The plan's inputs are frozen in `settings`, the outcome is in `figures`.
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
    figures: Mapped[Object]
    fencing_token: Mapped[int]
    started_at: Mapped[Now]
    finished_at: Mapped[datetime | None]
    manifest_key: Mapped[str | None]
    manifest_sha256: Mapped[str | None]
    report_key: Mapped[str | None]
    error: Mapped[str | None]


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
    """A user or target that the plan left out, with its reason: nothing is dropped without being counted.

    When the reason is `unchanged`, fingerprint and weights tell which earlier posters stay current.
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
    ({"width", "height", "image_key", "image_sha256"}); `withheld` says why a kept variant is not in the manifest.
    """

    __tablename__ = "posters"
    __table_args__ = (
        Index("ix_posters_user_id_item_id", "user_id", "item_id"),
        Index("ix_posters_run_id", "run_id"),
        Index("ix_posters_picture_key", "picture_key"),
        Index("ix_posters_image_key", "image_key"),
        Index("ix_posters_art_key", "art_key"),
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


class AnswerSet(Base):
    """The answers that were sampled for a task, packed by schemas/answers.py.

    For as long as retraining looks back.

    Tasks that differ only in how answers are chosen, drawn or composed share one: see `NightTask.answers_fingerprint`.
    """

    __tablename__ = "answer_sets"
    __table_args__ = (Index("ix_answer_sets_created_at", "created_at"),)

    user_id: Mapped[Key]
    item_id: Mapped[Key]
    answers_fingerprint: Mapped[Key]
    weights: Mapped[Key]
    answers: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Now]


class Picture(Base):
    """A picture drawn from an answer's codes, for all users and items that have this answer.

    `picture_key` names no user and no item.

    A row is claimed before it is drawn: `claim_token` fences the claimant, `claimed_until` frees the row of a dead one.
    `reason` says why a refused picture is shown to nobody; `look` is what near-duplicates are found by.
    """

    __tablename__ = "pictures"
    __table_args__ = (
        CheckConstraint("status in ('claimed', 'drawn', 'refused')", name="status"),
        Index("ix_pictures_last_used_at", "last_used_at"),
        Index("ix_pictures_art_key", "art_key"),
    )

    picture_key: Mapped[Key]
    drawing_version: Mapped[str]
    tokens: Mapped[Ints]
    status: Mapped[str]
    claim_owner: Mapped[str | None]
    claim_token: Mapped[int] = mapped_column(server_default=text("0"))
    claimed_until: Mapped[datetime | None]
    art_key: Mapped[str | None]
    art_sha256: Mapped[str | None]
    look: Mapped[str | None]
    embedding: Mapped[Floats | None]
    reason: Mapped[str | None]
    safety: Mapped[str] = mapped_column(server_default="unchecked")
    unsafe_score: Mapped[float | None]
    created_at: Mapped[Now]
    last_used_at: Mapped[Now]


class Composition(Base):
    """A poster file: a picture with a title at a size, made once for everybody.

    `reason` says why there is none.
    """

    __tablename__ = "compositions"
    __table_args__ = (
        Index("ix_compositions_picture_key", "picture_key"),
        Index("ix_compositions_last_used_at", "last_used_at"),
        Index("ix_compositions_image_key", "image_key"),
    )

    composition_key: Mapped[Key]
    picture_key: Mapped[str]
    image_key: Mapped[str | None]
    image_sha256: Mapped[str | None]
    width: Mapped[int]
    height: Mapped[int]
    reason: Mapped[str | None]
    created_at: Mapped[Now]
    last_used_at: Mapped[Now]


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


class PlannedUser(Base):
    """What a user's last plan was made from, so that an unchanged user costs no row and no download."""

    __tablename__ = "planned_users"

    user_id: Mapped[Key]
    history_fingerprint: Mapped[str]
    targets_fingerprint: Mapped[str]
    drawing_fingerprint: Mapped[str]
    planned_at: Mapped[Timestamp]


class CatalogImage(Base):
    """What is known of the picture at an address, so that a night asks only whether it has changed.

    `changed_at` is when its bytes last became others; `problem` why it cannot be used (a property of the picture, never an outage).
    """

    __tablename__ = "catalog_images"
    __table_args__ = (Index("ix_catalog_images_changed_at", "changed_at"),)

    uri: Mapped[Key]
    sha256: Mapped[str | None]
    etag: Mapped[str | None]
    last_modified: Mapped[str | None]
    problem: Mapped[str | None]
    checked_at: Mapped[Timestamp]
    changed_at: Mapped[Timestamp]


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
    updated_at: Mapped[Now]


class Lease(Base):
    """Who leads (night, scheduler, retrain). `token` only grows: a write with an older one is refused."""

    __tablename__ = "leases"

    name: Mapped[Key]
    holder: Mapped[str]
    token: Mapped[int]
    acquired_at: Mapped[Now]


# --- the loop ------------------------------------------------------------------------------------------------------------


class PreferenceSnapshot(Base):
    """An immutable set of preference pairs in S3; its id is the hash of its content."""

    __tablename__ = "preference_snapshots"

    snapshot_id: Mapped[Key]
    key: Mapped[str]
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    train_pairs: Mapped[int]
    holdout_pairs: Mapped[int]
    counts: Mapped[Object]
    created_at: Mapped[Now]


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
    """The history of a model version's states, each with its reason."""

    __tablename__ = "model_events"
    __table_args__ = (Index("ix_model_events_version", "version"),)

    event_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    version: Mapped[str] = mapped_column(ForeignKey("model_versions.version"))
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    at: Mapped[Now]
