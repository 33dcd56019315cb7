"""Taking users out of stored sets.

Clean copies come first, beside what has the users, then the pointer's flip; then the old files go.
Readers that are at work on an old file keep it open until they refresh. The files of a run whose set is being written are left
alone: its flip would lead to files that are gone. They are edited when the set is there.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import update

from generator.nightly.ledger import Ledger
from generator.nightly.manifest_writer import sha256_of
from generator.nightly.publish import replace_pointer
from generator.storage.objects import Store
from schemas.faultpoints import reach
from schemas.manifest import ManifestRef, Pointer, ShardRef, from_parquet, to_parquet
from schemas.manifest_files import ARROW, JSON, POSTER_SCHEMA_V1, shard_key
from schemas.manifest_shards import SHARD_SCHEMA, Shard, shard_of, stable_hashes, write_shard
from schemas.tables import NightRun

PARQUET = "application/vnd.apache.parquet"

_SHARD = re.compile(r"manifests/([^/]+)/([^/]+)/(\d{4})-of-(\d{4})\.[0-9a-f]+\.arrow")
_SET = re.compile(r"manifests/[^/]+/[^/]+/set\.[0-9a-f]+\.json")


def remove_users(
    store: Store, ledger: Ledger, users: Iterable[str], work: Path, leave: Collection[str] = ()
) -> dict[str, list[str]]:
    """Rewrite every set without the users; the keys of the sets that had each.

    Those of the runs `leave` stay as they are. Files of a night that was killed before its flip are among them.

    Raises:
        LockHeld: another process has taken the night over.
        InputError, ServerUnavailable: of S3 and Postgres; repeating it finishes the work.
    """
    gone = sorted(set(users))
    had: dict[str, list[str]] = {user: [] for user in gone}
    old_keys: list[str] = []
    refs: dict[str, ManifestRef] = {}
    shards, found = _clean_shards(store, gone, work, leave)
    old_keys += shards
    for key, ref in _sets(store):
        hit = [shard.key for shard in ref.shards if shard.key in shards]
        if not hit:
            continue
        clean, body = ManifestRef.of_set(
            run_id=ref.run_id,
            logical_date=ref.logical_date,
            model_version=ref.model_version,
            shards=tuple(shards.get(shard.key, shard) for shard in ref.shards),
            items=ShardRef(ref.items_key, ref.items_sha256, 0, ref.items_bytes),
        )
        store.create(clean.manifest_key, body, JSON)
        refs[key] = clean
        old_keys.append(key)
        for user in {user for shard in hit for user in found[shard]}:
            had[user].append(key)
    for key, clean, there in _clean_parquet(store, gone):
        refs[key] = clean
        old_keys.append(key)
        for user in there:
            had[user].append(key)
    reach("clean copies stored")
    _lead_to(store, ledger, refs)
    # Sets before their shards: what dies in between leaves shards, which the next call finds.
    for key in reversed(old_keys):
        store.delete(key)
    return had


def users_left(store: Store, users: Iterable[str], work: Path) -> set[str]:
    """Those of the users that a manifest in the bucket still has."""
    names = sorted(set(users))
    left = {user for _, _, there in _shards_with(store, names, work) for user in there}
    for _, table in _parquet(store):
        left |= set(pc.unique(table["user_id"]).to_pylist()) & set(names)
    return left


def _clean_shards(
    store: Store, users: list[str], work: Path, leave: Collection[str]
) -> tuple[dict[str, ShardRef], dict[str, set[str]]]:
    """Write a clean copy of each shard that has one of the users.

    Returns by the old key the copy, and which of the users were there.
    """
    copies: dict[str, ShardRef] = {}
    found: dict[str, set[str]] = {}
    for key, shard, there in _shards_with(store, users, work, leave):
        day, run_id, index, count = _parts(key)
        rows = pa.Table.from_batches([shard.rows])
        clean = rows.filter(pc.invert(pc.is_in(rows["user_id"], value_set=pa.array(sorted(there)))))
        with tempfile.TemporaryDirectory(dir=work, prefix="erase-") as folder:
            path = Path(folder) / "shard.arrow"
            write_shard(clean.replace_schema_metadata(SHARD_SCHEMA.metadata), path, run_id=run_id, logical_date=day)
            sha256 = sha256_of(path)
            copy = ShardRef(shard_key(day, run_id, index, count, sha256), sha256, len(clean), path.stat().st_size)
            store.create_file(copy.key, path, ARROW, sha256=sha256)
        copies[key], found[key] = copy, there
    return copies, found


def _shards_with(
    store: Store, users: list[str], work: Path, leave: Collection[str] = ()
) -> Iterator[tuple[str, Shard, set[str]]]:
    """Shards that have one of the users, with those; only shards whose number fits a user's hash are read."""
    hashes = stable_hashes(users)
    for key in list(store.keys("manifests/")):
        if not _SHARD.fullmatch(key):
            continue
        _, run_id, index, count = _parts(key)
        if run_id in leave:
            continue
        mine = [number for number, place in enumerate(shard_of(hashes, count).tolist()) if place == index]
        stored = store.get(key) if mine else None
        if stored is None:
            continue
        with tempfile.TemporaryFile(dir=work) as file:
            file.write(stored.body)
            file.flush()
            shard = Shard(file.fileno(), SHARD_SCHEMA)
        spans = {users[number]: shard.span(np.uint64(hashes[number]), users[number]) for number in mine}
        there = {user for user, (start, end) in spans.items() if start < end}
        if there:
            yield key, shard, there


