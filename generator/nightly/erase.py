"""Erasure and retention of what the nights keep.

Both lead the night's lease, so no night runs at the same time. A request (table `erasures`) is completed when the user is
in no manifest that readers or we could open, in no image that is not another user's as well, in no report and in no row of
ours; the row's `proof` says what was done and checked. Images go before rows, so an erasure that dies on the way starts
again and misses nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.publish import PARQUET, replace_pointer
from generator.nightly.unused_files import delete_file
from generator.nightly.wording import counted
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import PigeonError
from schemas.manifest import POINTER_KEY, POSTER_SCHEMA, ManifestRef, Pointer, from_parquet, to_parquet
from schemas.settings import Settings
from schemas.tables import AnswerSet, Erasure, NightRun, NightSkip, NightTask, Poster


@dataclass
class _Proof:
    """What was done for one user."""

    rows: dict[str, int] = field(default_factory=dict)
    pictures_deleted: int = 0
    pictures_shared_with_others: int = 0
    manifests_rewritten: list[str] = field(default_factory=list)
    reports_deleted: list[str] = field(default_factory=list)


@contextmanager
def _leading(settings: Settings) -> Iterator[tuple[Store, Ledger]]:
    engine = connect(settings.database)
    store = Store(settings.s3)
    try:
        with lead(engine, "night") as lease:
            yield store, Ledger(engine, lease)
    finally:
        engine.dispose()
        store.s3.close()


def erase_users(settings: Settings) -> str:
    """Complete every open erasure request; returns a line with the numbers.

    Raises:
        LockHeld: a night is under way; the next upkeep erases.
        PigeonError: a trace is left after all; nothing is marked as completed.
    """
    with _leading(settings) as (store, ledger):
        with ledger.reading() as session:
            users = list(session.scalars(select(Erasure.user_id).where(Erasure.completed_at.is_(None))))
        if not users:
            return "erasure: no open requests"
        proofs = {user: _Proof() for user in users}
        _clean_manifests(store, ledger, proofs)
        for user, proof in proofs.items():
            _clean_reports(store, ledger, user, proof)
            _clean_images(store, ledger, user, proof)
        left = _users_in_manifests(store) & set(users)
        if left:
            raise PigeonError(f"erasure failed: still in a manifest: {counted(len(left), 'user')}; run it again")
        for user, proof in proofs.items():
            _clean_rows(ledger, user, proof)
        images = sum(proof.pictures_deleted for proof in proofs.values())
        manifests = len({key for proof in proofs.values() for key in proof.manifests_rewritten})
        return (
            f"erasure: {counted(len(users), 'user')} erased, {counted(images, 'image')} deleted, "
            f"{counted(manifests, 'manifest')} rewritten"
        )


def drop_old_manifests(settings: Settings) -> str:
    """Delete sets and reports of all but the newest `night.keep_manifests` nights.

    What the pointer leads to stays. Returns a line with the numbers.
    """
    with _leading(settings) as (store, _):
        keys = [key for key in store.keys("manifests/") if key != POINTER_KEY]
        nights = sorted({key.split("/")[1] for key in keys}, reverse=True)
        old = set(nights[settings.night.keep_manifests :])
        pointer = _pointer(store)
        held = {ref.logical_date for ref in (pointer.current, pointer.previous) if ref} if pointer else set()
        doomed = [key for key in keys if key.split("/")[1] in old - held]
        for key in doomed:
            store.delete(key)
        return (
            f"manifests: {counted(len(nights), 'night')} found, {counted(len(doomed), 'object')} of older ones deleted"
        )


def _pointer(store: Store) -> Pointer | None:
    stored = store.get(POINTER_KEY)
    return Pointer.parse(stored.body) if stored else None


def _manifests(store: Store) -> Iterator[tuple[str, pa.Table]]:
    for key in store.keys("manifests/"):
        if key.endswith(".parquet") and ".items." not in key:
            stored = store.get(key)
            if stored:
                yield key, from_parquet(stored.body, POSTER_SCHEMA)


def _users_in_manifests(store: Store) -> set[str]:
    return {user for _, table in _manifests(store) for user in pc.unique(table["user_id"]).to_pylist()}


def _clean_manifests(store: Store, ledger: Ledger, proofs: dict[str, _Proof]) -> None:
    """Put copies without the users beside the sets that have them, flip the pointer, delete those."""
    users = pa.array(sorted(proofs))
    copies: dict[str, tuple[str, str, int]] = {}
    for key, table in _manifests(store):
        hit = pc.is_in(table["user_id"], value_set=users)
        if not pc.any(hit).as_py():
            continue
        clean = table.filter(pc.invert(hit))
        about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        body = to_parquet(clean.to_pylist(), POSTER_SCHEMA, **about)
        sha = hashlib.sha256(body).hexdigest()
        stem = key.removesuffix(".parquet").split(".")[0]
        copies[key] = (f"{stem}.{sha[:12]}.parquet", sha, len(clean))
        store.create(copies[key][0], body, PARQUET)
        for user in pc.unique(table.filter(hit)["user_id"]).to_pylist():
            proofs[user].manifests_rewritten.append(key)

    def clean_ref(ref: ManifestRef) -> ManifestRef:
        if ref.manifest_key not in copies:
            return ref
        new_key, sha, posters = copies[ref.manifest_key]
        return replace(ref, manifest_key=new_key, manifest_sha256=sha, posters=posters)

    def change(old: Pointer | None) -> Pointer | None:
        if old is None:
            return None
        previous = clean_ref(old.previous) if old.previous else None
        return replace(old, current=clean_ref(old.current), previous=previous)

    if copies:
        replace_pointer(store, ledger, change)
    for old_key, (new_key, sha, _) in copies.items():
        with ledger.writing() as session:
            session.execute(
                update(NightRun)
                .where(NightRun.manifest_key == old_key)
                .values(manifest_key=new_key, manifest_sha256=sha)
            )
        store.delete(old_key)


def _clean_reports(store: Store, ledger: Ledger, user: str, proof: _Proof) -> None:
    """Delete the reports of nights that drew for the user: they show the user's posters."""
    with ledger.reading() as session:
        runs = session.execute(
            select(NightRun.run_id, NightRun.report_key)
            .join(NightTask, NightTask.run_id == NightRun.run_id)
            .where(NightTask.user_id == user, NightRun.report_key.is_not(None))
            .distinct()
        ).all()
    for run_id, key in runs:
        if key is None:
            continue
        store.delete(key)
        with ledger.writing() as session:
            session.execute(update(NightRun).where(NightRun.run_id == run_id).values(report_key=None))
        proof.reports_deleted.append(key)


