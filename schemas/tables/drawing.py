"""Tables of what is drawn for whomever: catalogue pictures, answers, drawn pictures, poster files."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, Index, LargeBinary, text
from sqlalchemy.orm import Mapped, mapped_column

from schemas.tables.base import Base, Floats, Ints, Key, Now, Timestamp


class ImageFeature(Base):
    """A catalogue picture's visual tokens and scorer embedding, made once per picture and model."""

    __tablename__ = "image_features"

    image_sha256: Mapped[Key]
    tokenizer_version: Mapped[Key]
    tokens: Mapped[Ints]
    embedding: Mapped[Floats]
    created_at: Mapped[Now]


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
    `safety` is "unchecked", "safe", "unsafe" or "cleared" (by a person); `unsafe_score`, of `safety_model`, is from 0 to 1.
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
    safety_model: Mapped[str | None]
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
