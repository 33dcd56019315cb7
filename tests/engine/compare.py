"""Where two paths' answers to one prompt part, and whether a rounding explains it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.sampling import SamplingRule

NEAR = 1e-3
"""Distance of a uniform to a boundary, and of the k-th logit to the next, within which a rounding may decide."""

Logits = Callable[[Sequence[int]], NDArray[np.float32]]
"""Tokens of an answer so far -> logits (V,) of the next one, on our own path."""


@dataclass
class Agreement:
    """Counts of answers, and how far log-probabilities of equal answers are apart."""

    answers: Counter[str] = field(default_factory=Counter)
    logprob: float = 0.0
    sampling_logprob: float = 0.0
    unexplained: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return self.answers.total()

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {count}" for name, count in self.answers.most_common())
        return (
            f"{self.total} answers: {counts}; log π of equal ones within {self.logprob:.1e}, of the rule within "
            f"{self.sampling_logprob:.1e}"
        )


def parted(
    rule: SamplingRule,
    ours: Sequence[int],
    theirs: Sequence[int],
    stream: tuple[int, int],
    asked: float,
    logits: Logits,
) -> str:
    """Compare two answers with the same uniforms: "equal", "boundary", "k-th logit" or "unexplained".

    The middle ones name what a rounding may have decided where the answers part.
    """
    if list(ours) == list(theirs):
        return "equal"
    place = next(
        (number for number, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )
    row = logits(list(ours[:place]))
    scores = rule.allowed(row[None], [place])[0]
    order = np.argsort(-scores, kind="stable")
    count = rule.config.top_k
    if scores[order[count - 1]] - scores[order[count]] < NEAR:
        return "k-th logit"
    temperature = rule.config.temperature_at(place, asked)
    if temperature == 0:
        return "boundary" if scores[order[0]] - scores[order[1]] < NEAR else "unexplained"
    weights = np.exp((scores[order[:count]].astype(np.float64) - scores[order[0]]) / temperature)
    boundaries = np.cumsum(weights)[:-1] / weights.sum()
    uniform = rule.uniforms(*stream)[place]
    return "boundary" if np.abs(boundaries - uniform).min() < NEAR else "unexplained"
