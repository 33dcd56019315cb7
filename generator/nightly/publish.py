"""Publishing: shards and items, then the pointer's flip; readers see the old set or the new one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.manifest_images import NamedImages
from generator.nightly.manifest_rows import ManifestCounts, count_pairs, item_pages, manifest_pages
from generator.nightly.manifest_writer import ShardSpool, WrittenShard, shards_for, write_items
from generator.nightly.policies import exploration_of
from generator.storage.objects import Store
from schemas.errors import InputError, ServerUnavailable
from schemas.faultpoints import reach
from schemas.manifest import POINTER_KEY, ManifestRef, Pointer, ShardRef
from schemas.manifest_files import ARROW, JSON, set_items_key, shard_key
from schemas.settings import Settings
from schemas.tables import NightRun

FLIP_ATTEMPTS = 10


@dataclass(frozen=True)
class StoredManifest:
    """A set in the bucket that nobody is led to yet."""

    ref: ManifestRef
    counts: ManifestCounts


def store_manifest(store: Store, ledger: Ledger, run: NightRun, settings: Settings) -> StoredManifest:
    """Write the set of `run` without leading anybody to it; the same rows give the same keys and bytes.

    Files are spooled under `state_dir`, which needs room for the rows; memory is that of one shard.

    Raises:
        ImagesMissing: an image that the set names is not in the bucket.
    """
    day = run.logical_date.isoformat()
    about = {"run_id": run.run_id, "logical_date": day}
    work = settings.state_dir / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix="manifest-") as name:
        folder = Path(name)
        spool, items, counts = _spool(store, ledger, run, settings, folder)

        def stored(shard: WrittenShard, key: str) -> ShardRef:
            store.create_file(key, shard.path, ARROW, sha256=shard.sha256)
            return ShardRef(key, shard.sha256, shard.rows, shard.bytes)

        shards = tuple(
            stored(shard, shard_key(day, run.run_id, shard.index, spool.shards, shard.sha256))
            for shard in spool.write(**about)
        )
        ref, body = ManifestRef.of_set(
            run_id=run.run_id,
            logical_date=day,
            model_version=run.model_version,
            shards=shards,
            items=stored(items, set_items_key(day, run.run_id, items.sha256)),
        )
        store.create(ref.manifest_key, body, JSON)
    return StoredManifest(ref, counts)


def _spool(
    store: Store, ledger: Ledger, run: NightRun, settings: Settings, folder: Path
) -> tuple[ShardSpool, WrittenShard, ManifestCounts]:
    """Spool all rows of one snapshot of the tables, and look for every image that they name."""
    counts = ManifestCounts()
    images = NamedImages(folder)
    try:
        with ledger.reading() as session:
            spool = ShardSpool(folder, shards_for(count_pairs(session) * settings.night.variants))
            for page in manifest_pages(session, ledger, run.run_id, exploration_of(settings.night), counts):
                spool.add(page)
                images.add(image_keys(page))
            items = write_items(
                item_pages(session), folder, run_id=run.run_id, logical_date=run.logical_date.isoformat()
            )
        images.check(store)
    finally:
        images.close()
    return spool, items, counts


def image_keys(rows: pa.Table) -> set[str]:
    """Every image that rows of POSTER_SCHEMA name."""
    others = pc.struct_field(pc.list_flatten(rows["renditions"]), "image_key")
    return {key for column in (rows["image_key"], others) for key in pc.unique(column).to_pylist()}


def flip(
    store: Store, ledger: Ledger, ref: ManifestRef, token: int, guard: Callable[[Session], None] = lambda session: None
) -> bool:
    """Lead readers to `ref`; False when they are led to a later night, which stays.

    `guard` is called where the lease is checked.

    Raises:
        LockHeld: another process has taken the night over, or the guard refuses.
        ServerUnavailable: others keep changing the pointer.
    """

    def change(old: Pointer | None) -> Pointer | None:
        if old and old.current == ref:
            return old
        if old and old.current.logical_date > ref.logical_date:
            return None
        previous = old.current if old and old.current.run_id != ref.run_id else old.previous if old else None
        return Pointer(ref, previous, token, datetime.now(UTC).isoformat(timespec="seconds"))

    return replace_pointer(store, ledger, change, guard) is not None


def replace_pointer(
    store: Store,
    ledger: Ledger | None,
    change: Callable[[Pointer | None], Pointer | None],
    guard: Callable[[Session], None] = lambda session: None,
) -> Pointer | None:
    """Replace the pointer by `change(pointer)` with If-Match; None from `change` leaves it.

    Returns what `change` returned last. The lease is checked between reading the tag and writing: a replaced leader is
    stopped by the one or by the other; `guard` is called there, too. Without a ledger the tag alone decides.

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
            raise InputError(f"{store.uri(POINTER_KEY)}: {error}; move it away to start over") from error
        new = change(old)
        if new is None or new == old:
            return new
        if ledger is not None:
            with ledger.writing() as session:
                guard(session)
        if store.replace(POINTER_KEY, new.to_json(), "application/json", etag=stored.etag if stored else None):
            reach("pointer flipped")
            return new
    raise ServerUnavailable(f"{store.uri(POINTER_KEY)} kept changing under us; try again")
