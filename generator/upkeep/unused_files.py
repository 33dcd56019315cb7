"""Deletion of poster and picture files: whoever deletes and whoever uses lock the same rows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.storage.objects import Store
from schemas.errors import PigeonError
from schemas.faultpoints import reach
from schemas.tables import Composition, ImageFeature, Picture, Poster


def delete_file(
    store: Store,
    ledger: Ledger,
    key: str,
    *,
    user_id: str | None = None,
    last_used_before: datetime | None = None,
) -> bool:
    """Delete a file with its picture or composition, unless posters have it.

    Those of `user_id` do not count. With `last_used_before` it also stays when a row says that it was used, or is being drawn, since then.

    A task that wants the picture meanwhile waits for us and finds that it must be drawn again.

    Returns:
        Whether it is deleted.

    Raises:
        PigeonError: it is still there after its deletion.
    """
    with ledger.writing() as session:
        drawn = session.execute(
            select(Picture.last_used_at, Picture.claimed_until).where(Picture.art_key == key).with_for_update()
        ).all()
        composed = session.execute(
            select(Composition.last_used_at).where(Composition.image_key == key).with_for_update()
        ).all()
        used_at = [moment for row in (*drawn, *composed) for moment in row if moment is not None]
        if last_used_before is not None and any(moment >= last_used_before for moment in used_at):
            return False
        if is_used(session, key, but_by=user_id):
            return False
        hashes = session.scalars(delete(Picture).where(Picture.art_key == key).returning(Picture.art_sha256)).all()
        if user_id is not None:  # what histories that name it would need may stay, of a user who is erased it may not
            session.execute(delete(ImageFeature).where(ImageFeature.image_sha256.in_(hashes)))
        session.execute(delete(Composition).where(Composition.image_key == key))
        store.delete(key)
        reach("file deleted")
        if store.exists(key):
            raise PigeonError(f"{key} is still there after its deletion; run it again")
    return True


def is_used(session: Session, key: str, *, but_by: str | None = None) -> bool:
    """Whether a poster has this file, of another user than `but_by`."""
    query = select(Poster.poster_id).where(or_(*naming(key))).limit(1)
    if but_by is not None:
        query = query.where(Poster.user_id != but_by)
    return session.scalar(query) is not None


def naming(key: str) -> tuple[Any, Any, Any]:
    """Conditions of posters that have a file; each of them has an index."""
    return (Poster.image_key == key, Poster.art_key == key, Poster.renditions.contains([{"image_key": key}]))
