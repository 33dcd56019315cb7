"""Erasure and retention of what the nights keep.

Both lead the night's lease, so no night runs at the same time. A request (table `erasures`) is completed when the user is
in no manifest that readers or we could open, in no image that is not another user's as well, in no report and in no row of
ours; the row's `proof` says what was done and checked. Images go before rows, so an erasure that dies on the way starts
again and misses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.manifest_edit import remove_users, users_left
from generator.nightly.online_store import forget
from generator.nightly.unused_files import delete_file
from generator.nightly.withdraw import read_pointer, sync_withdrawn
from generator.nightly.wording import counted
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import PigeonError
from schemas.settings import Settings
from schemas.tables import (
    AnswerSet,
    CurrentPosters,
    Erasure,
    NightRun,
    NightSkip,
    NightTask,
    PlannedUser,
    Poster,
    Withdrawal,
)

_DATED = re.compile(r"manifests/\d{4}-\d{2}-\d{2}/")


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
        work = settings.state_dir / "work"
        work.mkdir(parents=True, exist_ok=True)
        for user, keys in remove_users(store, ledger, users, work).items():
            proofs[user].manifests_rewritten += keys
        if settings.online.redis_url:
            forget(settings, users)
        for user, proof in proofs.items():
            _clean_reports(store, ledger, user, proof)
            _clean_images(store, ledger, user, proof)
        left = users_left(store, users, work)
        if left:
            raise PigeonError(f"erasure failed: still in a manifest: {counted(len(left), 'user')}; run it again")
        for user, proof in proofs.items():
            _clean_rows(ledger, user, proof)
        sync_withdrawn(store, ledger.engine)
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
        # What has no date is no night's: the pointer, and the list of what was withdrawn.
        keys = [key for key in store.keys("manifests/") if _DATED.match(key)]
        nights = sorted({key.split("/")[1] for key in keys}, reverse=True)
        old = set(nights[settings.night.keep_manifests :])
        pointer = read_pointer(store)
        held = {ref.logical_date for ref in (pointer.current, pointer.previous) if ref} if pointer else set()
        doomed = [key for key in keys if key.split("/")[1] in old - held]
        for key in doomed:
            store.delete(key)
        return (
            f"manifests: {counted(len(nights), 'night')} found, {counted(len(doomed), 'object')} of older ones deleted"
        )


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
        theirs = select(Poster.poster_id).where(Poster.user_id == user)
        session.execute(
            delete(Withdrawal).where(
                ((Withdrawal.kind == "user") & (Withdrawal.subject == user))
                | ((Withdrawal.kind == "poster") & Withdrawal.subject.in_(theirs))
            )
        )
        for table in (AnswerSet, CurrentPosters, Poster, NightTask, NightSkip, PlannedUser):
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
