"""Immutable snapshots of preference pairs in S3: `snapshots/<id>.jsonl`, named by a hash.

A line has `split`, `decided_at` and `pair`; lines are ordered by pair id, so the same pairs give the same id on any day.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.feedback.pairs import DatedPair
from generator.feedback.split import SplitPairs, check_leaks, group
from generator.storage.objects import Store
from schemas.errors import Refused
from schemas.preferences import PreferencePair
from schemas.tables import PreferenceSnapshot


@dataclass(frozen=True)
class Snapshot:
    """What one retraining sees."""

    snapshot_id: str
    pairs: SplitPairs


def encode(pairs: SplitPairs) -> bytes:
    """The snapshot's bytes: canonical JSON lines."""
    lines = [
        json.dumps(
            {
                "decided_at": dated.decided_at.astimezone(UTC).isoformat(),
                "pair": dated.pair.model_dump(mode="json"),
                "split": split,
            },
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
        )
        for split, dated in sorted(pairs.each(), key=lambda each: each[1].pair.pair_id)
    ]
    return "".join(line + "\n" for line in lines).encode()


def decode(body: bytes, snapshot_id: str) -> Snapshot:
    """A snapshot from its bytes, checked: the hash, the pairs and the split.

    Raises:
        Refused: the bytes are not those that the id names, or the splits leak.
    """
    if snapshot_of(body) != snapshot_id:
        raise Refused(
            f"snapshot {snapshot_id}: its bytes hash to {snapshot_of(body)}: it was altered; nothing was trained"
        )
    rows = [json.loads(line) for line in body.decode().splitlines()]
    pairs = group(
        (
            row["split"],
            DatedPair(PreferencePair.model_validate(row["pair"]), datetime.fromisoformat(row["decided_at"])),
        )
        for row in rows
    )
    check_leaks(pairs)
    return Snapshot(snapshot_id, pairs)


def snapshot_of(body: bytes) -> str:
    """The id of a snapshot with these bytes."""
    return hashlib.sha256(body).hexdigest()[:32]


def key_of(snapshot_id: str) -> str:
    """Where it is in the bucket."""
    return f"snapshots/{snapshot_id}.jsonl"


def write(
    session: Session,
    store: Store,
    pairs: SplitPairs,
    window: tuple[datetime, datetime],
    counts: dict[str, Any],
) -> Snapshot:
    """Store a snapshot and its row; storing the same one again changes nothing."""
    check_leaks(pairs)
    body = encode(pairs)
    snapshot_id = snapshot_of(body)
    store.create(key_of(snapshot_id), body, "application/jsonl")
    if session.get(PreferenceSnapshot, snapshot_id) is None:
        session.add(
            PreferenceSnapshot(
                snapshot_id=snapshot_id,
                key=key_of(snapshot_id),
                window_start=window[0],
                window_end=window[1],
                train_pairs=len(pairs.train),
                holdout_pairs=len(pairs.holdout),
                counts=counts,
            )
        )
        session.flush()
    return decode(body, snapshot_id)


@dataclass(frozen=True)
class ErasedSnapshot:
    """A snapshot with pairs of erased users: its object is gone, its row says so without their names."""

    snapshot_id: str
    users: int
    pairs: int


_MARK_ERASED = text(
    "UPDATE preference_snapshots SET counts = counts || jsonb_build_object("
    "'purged_at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'),"
    "'purged_users', cast(:users AS int), 'purged_pairs', cast(:pairs AS int)) WHERE snapshot_id = :id"
)
_PROOF = text(
    "UPDATE erasures SET proof = proof || jsonb_build_object('snapshots', "
    "coalesce(proof -> 'snapshots', '[]'::jsonb) || to_jsonb(cast(:id AS text))) WHERE user_id = ANY(:users)"
)


def erase_users(session: Session, store: Store, *, dry_run: bool) -> list[ErasedSnapshot]:
    """Delete each stored snapshot that has a user erased since it was made, with proof in `erasures`.

    The whole object goes, for a snapshot without some lines is another snapshot; the next retrain mines its pairs again. Adapters
    trained from it stay: what they learned of one user cannot be taken out, only trained again (`model_versions.snapshot_id` names them).
    """
    rows = session.execute(text("SELECT user_id, requested_at FROM erasures"))
    requests: dict[str, datetime] = {row.user_id: row.requested_at for row in rows}
    erased = []
    for row in session.scalars(select(PreferenceSnapshot).order_by(PreferenceSnapshot.snapshot_id)):
        # A user may return after an erasure; a later snapshot then holds only what came after it.
        suspects = {user for user, requested_at in requests.items() if requested_at >= row.created_at}
        if not suspects or row.counts.keys() & {"purged_at", "dropped_at"}:
            continue
        stored = store.get(row.key)
        lines = stored.body.decode().splitlines() if stored else []
        users = [json.loads(line)["pair"]["user_id"] for line in lines]
        found = suspects & set(users)
        if stored and not found:
            continue
        erased.append(ErasedSnapshot(row.snapshot_id, len(found), sum(user in found for user in users)))
        if not dry_run:
            store.delete(row.key)  # first: after a death here the next run finds it gone and writes the row
            session.execute(_MARK_ERASED, {"id": row.snapshot_id, "users": len(found), "pairs": erased[-1].pairs})
            session.execute(_PROOF, {"id": row.snapshot_id, "users": sorted(found)})
    return erased