def _clean_images(store: Store, ledger: Ledger, user: str, proof: _Proof) -> None:
    with ledger.reading() as session:
        mine = _keys(session, Poster.user_id == user)
    for key in sorted(mine):
        deleted = delete_file(store, ledger, key, user_id=user)
        proof.pictures_deleted += deleted
        proof.pictures_shared_with_others += not deleted


def _keys(session: Session, *where: Any) -> set[str]:
    rows = session.execute(select(Poster.image_key, Poster.art_key, Poster.renditions).where(*where))
    return {
        key
        for image_key, art_key, renditions in rows
        for key in (image_key, art_key, *(rendition["image_key"] for rendition in renditions))
    }


def _clean_rows(ledger: Ledger, user: str, proof: _Proof) -> None:
    """Delete the rows and complete the request, in one transaction."""
    with ledger.writing() as session:
        for table in (AnswerSet, Poster, NightTask, NightSkip):
            gone = session.execute(delete(table).where(table.user_id == user).returning(table.user_id))
            proof.rows[table.__tablename__] = len(gone.all())
        # A night that was asked for by name keeps no names of erased users.
        session.execute(
            text(
                "UPDATE night_runs SET settings = jsonb_set(settings, '{scope,users}', "
                "(settings #> '{scope,users}') - CAST(:user AS text)) "
                "WHERE jsonb_typeof(settings #> '{scope,users}') = 'array' AND settings #> '{scope,users}' ? :user"
            ),
            {"user": user},
        )
        session.execute(
            update(Erasure)
            .where(Erasure.user_id == user)
            .values(
                completed_at=func.now(),
                proof=Erasure.proof.op("||")({"night": {**proof.__dict__, "at": datetime.now(UTC).isoformat()}}),
            )
        )
