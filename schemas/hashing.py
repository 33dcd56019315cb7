"""A stable number in [0, 1) of a text, the same in every process and on every machine."""

from __future__ import annotations

import hashlib


def unit_interval(content: str | bytes, *, bits: int = 52) -> float:
    """Number in [0, 1) of the content's SHA-256; equal contents give equal numbers.

    Args:
        bits: how many of the hash's first bits count, at most 53, which a float keeps exact.
    """
    digest = hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()
    return float((int.from_bytes(digest[:8], "big") >> (64 - bits)) / 2**bits)
