"""The table `pictures`: one row per distinct picture, and the claim of the one process that draws it.

A claim is void when its time is over, and when its claimant followed an earlier leader of the night: that one is dead, or
cannot write any more. Every result is written under the claim's token, so that a claimant who comes too late changes nothing.
All methods may raise ServerUnavailable and, when they write, LockHeld.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import RowMapping, text

from generator.nightly.ledger import Ledger, waits_out
from generator.nightly.rows import PictureRow
from generator.nightly.verdicts import record_verdict
from generator.safety.judge import CLEARED, UNCHECKED, UNSAFE, SafetyCheck, Verdict

CORRUPT = "corrupt"
"""Reason of a picture that the model did not draw properly; a later night tries it again."""

# A picture that was refused as unsafe by another model, or by another threshold, is drawn and judged again; one that was shown
# before it was found unsafe stays withdrawn until a person lifts that.
_VOID = f"""(
    (p.status = 'claimed' AND (p.claimed_until < clock_timestamp() OR split_part(p.claim_owner, ':', 1)::bigint < :leader))
    OR (p.status = 'refused' AND p.reason = :corrupt AND split_part(p.claim_owner, ':', 1)::bigint < :leader)
    OR (p.status = 'refused' AND p.reason = '{UNSAFE}' AND CAST(:model AS text) IS NOT NULL
        AND (p.safety_model IS DISTINCT FROM :model OR p.unsafe_score < CAST(:threshold AS real))
        AND NOT EXISTS (SELECT 1 FROM withdrawals w WHERE w.kind = 'picture' AND w.subject = p.picture_key AND w.lifted_at IS NULL))
)"""  # noqa: S608 - our words
_COLUMNS = (
    "p.picture_key, p.tokens, p.status, p.reason, p.safety, p.unsafe_score, p.safety_model, p.art_key, p.art_sha256, "
    "p.look, p.embedding"
)

_READ = text(f"SELECT {_COLUMNS}, {_VOID} AS free FROM pictures p WHERE p.picture_key = ANY(:keys)")  # noqa: S608 - our words

# A dead claimant's file, key and hash stay in the row: if it was stored, the picture need not be drawn again.
_CLAIM = text(f"""
INSERT INTO pictures AS p (picture_key, drawing_version, tokens, status, claim_owner, claim_token, claimed_until)
VALUES (:key, :drawing_version, :tokens, 'claimed', :owner, 1, clock_timestamp() + make_interval(secs => :seconds))
ON CONFLICT (picture_key) DO UPDATE SET
  status = 'claimed', reason = NULL, claim_owner = excluded.claim_owner, claim_token = p.claim_token + 1,
  claimed_until = excluded.claimed_until
WHERE {_VOID} OR (p.status = 'drawn' AND p.art_key = :lost)
RETURNING {_COLUMNS}, p.claim_token
""")  # noqa: S608 - our words

_HELD = "WHERE picture_key = :key AND claim_token = :token AND status = 'claimed' RETURNING picture_key"
_VERDICT = "safety = :safety, unsafe_score = :unsafe_score, safety_model = :safety_model"
_INTEND = text(
    f"UPDATE pictures SET art_key = :art_key, art_sha256 = :art_sha256, look = :look, embedding = :embedding, "  # noqa: S608
    f"{_VERDICT} {_HELD}"
)
_SETTLE = text(
    f"UPDATE pictures SET status = :status, reason = :reason, look = coalesce(:look, look), "  # noqa: S608
    f"embedding = coalesce(:embedding, embedding), {_VERDICT}, claimed_until = NULL, last_used_at = now() {_HELD}"
)
_RENEW = text(f"UPDATE pictures SET claimed_until = clock_timestamp() + make_interval(secs => :seconds) {_HELD}")  # noqa: S608
_RELEASE = text(f"UPDATE pictures SET claimed_until = clock_timestamp() - interval '1 second' {_HELD}")  # noqa: S608
_RELEASE_ALL = text("""
UPDATE pictures SET claimed_until = clock_timestamp() - interval '1 second'
WHERE status = 'claimed' AND starts_with(claim_owner, :owner)
""")
_TOUCH = text("UPDATE pictures SET last_used_at = now() WHERE picture_key = ANY(:keys)")


class ClaimLost(Exception):
    """Somebody else has taken the picture over; what we drew is dropped."""


@dataclass(frozen=True)
class Claim:
    """The right to draw a picture until the claim's time is over."""

    picture_key: str
    token: int
    intended: PictureRow | None
    """What an earlier claimant was about to store, or had stored without saying so."""
    safety: str = UNCHECKED
    """"cleared" where a person has: the picture is not judged again."""


Looked = PictureRow | Literal["free", "busy"]
"""A settled picture; one that nobody draws; one that another process draws."""


