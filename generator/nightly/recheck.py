"""Judging stored pictures again, by another safety model or threshold than they were judged by.

It needs no lease: like a withdrawal it may be made while a night is under way. A picture is done when its verdict is stored, so
what dies on the way goes on where it was, and a second call finds nothing to do.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from sqlalchemy import Engine

from generator.nightly.pictures import decoded
from generator.nightly.verdicts import count_outdated, read_outdated, record_verdict
from generator.nightly.withdraw import open_storage, tell_readers, writing
from generator.nightly.wording import counted
from generator.safety.judge import SafetyCheck, Verdict
from generator.storage.objects import Store
from schemas.settings import Settings

PAGE = 64
"""Pictures whose verdicts are read at once."""


@dataclass
class _Rechecked:
    judged: int = 0
    unsafe: int = 0
    gone: int = 0
    """Pictures whose files are not in the bucket any more."""
    after: str = ""
    """Key up to which all pictures are done."""
    ended: bool = False


def recheck(settings: Settings, check: SafetyCheck, *, minutes: float | None = None) -> str:
    """Judge every shown picture whose verdict is another model's, and withdraw the unsafe ones.

    Where only the threshold was changed, the stored scores decide. Returns a line with the numbers.

    Args:
        check: the model and the threshold of today.
        minutes: how long to go on; the next call goes on from there.

    Raises:
        ModelError: the model gives no score.
        ServerUnavailable: Postgres or S3 is away; the same call again goes on.
    """
    ends = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    done = _Rechecked()
    with open_storage(settings) as (store, engine):
        try:
            while not done.ended and time.monotonic() < ends:
                _next_page(store, engine, check, done)
        finally:
            tell_readers(settings, store, engine)
        left = 0
        if not done.ended:
            with writing(engine) as session:
                left = count_outdated(session, check, done.after)
    line = (
        f"safety: {counted(done.judged, 'picture')} judged again by {check.judge.version}, {done.unsafe} found unsafe "
    )
    line += f"(score {check.threshold:g} or more) and withdrawn"
    line += f", {counted(done.gone, 'file')} missing" if done.gone else ""
    return line + (f"; {left} left for the next upkeep" if left else "")


def _next_page(store: Store, engine: Engine, check: SafetyCheck, done: _Rechecked) -> None:
    with writing(engine) as session:
        rows = list(read_outdated(session, check, done.after, PAGE))
    for key, art_key, art_sha256, stored in rows:
        verdict = check.of_stored(stored) or _judged(store, check, art_key, art_sha256)
        with writing(engine) as session:
            record_verdict(session, key, verdict, check.threshold)
        done.judged += verdict.score is not None
        done.gone += verdict.score is None
        done.unsafe += verdict.is_unsafe
        done.after = key
    done.ended = len(rows) < PAGE


def _judged(store: Store, check: SafetyCheck, art_key: str, art_sha256: str) -> Verdict:
    """The verdict on a stored file.

    One without a score where it is gone or damaged: when it is drawn again, it is judged.
    """
    stored = store.get(art_key)
    if stored is None or hashlib.sha256(stored.body).hexdigest() != art_sha256:
        return Verdict(model=check.judge.version)
    return check.judged(decoded(stored.body))
