"""Which of a task's answers are drawn: policies that choose among distinct ones.

A policy is given all stored answers and returns choices in the order in which they are wanted: the first `night.variants` of
them are drawn, the others only in place of refused ones. A new policy is a class with `name` and `choose`, an entry in
`click_models.policy_of`, and a word in the setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from generator.nightly.select import Vector, propensities
from schemas.answers import StoredAnswer, distinct
from schemas.settings import NightSettings

EXPLORATION_FLOOR = 0.1
"""Share of the probability that `model` spreads evenly, so that an unlikely answer is still tried now and then."""


@dataclass(frozen=True)
class Choice:
    """An answer that is to be drawn."""

    index: int
    """Place among the task's answers."""
    probability: float
    """With which the policy chose it, given what it had chosen before; 1 where nothing was left to chance."""
    explored: bool
    """Chosen to learn from, not because it is the best."""


class ChoicePolicy(Protocol):
    """Chooses among the answers of one task; the same arguments give the same choices."""

    @property
    def name(self) -> str:
        """Policy and version, as logged with the answers."""

    def choose(self, answers: Sequence[StoredAnswer], count: int, seed: int, history: Vector) -> list[Choice]:
        """At most `count` distinct answers, the most wanted first; fewer when there are no more.

        `history`: (H, E), embeddings of the pictures of the user's history.
        """


class ModelPolicy:
    """The model's best answer, then others sampled by how likely the model finds them.

    The best is the first one (greedy). A next one is drawn among the rest with a probability proportional to the softmax of
    log π, of which `EXPLORATION_FLOOR` is spread evenly.
    """

    name = "model 1"

    def choose(self, answers: Sequence[StoredAnswer], count: int, seed: int, history: Vector) -> list[Choice]:
        """The best answer with probability 1, then a sample without replacement."""
        best, *rest = distinct(answers) or [-1]
        if best < 0:
            return []
        rng = np.random.default_rng(seed)
        weights = _floored_softmax([answers[index].logprob for index in rest])
        drawn = draw_without_replacement(rest, weights, count - 1, rng)
        return [
            Choice(best, 1.0, explored=False),
            *(Choice(index, probability, explored=True) for index, probability in drawn),
        ]


def draw_without_replacement(
    places: Sequence[int], weights: Sequence[float], count: int, rng: np.random.Generator
) -> list[tuple[int, float]]:
    """At most `count` places, each with the probability that it was drawn with among those that were left."""
    left, unspent = list(places), list(weights)
    drawn: list[tuple[int, float]] = []
    while left and len(drawn) < count:
        shares = np.array(unspent) / math.fsum(unspent)
        place = min(int(np.searchsorted(np.cumsum(shares), rng.random(), side="right")), len(left) - 1)
        drawn.append((left.pop(place), float(shares[place])))
        unspent.pop(place)
    return drawn


def reader_shares(choices: Sequence[Choice], settings: NightSettings) -> list[float]:
    """Probability with which readers show each of the choices that are kept: most to the first."""
    return propensities([-place for place in range(len(choices))], exploration_of(settings))


def exploration_of(settings: NightSettings) -> float:
    """Share of the showings that the policy spreads evenly among the variants."""
    return settings.reward_exploration if settings.policy == "reward" else settings.exploration


def _floored_softmax(logprobs: Sequence[float]) -> list[float]:
    if not logprobs:
        return []
    weights = [math.exp(value - max(logprobs)) for value in logprobs]
    total = math.fsum(weights)
    floor = EXPLORATION_FLOOR / len(weights)
    return [floor + (1 - EXPLORATION_FLOOR) * weight / total for weight in weights]


class PaperPolicy:
    """The paper's score (PIGEON.md section 5) of the previews, best first.

    Where previews have no CS, because texts are not in their space, the history's CIS alone decides.
    """

    name = "paper 1"

    def __init__(self, reference_weight: float) -> None:
        self._reference_weight = reference_weight

    def choose(self, answers: Sequence[StoredAnswer], count: int, seed: int, history: Vector) -> list[Choice]:
        """The best scores, with probability 1."""
        ranked = sorted(distinct(answers), key=lambda index: (-self._score(answers[index]), index))
        return [Choice(index, 1.0, explored=False) for index in ranked[:count]]

    def _score(self, answer: StoredAnswer) -> float:
        if math.isnan(answer.cs):
            return answer.cis_history
        return self._reference_weight * answer.cs + (1 - self._reference_weight) * answer.cis_history
