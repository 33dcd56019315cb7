"""Deletion of poster and picture files: whoever deletes and whoever uses lock the same rows."""

from __future__ import annotations

from sqlalchemy import delete, select

from generator.nightly.ledger import Ledger
from generator.storage.objects import Store
from schemas.errors import PigeonError
from schemas.tables import Composition, Picture, Poster


def delete_file(store: Store, ledger: Ledger, key: str, *, user_id: str) -> bool:
    """Delete a file with its picture or composition, unless other users than `user_id` have it.

    A task that wants the picture meanwhile waits for us and finds that it must be drawn again.

    Returns:
        Whether it is deleted.

    Raises:
        PigeonError: it is still there after its deletion.
    """
    with ledger.writing() as session:
        session.execute(select(Picture.picture_key).where(Picture.art_key == key).with_for_update())
        session.execute(select(Composition.composition_key).where(Composition.image_key == key).with_for_update())
        named = (Poster.image_key == key) | (Poster.art_key == key) | Poster.renditions.contains([{"image_key": key}])
        if session.scalar(select(Poster.poster_id).where(Poster.user_id != user_id, named).limit(1)) is not None:
            return False
        session.execute(delete(Picture).where(Picture.art_key == key))
        session.execute(delete(Composition).where(Composition.image_key == key))
        store.delete(key)
        if store.exists(key):
            raise PigeonError(f"erasure failed: {key} is still there after its deletion; run it again")
    return True
