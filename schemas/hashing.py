"""Stable hashes, the same on every machine: numbers in [0, 1), and what weights are known by."""

from __future__ import annotations

import hashlib


def unit_interval(content: str | bytes, *, bits: int = 52) -> float:
    """Number in [0, 1) of the content's SHA-256; equal contents give equal numbers.

    Args:
        bits: how many of the hash's first bits count, at most 53, which a float keeps exact.
    """
    digest = hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()
    return float((int.from_bytes(digest[:8], "big") >> (64 - bits)) / 2**bits)


def weights_of(base_weights: str, adapter_sha256: str | None) -> str:
    """What a model's answers are known by: a hash of its base checkpoint and its adapter, if any.

    A name ("nano-1") is not enough: other weights may come under the same one.
    """
    return hashlib.sha256(f"weights {base_weights} {adapter_sha256 or ''}".encode()).hexdigest()[:32]
