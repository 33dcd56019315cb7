"""Tables that the consumers fill from Kafka."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Json, Key, Now, Object, Texts, Timestamp


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
    """A user's last N items, newest first, so that the night reads one row per user.

    `entries` is a JSON array of {"event_id", "item_id", "kind", "occurred_at"}, the newest positive interaction with each item;
    `fingerprint` is a hash of its event ids.
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
        Index(
            "ix_poster_feedback_reactions", "user_id", "occurred_at", postgresql_where=text("action <> 'impression'")
        ),
    )

    event_id: Mapped[UUID] = mapped_column(primary_key=True)
    poster_id: Mapped[str]
    user_id: Mapped[str]
    item_id: Mapped[str]
    action: Mapped[str]
    position: Mapped[int | None]
    surface: Mapped[str | None]
    propensity: Mapped[float | None]
    request_id: Mapped[str | None]
    occurred_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    ingested_at: Mapped[Now]


class Erasure(Base):
    """A user to erase.

    What came from Kafka goes in the consumer's transaction, what nights made by generator/upkeep/erase.py.
    """

    __tablename__ = "erasures"
    __table_args__ = (Index("ix_erasures_open", "user_id", postgresql_where=text("completed_at IS NULL")),)

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


class IndexedDeadLetter(Base):
    """What is known of a record of a dead-letter topic; the topic keeps the record itself.

    Written in the transaction of the consumer that sent it, and read from the topic where that consumer died in between.
    A row goes when its record has left the topic. `topic_id` distinguishes a recreated topic.
    """

    __tablename__ = "dead_letters"
    __table_args__ = (
        Index(
            "ix_dead_letters_written_at",
            *("written_at", "topic", "partition", "offset"),
            postgresql_where=text("closed_at IS NULL"),
        ),
        Index("ix_dead_letters_source_source_timestamp", "source", "source_timestamp"),
        Index("ix_dead_letters_user_ids", "user_ids", postgresql_using="gin"),
    )

    topic: Mapped[Key]
    topic_id: Mapped[Key]
    partition: Mapped[int] = mapped_column(primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True)
    source: Mapped[str]
    """TOPIC/PARTITION/OFFSET that the record was read at; with `source_timestamp` what all copies have in common."""
    source_timestamp: Mapped[int]
    """Milliseconds; -1 where none is known."""
    reason: Mapped[str]
    detail: Mapped[str]
    user_ids: Mapped[Texts]
    """Users that key and value name, as far as they can be read."""
    written_at: Mapped[Timestamp]
    closed_at: Mapped[datetime | None]
    """Set by those who write `dead_letter_actions`, which decides."""


class DeadLetterMark(Base):
    """How far a partition of a dead-letter topic was read into `dead_letters`."""

    __tablename__ = "dead_letter_marks"

    topic: Mapped[Key]
    topic_id: Mapped[Key]
    partition: Mapped[int] = mapped_column(primary_key=True)
    next_offset: Mapped[int]
    checked_at: Mapped[Now]
