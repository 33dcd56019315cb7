"""What an erased user leaves in the loop.

That is pairs in snapshots, which go, and adapters that were trained on them, which are named.

The order of events does not matter: a snapshot that was read before a user's erasure was completed goes, whenever the request
was made, came in, or was found. Pairs of users with an open request are not read at all (generator/feedback/queries.py).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.storage.objects import Store
from schemas.tables import ModelVersion, PreferenceSnapshot, PreferenceSnapshotUser

SERVING = frozenset({"champion", "canary"})
AdapterPolicy = Literal["keep", "delete"]


@dataclass(frozen=True)
class ErasedSnapshot:
    """A snapshot with pairs of erased users: its object is gone, its row says so without their names."""

    snapshot_id: str
    users: int
    pairs: int


@dataclass(frozen=True)
class TrainedAdapter:
    """An adapter that was trained on pairs of users erased since, or from an adapter that was."""

    version: str
    state: str
    policy: str
    """What the policy says of it, in words."""


_SUSPECTS = text(
    """
SELECT e.user_id FROM erasures e JOIN preference_snapshots s ON s.snapshot_id = :id
WHERE e.completed_at IS NULL OR e.completed_at >= s.created_at
"""
)
_MARK_ERASED = text(
    "UPDATE preference_snapshots SET counts = counts || jsonb_build_object("
    "'purged_at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),"
    "'purged_users', coalesce((counts ->> 'purged_users')::int, 0) + cast(:users AS int),"
    "'purged_pairs', coalesce((counts ->> 'purged_pairs')::int, 0) + cast(:pairs AS int)) WHERE snapshot_id = :id"
)
_PROOF = text(
    "UPDATE erasures SET proof = proof || jsonb_build_object(cast(:what AS text), "
    "coalesce(proof -> cast(:what AS text), '[]'::jsonb) || to_jsonb(cast(:names AS text[]))) WHERE user_id = ANY(:users)"
)
_TRAINED = text(
    """
WITH RECURSIVE trained AS (
    SELECT version FROM model_versions WHERE snapshot_id = ANY(:snapshots)
    UNION SELECT v.version FROM model_versions v JOIN trained t ON v.parent = t.version WHERE v.snapshot_id IS NOT NULL
)
SELECT v.version FROM model_versions v JOIN trained USING (version) WHERE v.adapter_key IS NOT NULL ORDER BY v.number, v.version
"""
)


def erase_users(
    session: Session, store: Store, *, dry_run: bool, policy: AdapterPolicy = "keep"
) -> tuple[list[ErasedSnapshot], list[TrainedAdapter]]:
    """Delete each stored snapshot with a user who was to be erased when it was made or later.

    Name what was trained from it.

    The whole object goes, for a snapshot without some lines is another snapshot; the next retrain reads its pairs again. What an
    adapter learned of one user cannot be taken out, only trained again, so `policy` says what becomes of it. Both are kept as
    proof in `erasures`.
    """
    erased: list[ErasedSnapshot] = []
    users: set[str] = set()
    for row in session.scalars(select(PreferenceSnapshot).order_by(PreferenceSnapshot.snapshot_id)).all():
        found = set(session.scalars(_SUSPECTS, {"id": row.snapshot_id})) & _users_of(session, store, row, dry_run)
        if found:
            erased.append(_erase(session, store, row, sorted(found), dry_run=dry_run))
            users |= found
    adapters = _trained_on(session, store, erased, dry_run=dry_run, policy=policy)
    if adapters and not dry_run:
        names = [f"{one.version}: {one.policy}" for one in adapters]
        session.execute(_PROOF, {"what": "adapters", "names": names, "users": sorted(users)})
    return erased, adapters


def _users_of(session: Session, store: Store, row: PreferenceSnapshot, dry_run: bool) -> set[str]:
    """A snapshot's users; the release before wrote none, so they are read from the object once."""
    users = set(
        session.scalars(
            select(PreferenceSnapshotUser.user_id).where(PreferenceSnapshotUser.snapshot_id == row.snapshot_id)
        )
    )
    if users or "purged_at" in row.counts:
        return users
    users = set(_users_in(store, row))
    if users and not dry_run:
        rows = [{"snapshot_id": row.snapshot_id, "user_id": user} for user in sorted(users)]
        session.execute(insert(PreferenceSnapshotUser).values(rows).on_conflict_do_nothing())
    return users


def _users_in(store: Store, row: PreferenceSnapshot) -> list[str]:
    """The user of each pair in a snapshot's object; empty when it is gone."""
    stored = store.get(row.key)
    return [json.loads(line)["pair"]["user_id"] for line in stored.body.decode().splitlines()] if stored else []


def _erase(
    session: Session, store: Store, row: PreferenceSnapshot, users: Sequence[str], *, dry_run: bool
) -> ErasedSnapshot:
    pairs = sum(user in users for user in _users_in(store, row))
    if not dry_run:
        store.delete(row.key)  # first: after a death here the next run writes the rows
        session.execute(_MARK_ERASED, {"id": row.snapshot_id, "users": len(users), "pairs": pairs})
        session.execute(
            delete(PreferenceSnapshotUser).where(
                PreferenceSnapshotUser.snapshot_id == row.snapshot_id, PreferenceSnapshotUser.user_id.in_(users)
            )
        )
        session.execute(_PROOF, {"what": "snapshots", "names": [row.snapshot_id], "users": list(users)})
    return ErasedSnapshot(row.snapshot_id, len(users), pairs)


def _trained_on(
    session: Session, store: Store, erased: Sequence[ErasedSnapshot], *, dry_run: bool, policy: AdapterPolicy
) -> list[TrainedAdapter]:
    """The adapters that the snapshots taught, and their descendants; deleted where the policy says so."""
    names = session.scalars(_TRAINED, {"snapshots": [one.snapshot_id for one in erased]}).all()
    found = []
    for version in [registry.get(session, name) for name in names]:
        before = version.state
        if policy == "keep":
            words = "kept (retrain.erased_adapters)"
        elif before in SERVING:
            words = "serves until a retrain replaces it"
        else:
            words = "deleted"
            if not dry_run:
                _delete(session, store, version)
        found.append(TrainedAdapter(version.version, before, words))
    return found


def _delete(session: Session, store: Store, version: ModelVersion) -> None:
    for key in list(store.keys(version.adapter_key or "")):
        store.delete(key)
    reason = "trained on users who were erased since (retrain.erased_adapters)"
    if version.state in {"registered", "loaded"}:
        registry.change_state(session, version.version, "refused", reason)
    registry.note(session, version, f"adapter deleted: {reason}", {})
    version.adapter_key = version.adapter_sha256 = None
    session.flush()
