"""Which tokens the mutual mask generator keeps (Xu et al., WWW 2025, section 3), in numpy.

`generator.pigeon.masking` decides alike.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def probability(scores: Floats, member: Bools) -> Floats:
    """scores (N,), member (N,) -> softmax over the members, 0 elsewhere (N,) float32."""
    weights = np.exp(scores.astype(np.float32)) * member
    out: Floats = (weights / max(float(weights.sum()), float(np.finfo(np.float32).tiny))).astype(np.float32)
    return out


def keep_count(members: int, ratio: float) -> int:
    """max(1, floor(n * (1 - ratio))), at most n.

    1 - ratio is rounded up by float32's error, so that 10 at 0.9 keep 1.
    """
    return min(max(math.floor(members * (1 - ratio + 1e-7)), 1), members)


def keep_top(scores: Floats, member: Bools, ratio: float, noise: Floats) -> Bools:
    """The `keep_count` most probable members under Gumbel noise; ties go to the earlier one.

    scores, member, noise (N,) -> (N,) bool.
    """
    tiny = np.float32(np.finfo(np.float32).tiny)
    logits = np.log(np.maximum(probability(scores, member), tiny)) + noise
    order = np.argsort(np.where(member, -logits, np.inf), kind="stable")
    keep = np.zeros(len(scores), dtype=np.bool_)
    keep[order[: keep_count(int(member.sum()), ratio)]] = True
    out: Bools = keep & member
    return out
