"""The policy `reward`: the best answer under a click model, and now and then one that may be better.

The first choice is the answer that the click model surely expects most of: the mean of its difference to the model's own favourite,
less `CAUTION` standard deviations of that difference. Where nothing is surely better the favourite stays, so a click model that has
learned little changes little (deploy/decisions/0024). The next choices are drawn among the near-best, by how often each is the
best of `DRAWS` draws from the posterior (Thompson sampling, Chapelle and Li 2011), `FLOOR` of it spread evenly; what is logged is
the probability that was drawn with, so the Monte Carlo error is in the policy and not in the log. The others come after them by
their means. How often readers show something else than the first choice is `night.reward_exploration`.
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


CAUTION = 1.0
"""Standard deviations of its difference to the model's favourite that an answer must be better by, to be the first choice."""


class RewardPolicy:
    """Chooses by a click model; where it does not fit the answers' embeddings, `otherwise` chooses."""

    def __init__(self, model: ClickModel, number: int, otherwise: ChoicePolicy) -> None:
        self.name = f"reward {number}"
        self._model = model
        self._otherwise = otherwise

    def choose(self, answers: Sequence[StoredAnswer], count: int, seed: int, history: Vector) -> list[Choice]:
        """The surely best, then a sample of the near-best, then the others by their means."""
        places = distinct(answers)
        if not places:
            return []
        candidates = Candidates.of([answers[place] for place in places], np.asarray(history, np.float64))
        if not self._model.fits(candidates):
            return self._otherwise.choose(answers, count, seed, history)
        found = self._model.utilities(candidates)
        first = surely_best(found, candidates.logprobs)
        others = _others(found, candidates.logprobs, first, count - 1, np.random.default_rng(seed)) if count > 1 else []
        return [
            Choice(places[place], chance, explored=place != first) for place, chance in [(first, 1.0), *others][:count]
        ]


def _others(
    found: Utilities, logprobs: Array, first: int, count: int, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """Near-best places that are drawn, then the others by their means, each with its probability."""
    best, near = best_chances(found, rng), near_best(found, first)
    drawn = draw_without_replacement(near, _floored(best[near]).tolist(), count, rng)
    # Equal means: what the model prefers, then what came first.
    means = np.lexsort((np.arange(len(logprobs)), -logprobs, -found.mean)).tolist()
    return [*drawn, *((place, 1.0) for place in means if place != first and place not in near)]


def best_chances(found: Utilities, rng: np.random.Generator) -> Array:
    """(N,): how often each answer is the best of DRAWS draws from the posterior."""
    values, vectors = np.linalg.eigh(found.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0))
    draws = found.mean + rng.standard_normal((DRAWS, len(values))) @ root.T
    chances: Array = np.bincount(draws.argmax(axis=1), minlength=len(found.mean)) / DRAWS
    return chances


def surely_best(found: Utilities, logprobs: Array) -> int:
    """Place of the answer that is surely better than the model's favourite by most; else the favourite's."""
    favourite = int(logprobs.argmax())
    gains = found.mean - found.mean[favourite] - CAUTION * _deviations(found, favourite)
    return int(gains.argmax()) if gains.max() > 0 else favourite


def near_best(found: Utilities, best: int) -> list[int]:
    """Places of the other answers that may well be as good as the best."""
    near = found.mean[best] - found.mean <= NEAR_DEVIATIONS * _deviations(found, best)
    return [place for place in np.flatnonzero(near).tolist() if place != best]


def _deviations(found: Utilities, place: int) -> Array:
    """(N,): standard deviations of the answers' differences to one of them."""
    variance = np.diag(found.covariance)
    deviations: Array = np.sqrt(np.maximum(variance + variance[place] - 2 * found.covariance[place], 0))
    return deviations


def _floored(chances: Array) -> Array:
    """The same with FLOOR of it spread evenly."""
    total = chances.sum()
    even = np.full(len(chances), 1 / max(1, len(chances)))
    floored: Array = FLOOR * even + (1 - FLOOR) * (chances / total if total > 0 else even)
    return floored