def _parts(key: str) -> tuple[str, str, int, int]:
    """Date, run, number and count of a shard's key."""
    found = _SHARD.fullmatch(key)
    assert found is not None  # noqa: S101 - callers looked
    return found[1], found[2], int(found[3]), int(found[4])


def _sets(store: Store) -> Iterator[tuple[str, ManifestRef]]:
    for key in list(store.keys("manifests/")):
        stored = store.get(key) if _SET.fullmatch(key) else None
        if stored:
            yield key, ManifestRef.parse_set(key, stored.body)


def _parquet(store: Store) -> Iterator[tuple[str, pa.Table]]:
    """Sets of version 1."""
    for key in list(store.keys("manifests/")):
        if key.endswith(".parquet") and ".items." not in key:
            stored = store.get(key)
            if stored:
                yield key, from_parquet(stored.body, POSTER_SCHEMA_V1)


def _clean_parquet(store: Store, users: list[str]) -> Iterator[tuple[str, ManifestRef, set[str]]]:
    """Write a clean copy of each set of version 1 that has one of the users.

    Only what changes is filled in.
    """
    names = pa.array(users, pa.string())
    for key, table in _parquet(store):
        hit = pc.is_in(table["user_id"], value_set=names)
        if not pc.any(hit).as_py():
            continue
        clean = table.filter(pc.invert(hit))
        about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        body = to_parquet(clean.to_pylist(), POSTER_SCHEMA_V1, **about)
        sha256 = hashlib.sha256(body).hexdigest()
        stem = key.removesuffix(".parquet").split(".")[0]
        ref = ManifestRef("", "", f"{stem}.{sha256[:12]}.parquet", sha256, "", "", len(clean), "")
        store.create(ref.manifest_key, body, PARQUET)
        yield key, ref, set(pc.unique(table.filter(hit)["user_id"]).to_pylist())


def _lead_to(store: Store, ledger: Ledger, refs: dict[str, ManifestRef]) -> None:
    """Lead the pointer, and the runs' rows, from the old sets to the clean ones."""
    if not refs:
        return

    def clean_ref(ref: ManifestRef) -> ManifestRef:
        clean = refs.get(ref.manifest_key)
        if clean is None:
            return ref
        names = ("manifest_key", "manifest_sha256", "posters", "shards")
        return replace(ref, **{name: getattr(clean, name) for name in names})

    def change(old: Pointer | None) -> Pointer | None:
        if old is None:
            return None
        return replace(old, current=clean_ref(old.current), previous=clean_ref(old.previous) if old.previous else None)

    replace_pointer(store, ledger, change)
    for key, clean in refs.items():
        with ledger.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.manifest_key == key)
                .values(manifest_key=clean.manifest_key, manifest_sha256=clean.manifest_sha256)
            )
