"""The policy `reward`: the best answer under a click model, and one that may be better.

The first choice has the highest posterior mean. The next ones are drawn among the near-best, by how often each is the best of
`DRAWS` draws from the posterior (Thompson sampling, Chapelle and Li 2011), `FLOOR` of it spread evenly; what is logged is the
probability that was drawn with, so the Monte Carlo error is in the policy and not in the log. The others come after them by
their means. With which probability each is the best also says how often readers show it (`reader_shares`).

A click model expects what the model prefers until it has learned better (generator/feedback/clicks/fit.py), so without an effect
the first choice is the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from generator.nightly.policies import Choice, ChoicePolicy, draw_without_replacement
from generator.nightly.select import Vector
from schemas.answers import StoredAnswer, distinct
from schemas.click_features import Array, Candidates
from schemas.click_model import ClickModel, Utilities

DRAWS = 512
"""Draws from the posterior per task."""
FLOOR = 0.1
"""Share of the probability that is spread evenly among the near-best."""
NEAR_DEVIATIONS = 2.0
"""Deviations of the difference to the best mean within which an answer is near-best."""


class RewardPolicy:
    """Chooses by a click model; where it does not fit the answers' embeddings, `otherwise` chooses."""

    def __init__(self, model: ClickModel, number: int, otherwise: ChoicePolicy) -> None:
        self.name = f"reward {number}"
        self._model = model
        self._otherwise = otherwise

    def choose(self, answers: Sequence[StoredAnswer], count: int, seed: int, history: Vector) -> list[Choice]:
        """The best mean, then a sample of the near-best, then the others by their means."""
        places = distinct(answers)
        if not places:
            return []
        candidates = Candidates.of([answers[place] for place in places], np.asarray(history, np.float64))
        if not self._model.fits(candidates):
            return self._otherwise.choose(answers, count, seed, history)
        found = self._model.utilities(candidates)
        rng = np.random.default_rng(seed)
        best = best_chances(found, rng)
        # Equal means: what the model prefers, then what came first.
        order = np.lexsort((np.arange(len(places)), -candidates.logprobs, -found.mean)).tolist()
        near = near_best(found, order[0])
        drawn = draw_without_replacement(near, [_floored(best[near])[n] for n in range(len(near))], count - 1, rng)
        left = [place for place in order[1:] if place not in near]
        chosen = [(order[0], 1.0), *drawn, *((place, 1.0) for place in left)]
        return [
            Choice(places[place], chance, explored=place != order[0], best=float(best[place]))
            for place, chance in chosen[:count]
        ]


def best_chances(found: Utilities, rng: np.random.Generator) -> Array:
    """(N,): how often each answer is the best of DRAWS draws from the posterior."""
    values, vectors = np.linalg.eigh(found.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = found.mean + rng.standard_normal((DRAWS, len(values))) @ root.T
    chances: Array = np.bincount(draws.argmax(axis=1), minlength=len(found.mean)) / DRAWS
    return chances


def near_best(found: Utilities, best: int) -> list[int]:
    """Places of the other answers that may well be as good as the best."""
    variance = np.diag(found.covariance)
    deviations = np.sqrt(np.maximum(variance + variance[best] - 2 * found.covariance[best], 0))
    near = found.mean[best] - found.mean <= NEAR_DEVIATIONS * deviations
    return [place for place in np.flatnonzero(near).tolist() if place != best]


def _floored(chances: Array) -> Array:
    """The same with FLOOR of it spread evenly."""
    total = chances.sum()
    even = np.full(len(chances), 1 / max(1, len(chances)))
    floored: Array = FLOOR * even + (1 - FLOOR) * (chances / total if total > 0 else even)
    return floored
