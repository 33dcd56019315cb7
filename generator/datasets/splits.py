"""What training must never see: a tenth of the (concept, style) pairs and a tenth of the users.

Membership is a hash of the names, so that it is the same in every run, on every machine and for data added later.
"""

import hashlib
from collections.abc import Iterable

from schemas.hashing import unit_interval

HELD_OUT_SHARE = 0.1


def stable_hash(*parts: object) -> int:
    """The same number in 0..2**64-1 for the same parts, on every machine and in every run."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def is_held_out_pair(concept: str, style: str) -> bool:
    """Whether the picture of this concept (slug) in this style is kept for evaluation, on any background."""
    return _held_out("pair", concept, style)


def is_held_out_user(user_id: str) -> bool:
    """Whether this user's interactions are kept for evaluation."""
    return _held_out("user", user_id)


def split_pairs(concepts: Iterable[str], styles: Iterable[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """All (concept slug, style id) pairs as (trained on, held out)."""
    wanted = list(styles)
    pairs = [(concept, style) for concept in concepts for style in wanted]
    return [pair for pair in pairs if not is_held_out_pair(*pair)], [pair for pair in pairs if is_held_out_pair(*pair)]


def _held_out(*parts: str) -> bool:
    return unit_interval("\x1f".join(("held-out", *parts)), bits=53) < HELD_OUT_SHARE