class PictureTable:
    """Reads and claims of one process."""

    def __init__(
        self, ledger: Ledger, drawing_version: str, claim_seconds: float, safety: SafetyCheck | None = None
    ) -> None:
        self._ledger = ledger
        self.outages = ledger.outages
        self._drawing_version = drawing_version
        self._seconds = claim_seconds
        self._safety = safety
        lease = ledger.lease
        self._leader = lease.token
        self._owner = f"{lease.token}:{lease.holder}:{uuid.uuid4().hex[:8]}"

    @waits_out
    def read(self, keys: Collection[str]) -> dict[str, Looked]:
        """What is known of the pictures; one without a row is free."""
        if not keys:
            return {}
        with self._ledger.reading() as session:
            rows = session.execute(_READ, {"keys": list(keys), **self._void}).mappings().all()
        found: dict[str, Looked] = dict.fromkeys(keys, "free")
        for row in rows:
            settled = row["status"] != "claimed"
            found[row["picture_key"]] = "free" if row["free"] else _picture(row) if settled else "busy"
        return found

    @waits_out
    def claim(self, key: str, tokens: Sequence[int], *, lost: str | None = None) -> Claim | None:
        """Claim a picture; None when it is settled or another process draws it.

        `lost`: the key of a drawn picture's file that is not in the bucket any more.
        """
        values = {
            "key": key,
            "tokens": list(tokens),
            "drawing_version": self._drawing_version,
            "owner": self._owner,
            "seconds": self._seconds,
            "lost": lost,
        }
        with self._ledger.writing() as session:
            row = session.execute(_CLAIM, {**values, **self._void}).mappings().one_or_none()
        if row is None:
            return None
        intended = _picture({**row, "status": "drawn"}) if row["art_key"] and row["art_key"] != lost else None
        return Claim(key, row["claim_token"], intended, CLEARED if row["safety"] == CLEARED else UNCHECKED)

    @waits_out
    def intend(self, claim: Claim, picture: PictureRow) -> None:
        """Name the file that is about to be stored: no picture is in the bucket without a row.

        Raises:
            ClaimLost: another process has taken the picture over.
        """
        self._write(_INTEND, claim, _file(picture))

    @waits_out
    def settle(self, claim: Claim, picture: PictureRow) -> None:
        """Record that the picture is drawn and stored, or refused.

        Raises:
            ClaimLost: another process has taken the picture over.
        """
        values = {"status": picture.status, "reason": picture.reason, **_file(picture)}
        self._write(_SETTLE, claim, values)

    @waits_out
    def record_verdict(self, key: str, verdict: Verdict, threshold: float) -> None:
        """Store another verdict on a drawn picture; an unsafe one is withdrawn from everybody."""
        with self._ledger.writing() as session:
            record_verdict(session, key, verdict, threshold)

    @waits_out
    def renew(self, claim: Claim) -> None:
        """Extend the claim's time.

        Raises:
            ClaimLost: another process has taken the picture over.
        """
        self._write(_RENEW, claim, {"seconds": self._seconds})

    @waits_out
    def release(self, claim: Claim) -> None:
        """Let others draw the picture now.

        Raises:
            ClaimLost: another process has taken the picture over.
        """
        self._write(_RELEASE, claim, {})

    @waits_out
    def touch(self, keys: Collection[str]) -> None:
        """Record that the pictures are used, which keeps them from being cleaned up."""
        with self._ledger.writing() as session:
            session.execute(_TOUCH, {"keys": list(keys)})

    @property
    def _void(self) -> dict[str, Any]:
        safety = self._safety
        return {
            "leader": self._leader,
            "corrupt": CORRUPT,
            "model": safety.judge.version if safety else None,
            "threshold": safety.threshold if safety else None,
        }

    def _write(self, statement: Any, claim: Claim, values: dict[str, Any]) -> None:
        with self._ledger.writing() as session:
            held = session.execute(statement, {**values, "key": claim.picture_key, "token": claim.token})
            if held.one_or_none() is None:
                raise ClaimLost(claim.picture_key)


@waits_out
def release_claims(ledger: Ledger, holder: str) -> None:
    """Let others draw at once what a dead worker of this night had claimed; `holder`: of its lease."""
    with ledger.writing() as session:
        session.execute(_RELEASE_ALL, {"owner": f"{ledger.lease.token}:{holder}:"})


def _file(picture: PictureRow) -> dict[str, Any]:
    embedding = None if picture.embedding is None else [float(value) for value in picture.embedding]
    return {
        "art_key": picture.art_key or None,
        "art_sha256": picture.art_sha256 or None,
        "look": picture.look or None,
        "embedding": embedding,
        "safety": picture.safety,
        "unsafe_score": picture.unsafe_score,
        "safety_model": picture.safety_model,
    }


def _picture(row: RowMapping | dict[str, Any]) -> PictureRow:
    return PictureRow(
        picture_key=row["picture_key"],
        tokens=tuple(row["tokens"]),
        status=row["status"],
        reason=row["reason"],
        safety=row["safety"],
        unsafe_score=row["unsafe_score"],
        safety_model=row["safety_model"],
        art_key=row["art_key"] or "",
        art_sha256=row["art_sha256"] or "",
        look=row["look"] or "",
        embedding=None if row["embedding"] is None else np.asarray(row["embedding"], dtype=np.float32),
    )
