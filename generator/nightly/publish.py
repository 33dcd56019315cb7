"""Publishing: manifest and items, then the pointer's flip; readers see the old set or the new one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from generator.nightly.ledger import Ledger
from generator.nightly.manifest_rows import ManifestRows
from generator.storage.objects import Store
from schemas.errors import InputError, ServerUnavailable
from schemas.faultpoints import reach
from schemas.manifest import (
    ITEM_SCHEMA,
    POINTER_KEY,
    POSTER_SCHEMA,
    ManifestRef,
    Pointer,
    items_key,
    manifest_key,
    to_parquet,
)
from schemas.tables import Item, NightRun

PARQUET = "application/vnd.apache.parquet"
FLIP_ATTEMPTS = 10


def store_manifest(store: Store, ledger: Ledger, run: NightRun, manifest_rows: ManifestRows) -> ManifestRef:
    """Write the set of `run`; no pointer leads to it yet."""
    day = run.logical_date.isoformat()
    about = {"run_id": run.run_id, "logical_date": day}
    manifest = to_parquet((row.columns() for row in manifest_rows.rows), POSTER_SCHEMA, **about)
    items = to_parquet(_items(ledger), ITEM_SCHEMA, **about)
    return ManifestRef(
        run_id=run.run_id,
        logical_date=day,
        manifest_key=create_revision(store, manifest_key(day, run.run_id), manifest),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        items_key=create_revision(store, items_key(day, run.run_id), items),
        items_sha256=hashlib.sha256(items).hexdigest(),
        posters=len(manifest_rows.rows),
        model_version=run.model_version,
    )


def create_revision(store: Store, key: str, body: bytes) -> str:
    """Store Parquet under `key`, or beside it where `key` has other content; returns the key used.

    Other content is there when an attempt died before its pointer and the catalogue or an erasure has changed the set since;
    the file beside it is named by its own content.
    """
    try:
        store.create(key, body, PARQUET)
    except FileExistsError:
        key = f"{key.removesuffix('.parquet')}.{hashlib.sha256(body).hexdigest()[:12]}.parquet"
        store.create(key, body, PARQUET)
    return key


def flip(store: Store, ledger: Ledger, ref: ManifestRef, token: int) -> bool:
    """Lead readers to `ref`; False when they are led to a later night, which stays.

    Raises:
        LockHeld: another process has taken the night over.
        ServerUnavailable: others keep changing the pointer.
    """

    def change(old: Pointer | None) -> Pointer | None:
        if old and old.current == ref:
            return old
        if old and old.current.logical_date > ref.logical_date:
            return None
        previous = old.current if old and old.current.run_id != ref.run_id else old.previous if old else None
        return Pointer(ref, previous, token, datetime.now(UTC).isoformat(timespec="seconds"))

    return replace_pointer(store, ledger, change) is not None


def replace_pointer(store: Store, ledger: Ledger, change: Callable[[Pointer | None], Pointer | None]) -> Pointer | None:
    """Replace the pointer by `change(pointer)` with If-Match; None from `change` leaves it.

    Returns what `change` returned last. The lease is checked between reading the tag and writing: a replaced leader is
    stopped by the one or by the other.

    Raises:
        InputError: the pointer is not readable.
        LockHeld: another process has taken the night over.
        ServerUnavailable: S3 or Postgres is away, or others keep changing the pointer.
    """
    for _ in range(FLIP_ATTEMPTS):
        stored = store.get(POINTER_KEY)
        try:
            old = Pointer.parse(stored.body) if stored else None
        except ValueError as error:
            raise InputError(f"s3://{store.bucket}/{POINTER_KEY}: {error}; move it away to start over") from error
        new = change(old)
        if new is None or new == old:
            return new
        with ledger.writing():
            pass
        if store.replace(POINTER_KEY, new.to_json(), "application/json", etag=stored.etag if stored else None):
            reach("pointer flipped")
            return new
    raise ServerUnavailable(f"s3://{store.bucket}/{POINTER_KEY} kept changing under us; try again")


def _items(ledger: Ledger) -> list[dict[str, Any]]:
    """The catalogue's own images, the reader's last fallback."""
    with ledger.reading() as session:
        rows = session.execute(
            select(Item.item_id, Item.image_uri).where(Item.deleted_at.is_(None)).order_by(Item.item_id.collate("C"))
        )
        return [{"item_id": item_id, "image_uri": image_uri} for item_id, image_uri in rows]
