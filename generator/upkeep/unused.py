"""Retention of pictures and poster files that no poster has, and of objects that no row names.

Pictures and compositions are looked at in the order in which they were last used, from where the last call came to: each once
after its last use. Whoever deletes posters marks their pictures as used, so that they are looked at again.
Objects are compared with the tables a sixteenth of the bucket at a time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text

from generator.storage.objects import Entry
from generator.upkeep.batches import Upkeep
from generator.upkeep.unused_files import delete_file
from schemas.manifest_files import art_key, poster_key

PAGE = 500
HEX = "0123456789abcdef"

_TABLES = {"pictures": ("picture_key", "art_key"), "compositions": ("composition_key", "image_key")}
_OLDEST = {
    name: text(f"""
SELECT x.{key} AS key, x.{file} AS file, x.last_used_at,
       x.{file} IS NOT NULL AND EXISTS (SELECT FROM posters p WHERE p.{file} = x.{file}
                                        OR p.renditions @> jsonb_build_array(jsonb_build_object('image_key', x.{file}))) AS used
FROM {name} x
WHERE x.last_used_at < :before AND (x.last_used_at, x.{key}) > (:until, :after)
ORDER BY x.last_used_at, x.{key} LIMIT {PAGE}
""")  # noqa: S608 - our own words
    for name, (key, file) in _TABLES.items()
}
_ROW = {
    "pictures": text(
        "DELETE FROM pictures WHERE picture_key = :key AND art_key IS NULL AND last_used_at < :before "
        "AND (status = 'refused' OR coalesce(claimed_until, '-infinity') < :before) RETURNING 1"
    ),
    "compositions": text(
        "DELETE FROM compositions WHERE composition_key = :key AND image_key IS NULL AND last_used_at < :before RETURNING 1"
    ),
}
_NAMED = text("""
SELECT key FROM unnest(CAST(:keys AS text[])) AS one (key)
WHERE EXISTS (SELECT FROM pictures x WHERE x.art_key = one.key)
   OR EXISTS (SELECT FROM compositions x WHERE x.image_key = one.key)
   OR EXISTS (SELECT FROM posters p WHERE p.image_key = one.key)
   OR EXISTS (SELECT FROM posters p WHERE p.art_key = one.key)
   OR EXISTS (SELECT FROM posters p WHERE p.renditions @> jsonb_build_array(jsonb_build_object('image_key', one.key)))
""")


def drop_unused(upkeep: Upkeep, name: str) -> None:
    """Delete pictures or compositions that no poster has, with their files.

    `name`: the table, "pictures" or "compositions".
    """
    before = upkeep.before(upkeep.settings.retention.unused_days)
    until = upkeep.get_progress(name).until or datetime(1970, 1, 1, tzinfo=UTC)
    after = ""
    while True:
        with upkeep.ledger.reading() as session:
            rows = session.execute(_OLDEST[name], {"before": before, "until": until, "after": after}).all()
        if not rows:
            return
        for row in rows:
            upkeep.removed[name] += not row.used and _drop(upkeep, name, row, before)
        until, after = rows[-1].last_used_at, rows[-1].key
        # A moment before: what was used at the same moment may be on the next page.
        upkeep.save_progress(name, until=until - timedelta(microseconds=1))


def _drop(upkeep: Upkeep, name: str, row: Any, before: datetime) -> bool:
    if upkeep.dry_run:
        return True
    if row.file is not None:
        return delete_file(upkeep.store, upkeep.ledger, row.file, last_used_before=before)
    with upkeep.ledger.writing() as session:
        return bool(session.execute(_ROW[name], {"key": row.key, "before": before}).all())


def drop_orphans(upkeep: Upkeep) -> None:
    """Delete old posters and pictures in the bucket that no row names, in the next slices of the bucket."""
    place = upkeep.get_progress("orphans").place
    first = (HEX.index(place) + 1) % len(HEX) if place else 0
    for step in range(upkeep.settings.retention.orphan_slices):
        digit = HEX[(first + step) % len(HEX)]
        for prefix in (art_key(digit).removesuffix(".png"), poster_key(digit).removesuffix(".webp")):
            for page in upkeep.store.pages(prefix):
                _drop_orphans(upkeep, page)
        upkeep.save_progress("orphans", place=digit)


def _drop_orphans(upkeep: Upkeep, page: list[Entry]) -> None:
    before = upkeep.before(upkeep.settings.retention.orphan_days)
    old = [entry.key for entry in page if entry.modified_at < before]
    orphans = sorted(set(old) - _named(upkeep, old))
    upkeep.removed["orphans"] += len(orphans)
    for key in orphans if not upkeep.dry_run else ():
        _drop_orphan(upkeep, key)


def _drop_orphan(upkeep: Upkeep, key: str) -> None:
    """Delete an object, unless a night names it meanwhile.

    Such a night has found it there and does not store it: it is put back.
    """
    stored = upkeep.store.get(key)
    upkeep.store.delete(key)
    if stored is not None and _named(upkeep, [key]):
        upkeep.store.create_content(key, stored.body, "image/png" if key.endswith(".png") else "image/webp")
        upkeep.removed["orphans"] -= 1


def _named(upkeep: Upkeep, keys: list[str]) -> set[str]:
    with upkeep.ledger.reading() as session:
        return set(session.scalars(_NAMED, {"keys": keys})) if keys else set()
