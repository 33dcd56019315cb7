"""Immutable snapshots of preference pairs in S3: `snapshots/<id>.jsonl`, named by a hash.

A line has `split`, `decided_at` and `pair`; lines are ordered by pair id, so the same pairs give the same id on any day.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.feedback.dated_pair import DatedPair
from generator.feedback.split import SplitPairs, check_leaks, group
from generator.storage.objects import Store
from schemas.errors import Refused
from schemas.preferences import PreferencePair
from schemas.tables import PreferenceSnapshot, PreferenceSnapshotUser


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
    pairs: SplitPairs,
    window: tuple[datetime, datetime],
    counts: dict[str, Any],
    mined_at: datetime,
) -> bytes:
    """Write a snapshot's row and its users; returns the bytes for `put`.

    The same one again changes nothing.

    The row comes before the object, so that whatever of users is in the bucket can be found when they are erased.
    `mined_at`: the database's time at which reading the pairs began.
    """
    check_leaks(pairs)
    body = encode(pairs)
    snapshot_id = snapshot_of(body)
    users = sorted({dated.pair.user_id for _, dated in pairs.each()})
    row = session.get(PreferenceSnapshot, snapshot_id)
    if row is None:
        row = PreferenceSnapshot(snapshot_id=snapshot_id, key=key_of(snapshot_id), created_at=mined_at)
        session.add(row)
    elif "purged_at" in row.counts:  # erased users came back, and did the very same again
        row.created_at = mined_at
    row.window_start, row.window_end = window
    row.train_pairs, row.holdout_pairs, row.counts = len(pairs.train), len(pairs.holdout), counts
    session.flush()
    rows = [{"snapshot_id": snapshot_id, "user_id": user} for user in users]
    if rows:
        session.execute(insert(PreferenceSnapshotUser).values(rows).on_conflict_do_nothing())
    return body


def put(store: Store, body: bytes) -> Snapshot:
    """Put a snapshot's bytes into the bucket, unless they are there."""
    snapshot_id = snapshot_of(body)
    store.create(key_of(snapshot_id), body, "application/jsonl")
    return decode(body, snapshot_id)


_UNFINISHED = text(
    """
SELECT s.snapshot_id FROM preference_snapshots s
WHERE s.window_end > :after AND s.window_end <= :until AND s.window_end - s.window_start = :length
  AND (s.counts ->> 'holdout_share')::float8 = :holdout_share AND NOT s.counts ?| ARRAY['purged_at', 'dropped_at']
  AND NOT EXISTS (SELECT FROM model_versions v WHERE v.snapshot_id = s.snapshot_id AND v.state <> 'registered')
  AND NOT EXISTS (SELECT FROM preference_snapshot_users u JOIN erasures e USING (user_id)
                  WHERE u.snapshot_id = s.snapshot_id AND (e.completed_at IS NULL OR e.completed_at >= s.created_at))
ORDER BY s.created_at DESC LIMIT 1
"""
)


def find_unfinished(
    session: Session, store: Store, after: datetime, until: datetime, length: timedelta, holdout_share: float
) -> Snapshot | None:
    """The snapshot of a retraining that did not come to an end, whose window ended in (after, until].

    None when a user in it has asked to be erased since: its pairs are not used again.
    """
    window = {"after": after, "until": until, "length": length, "holdout_share": holdout_share}
    snapshot_id = session.scalar(_UNFINISHED, window)
    stored = store.get(key_of(snapshot_id)) if snapshot_id else None
    return decode(stored.body, snapshot_id) if stored and snapshot_id else None
