"""Sliding windows of interactions, and the split by user and time.

A window is `history` items of a user in time order and the one that followed, the reference. Of a user's several interactions
with one item the first counts, so a reference is never in its own history.

Users are divided 8:1:1 by a stable hash, the same that holds users out of the feedback loop, so no user who judges is ever
trained on. By `both`, time is divided as well, at the moment before which 8 of 10 windows end: training windows end before it,
held-out users' windows after it; what is neither is left out.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from generator.training.catalog.dataset.manifest import Split
from generator.training.catalog.dataset.scratch import Scratch
from schemas.hashing import unit_interval

TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1
EARLY_SHARE = 0.8
"""Share of the windows, in time order, that end before the cut."""
BETWEEN = "windows: between the splits (held-out users' early ones, others' late ones)"

_IN_ORDER = "SELECT user_id, at, item_id FROM usable ORDER BY user_id, at, item_id"
_CUT = """
SELECT at FROM (SELECT at, row_number() OVER (PARTITION BY user_id ORDER BY at, item_id) AS n FROM usable)
WHERE n > :history ORDER BY at LIMIT 1 OFFSET :offset
"""
_COUNT = "SELECT coalesce(sum(max(n - :history, 0)), 0) FROM (SELECT count(*) AS n FROM usable GROUP BY user_id)"
_SHORT = "SELECT count(*) FROM (SELECT 1 FROM usable GROUP BY user_id HAVING count(*) <= :history)"
_GIVEN = (
    "SELECT user_id, at, history, reference, target_codes, target_uri, target_image, split FROM given ORDER BY number"
)


@dataclass(frozen=True)
class Window:
    """What a training step, or a held-out task, is made of; `at` in microseconds since 1970."""

    user_id: str
    at: int
    history: tuple[str, ...]
    reference: str
    target_codes: tuple[int, ...] | None = None
    target_image: str | None = None
    split: Split | None = None
    """As the source gives it."""


def sliding(scratch: Scratch, history: int) -> Iterator[Window]:
    """Every window of every user, users in the order of their ids, a user's in time order."""
    scratch.db.execute("CREATE INDEX IF NOT EXISTS clicks_in_order ON clicks (user_id, at, item_id)")
    user, past = "", deque[str](maxlen=history)
    for row_user, at, item in scratch.db.execute(_IN_ORDER):
        if row_user != user:
            user, past = row_user, deque(maxlen=history)
        if len(past) == history:
            yield Window(user, at, tuple(past), item)
        past.append(item)


def given(scratch: Scratch, left_out: Counter[str]) -> Iterator[Window]:
    """Windows as their source gives them, in its order; one without a picture of each item is left out."""
    known = {item for (item,) in scratch.db.execute("SELECT item_id FROM items WHERE image IS NOT NULL")}
    for user, at, history, reference, codes, uri, image, split in scratch.db.execute(_GIVEN):
        past = tuple(json.loads(history))
        if not known.issuperset((*past, reference)) or (uri is not None and image is None):
            left_out["windows: an item or target without a picture"] += 1
            continue
        yield Window(user, at, past, reference, None if codes is None else tuple(json.loads(codes)), image, split)


@dataclass(frozen=True)
class Splitter:
    """The split of each window; `cut` in microseconds, None where time does not count."""

    cut: int | None

    @classmethod
    def of(cls, scratch: Scratch, history: int, by: Literal["both", "users"]) -> Splitter:
        """The rule for what a scratch file holds."""
        if by == "users":
            return cls(None)
        if total := scratch.one("SELECT count(*) FROM given"):
            query, values = "SELECT at FROM given ORDER BY at LIMIT 1 OFFSET :offset", {}
        else:
            values = {"history": history}
            total = scratch.db.execute(_COUNT, values).fetchone()[0]
            query = _CUT
        row = scratch.db.execute(query, {**values, "offset": int(EARLY_SHARE * total)}).fetchone()
        return cls(None if row is None else int(row[0]))

    def split(self, window: Window) -> Split | None:
        """The window's split; None where it belongs to none."""
        if window.split is not None:
            return window.split
        part = split_of(window.user_id)
        if self.cut is None or (window.at < self.cut) == (part == "train"):
            return part
        return None


def split_of(user_id: str) -> Split:
    """The split of a user's windows.

    Users with the smallest hashes, which the loop holds out as well, are held out.
    """
    place = unit_interval(f"holdout:{user_id}", bits=32)
    if place < TEST_SHARE:
        return "test"
    return "validation" if place < TEST_SHARE + VALIDATION_SHARE else "train"


def short_users(scratch: Scratch, history: int) -> int:
    """How many users have too few usable interactions for a window."""
    found: int = scratch.db.execute(_SHORT, {"history": history}).fetchone()[0]
    return found
