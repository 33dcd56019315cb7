"""Erasure of users from what nights made: minutes after the request, also while a night runs.

It leads a lease of its own. A request (table `erasures`) goes through these steps, each of which may be done twice:

1. Readers are told not to show the user (`manifests/withdrawn.json`), whatever set they are led to.
2. The user's tasks are deleted: from here on no night writes anything for the user (generator/nightly/erasure_fence.py).
3. Sets without the user are stored beside the old ones, the pointer is led to them, the old ones go.
4. While a night is writing a set that it may have read before the request came, the request stays open and is taken up
   again at the next call; the night needs the user's pictures until then.
5. Reports, pictures and posters that nobody else has, then all rows and the completed request, in one transaction.

A request is completed when the user is in no manifest that readers or we could open, in no image that is not another user's
as well, in no report and in no row of ours; its `proof` says what was done, checked and, where the bucket keeps versions that
we may not delete, left, and which dead letters wait in Kafka until when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import delete, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.erasure_fence import FENCE_LOCK, live_publishers
from generator.nightly.ledger import Ledger
from generator.nightly.online_store import forget
from generator.nightly.pictures import picture_key
from generator.nightly.withdraw import tell_readers
from generator.nightly.wording import counted
from generator.storage.objects import Store
from generator.upkeep.dead_letters import waiting_letters
from generator.upkeep.leading import leading
from generator.upkeep.manifest_edit import remove_users, users_left
from generator.upkeep.unused_files import delete_file
from schemas.answers import AnswerSet as Answers
from schemas.errors import PigeonError
from schemas.faultpoints import reach
from schemas.manifest import report_key
from schemas.manifest_files import WITHDRAWN_KEY
from schemas.settings import Settings
from schemas.tables import (
    AnswerSet,
    Composition,
    CurrentPosters,
    Erasure,
    NightRun,
    NightSkip,
    NightTask,
    Picture,
    PlannedUser,
    Poster,
    UserObjection,
    Withdrawal,
)

LEASE = "erasure"
USERS_AT_ONCE = 200
"""Number of users for which the sets are rewritten together."""

_OF_USER = (AnswerSet, CurrentPosters, Poster, NightTask, PlannedUser)
# A night that was asked for by name keeps no names of erased users.
_UNNAME = text("""
UPDATE night_runs SET settings = jsonb_set(settings, '{scope,users}', (settings #> '{scope,users}') - CAST(:user AS text))
WHERE jsonb_typeof(settings #> '{scope,users}') = 'array' AND settings #> '{scope,users}' ? :user
""")


@dataclass(frozen=True)
class _Request:
    user_id: str
    requested_at: datetime


@dataclass
class _Proof:
    """What was done for one user, by all calls that did something."""

    rows: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    """Runs that had tasks of the user: their reports may show the user's posters."""
    pictures_deleted: int = 0
    pictures_shared_with_others: int = 0
    manifests_rewritten: list[str] = field(default_factory=list)
    reports_deleted: list[str] = field(default_factory=list)
    waited_for: list[str] = field(default_factory=list)
    """Runs that were writing a set when we came."""
    bucket_versions: str = ""
    """Whether the bucket keeps older versions of objects."""
    versions_left: list[str] = field(default_factory=list)
    """Objects whose older versions we were not allowed to delete."""

    @classmethod
    def parse(cls, value: Any) -> _Proof:
        """What earlier calls left; keys of other releases are ignored."""
        known = {one.name for one in fields(cls)}
        return cls(**{name: found for name, found in (value or {}).items() if name in known})

    def count(self, table: str, rows: int) -> None:
        """Add deleted rows."""
        self.rows[table] = self.rows.get(table, 0) + rows


def erase_users(settings: Settings) -> str:
    """Work on every open erasure request; a line with the numbers.

    Readers are told what they must not show, requests or not.

    Raises:
        LockHeld: another process erases.
        PigeonError: a trace is left after all; nothing is marked as completed.
    """
    with leading(settings, LEASE) as (store, ledger):
        tell_readers(settings, store, ledger.engine)
        erased, waiting, images, manifests = 0, 0, 0, set[str]()
        after = ""
        while requests := _open_requests(ledger, after):
            after = requests[-1].user_id
            one = _Pass(settings, store, ledger)
            proofs = one.erase(requests)
            waiting += len(requests) if one.writing else 0
            erased += 0 if one.writing else len(requests)
            images += sum(proof.pictures_deleted for proof in proofs)
            manifests |= {key for proof in proofs for key in proof.manifests_rewritten}
        if erased:
            tell_readers(settings, store, ledger.engine)
            store.delete_older_versions(WITHDRAWN_KEY)
        if not erased + waiting:
            return "erasure: no open requests"
        return (
            f"erasure: {counted(erased, 'user')} erased, {counted(images, 'image')} deleted, "
            f"{counted(len(manifests), 'manifest')} rewritten"
            + (f"; {counted(waiting, 'user')} hidden, erased when the set under way is written" if waiting else "")
        )


def _open_requests(ledger: Ledger, after: str) -> list[_Request]:
    with ledger.writing() as session:
        # Plans that end now have seen these requests, or have their rows committed before we look for them.
        session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": FENCE_LOCK})
        rows = session.execute(
            select(Erasure.user_id, Erasure.requested_at)
            .where(Erasure.completed_at.is_(None), Erasure.user_id > after)
            .order_by(Erasure.user_id)
            .limit(USERS_AT_ONCE)
        )
        return [_Request(user_id, requested_at) for user_id, requested_at in rows]


class _Pass:
    """The steps for some users."""

    def __init__(self, settings: Settings, store: Store, ledger: Ledger) -> None:
        self._settings = settings
        self._store = store
        self._ledger = ledger
        self._work: Path = settings.state_dir / "work"
        self._work.mkdir(parents=True, exist_ok=True)
        self.writing: set[str] = set()
        """Runs whose sets are being written: the requests stay open."""

    def erase(self, requests: Sequence[_Request]) -> list[_Proof]:
        """Do all that can be done now; completed unless a set is being written."""
        proofs = {request.user_id: self._fence(request.user_id) for request in requests}
        reach("fenced")
        # Whoever begins to write a set from here on reads neither the users' tasks nor, as long as they are open, the users.
        with self._ledger.writing() as session:
            self.writing = live_publishers(session)
        rewritten = remove_users(self._store, self._ledger, proofs, self._work, self.writing)
        for user, keys in rewritten.items():
            proofs[user].manifests_rewritten += keys
        if self._settings.online.redis_url:
            forget(self._settings, list(proofs))
        for user, proof in proofs.items():
            proof.waited_for = sorted({*proof.waited_for, *self.writing})
            if not self.writing:
                self._delete_reports(proof)
            self._keep(user, proof)
        if self.writing:
            return list(proofs.values())
        for user, proof in proofs.items():
            self._delete_images(user, proof)
        left = users_left(self._store, proofs, self._work)
        if left:
            raise PigeonError(f"erasure failed: still in a manifest: {counted(len(left), 'user')}; run it again")
        for request in requests:
            self._complete(request, proofs[request.user_id])
        return list(proofs.values())

    def _fence(self, user: str) -> _Proof:
        """Delete the user's tasks and skips, and keep which runs they were of."""
        with self._ledger.writing() as session:
            erasure = session.get_one(Erasure, user)
            proof = _Proof.parse(erasure.proof.get("night"))
            tasks = session.scalars(
                delete(NightTask).where(NightTask.user_id == user).returning(NightTask.run_id)
            ).all()
            runs = list(session.scalars(select(NightRun.run_id)))
            # By run and user, which is the key's beginning: there is no index by user alone.
            skips = session.scalars(
                delete(NightSkip)
                .where(NightSkip.run_id.in_(runs), NightSkip.user_id == user)
                .returning(NightSkip.run_id)
            ).all()
            proof.count("night_tasks", len(tasks))
            proof.count("night_skips", len(skips))
            proof.runs = sorted({*proof.runs, *tasks})
            erasure.proof = {**erasure.proof, "night": asdict(proof)}
        return proof

    def _keep(self, user: str, proof: _Proof) -> None:
        with self._ledger.writing() as session:
            erasure = session.get_one(Erasure, user)
            erasure.proof = {**erasure.proof, "night": asdict(proof)}

    def _delete_reports(self, proof: _Proof) -> None:
        """Delete the reports of runs that drew for the user: they show the user's posters."""
        with self._ledger.reading() as session:
            runs = session.execute(
                select(NightRun.run_id, NightRun.logical_date).where(NightRun.run_id.in_(proof.runs))
            ).all()
        for run_id, day in runs:
            key = report_key(day.isoformat(), run_id)
            if not self._store.exists(key):
                continue
            self._store.delete(key)
            with self._ledger.writing() as session:
                session.execute(update(NightRun).where(NightRun.run_id == run_id).values(report_key=None))
            proof.reports_deleted.append(key)

    def _delete_images(self, user: str, proof: _Proof) -> None:
        with self._ledger.reading() as session:
            mine = _poster_files(session, user) | _answered_files(session, user, proof.runs)
        for key in sorted(mine):
            deleted = delete_file(self._store, self._ledger, key, user_id=user)
            proof.pictures_deleted += deleted
            proof.pictures_shared_with_others += not deleted

    def _complete(self, request: _Request, proof: _Proof) -> None:
        """Delete the rows and complete the request, unless the user asked again meanwhile, in one transaction."""
        user = request.user_id
        proof.bucket_versions = self._store.versioning
        proof.versions_left = sorted({*proof.versions_left, *self._store.versions_left})
        with self._ledger.writing() as session:
            letters = waiting_letters(session, user, self._settings.kafka.dlq_retention_days)
            theirs = select(Poster.poster_id).where(Poster.user_id == user)
            session.execute(
                delete(Withdrawal).where(
                    ((Withdrawal.kind == "user") & (Withdrawal.subject == user))
                    | ((Withdrawal.kind == "poster") & Withdrawal.subject.in_(theirs))
                )
            )
            for table in _OF_USER:
                gone = session.execute(delete(table).where(table.user_id == user).returning(table.user_id))
                proof.count(table.__tablename__, len(gone.all()))
            session.execute(
                delete(UserObjection).where(
                    UserObjection.user_id == user, UserObjection.occurred_at <= request.requested_at
                )
            )
            session.execute(_UNNAME, {"user": user})
            session.execute(
                update(Erasure)
                .where(Erasure.user_id == user, Erasure.requested_at == request.requested_at)
                .values(
                    completed_at=func.now(),
                    proof=Erasure.proof.op("||")(
                        {"night": {**asdict(proof), "at": datetime.now(UTC).isoformat()}, "dead_letters": letters}
                    ),
                )
            )


def _poster_files(session: Session, user: str) -> set[str]:
    rows = session.execute(select(Poster.image_key, Poster.art_key, Poster.renditions).where(Poster.user_id == user))
    return {
        key
        for image_key, art_key, renditions in rows
        for key in (image_key, art_key, *(rendition["image_key"] for rendition in renditions))
    }


def _answered_files(session: Session, user: str, runs: Sequence[str]) -> set[str]:
    """Files of pictures that were drawn from the user's answers, whether posters came of them or not."""
    drawn_by = session.scalars(
        text("SELECT DISTINCT settings #>> '{served,drawing}' FROM night_runs WHERE run_id = ANY(:runs)"),
        {"runs": list(runs)},
    ).all()
    stored = session.scalars(select(AnswerSet.answers).where(AnswerSet.user_id == user)).all()
    codes = {answer.codes for answers in stored for answer in _unpacked(answers)}
    keys = [picture_key(version, one) for version in drawn_by if version for one in codes]
    pictures = session.scalars(
        select(Picture.art_key).where(Picture.picture_key.in_(keys), Picture.status == "drawn")
    ).all()
    files = session.scalars(select(Composition.image_key).where(Composition.picture_key.in_(keys))).all()
    return {key for key in (*pictures, *files) if key}


def _unpacked(answers: bytes) -> Sequence[Any]:
    """Stored answers; what cannot be read names no picture that we could find."""
    try:
        return Answers.unpack(answers).answers
    except ValueError:
        return ()
