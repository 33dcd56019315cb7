"""What training must never see: a tenth of the (concept, style) pairs.

Membership is a hash of the names, so that it is the same in every run, on every machine and for data added later.
"""

import hashlib

from schemas.hashing import unit_interval

HELD_OUT_SHARE = 0.1
"""Share of the pairs that are held out."""


def stable_hash(*parts: object) -> int:
    """The same number in 0..2**64-1 for the same parts, on every machine and in every run."""
    return int.from_bytes(hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()[:8], "big")


def is_held_out_pair(concept: str, style: str) -> bool:
    """Whether the picture of this concept (slug) in this style is kept for evaluation, on any background."""
    return unit_interval("\x1f".join(("held-out", "pair", concept, style)), bits=53) < HELD_OUT_SHARE
