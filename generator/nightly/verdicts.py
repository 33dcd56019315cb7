"""Stored safety verdicts; what is found unsafe after it was drawn is refused and withdrawn.

A verdict and its withdrawal are one transaction. Whoever writes one has readers told (`withdraw.tell_readers`).
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.safety.judge import CLEARED, UNSAFE, SafetyCheck, Verdict

ACTOR = "safety check"
"""Who withdrew, in the rows of `withdrawals`."""

# Somebody else's verdict may have come first, or a person's.
_RECORD = text(f"""
UPDATE pictures SET safety = :safety, unsafe_score = :score, safety_model = :model,
  status = CASE WHEN :unsafe THEN 'refused' ELSE status END, reason = CASE WHEN :unsafe THEN '{UNSAFE}' END
WHERE picture_key = :key AND status = 'drawn' AND safety <> '{CLEARED}' RETURNING picture_key
""")  # noqa: S608 - our words
_TELL_POSTERS = text("UPDATE posters SET safety = :safety WHERE picture_key = :key AND safety <> :safety")
_WITHDRAW = text("""
INSERT INTO withdrawals (kind, subject, reason, actor)
SELECT 'picture', :key, :reason, :actor
WHERE NOT EXISTS (SELECT 1 FROM withdrawals WHERE kind = 'picture' AND subject = :key AND lifted_at IS NULL)
""")
_CLEAR = text(f"""
UPDATE pictures SET status = 'drawn', reason = NULL, safety = '{CLEARED}'
WHERE picture_key = :key AND status = 'refused' AND reason = '{UNSAFE}' AND art_key IS NOT NULL RETURNING picture_key
""")  # noqa: S608 - our words
_OUTDATED = f"""
FROM pictures p
WHERE p.picture_key > :after AND p.status = 'drawn' AND p.safety <> '{CLEARED}'
  AND (p.safety_model IS DISTINCT FROM :model OR p.unsafe_score >= CAST(:threshold AS real))
  AND EXISTS (SELECT 1 FROM posters WHERE posters.picture_key = p.picture_key)
"""  # noqa: S608 - our words
_PAGE = text(
    "SELECT p.picture_key, p.art_key, p.art_sha256, p.safety, p.unsafe_score, p.safety_model "
    f"{_OUTDATED} ORDER BY p.picture_key LIMIT :page"
)
_COUNT = text(f"SELECT count(*) {_OUTDATED}")


def record_verdict(session: Session, key: str, verdict: Verdict, threshold: float) -> None:
    """Store the verdict on a drawn picture; an unsafe one is refused from now on, and withdrawn.

    Repeating it changes nothing. A person's verdict stays.
    """
    values = {"key": key, "safety": verdict.safety, "score": verdict.score, "model": verdict.model}
    if session.execute(_RECORD, {**values, "unsafe": verdict.is_unsafe}).one_or_none() is None:
        return
    session.execute(_TELL_POSTERS, values)
    if verdict.is_unsafe:
        reason = f"unsafe: {verdict.words()}, threshold {threshold:g}"
        session.execute(_WITHDRAW, {"key": key, "reason": reason, "actor": ACTOR})


def clear_verdict(session: Session, key: str) -> bool:
    """Make a picture that was found unsafe one that a person has cleared; False when it was not."""
    cleared = session.execute(_CLEAR, {"key": key}).one_or_none() is not None
    if cleared:
        session.execute(_TELL_POSTERS, {"key": key, "safety": CLEARED})
    return cleared


def count_outdated(session: Session, check: SafetyCheck, after: str = "") -> int:
    """Pictures of posters after this key that today's check would judge again, or otherwise."""
    return int(session.execute(_COUNT, _bounds(check, after)).scalar_one())


def read_outdated(
    session: Session, check: SafetyCheck, after: str, page: int
) -> Iterator[tuple[str, str, str, Verdict]]:
    """Key, file, hash of the file, and stored verdict of such pictures, in the order of their keys."""
    for row in session.execute(_PAGE, {**_bounds(check, after), "page": page}):
        yield row.picture_key, row.art_key, row.art_sha256, Verdict(row.safety, row.unsafe_score, row.safety_model)


def _bounds(check: SafetyCheck, after: str) -> dict[str, str | float]:
    return {"after": after, "model": check.judge.version, "threshold": check.threshold}
