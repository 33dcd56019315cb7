"""What readers show of a task: the product's own policies and shares, on an arm's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from generator.feedback.simulation.world import Floats
from generator.nightly.policies import Choice, ChoicePolicy, ModelPolicy, reader_shares
from generator.nightly.select import Vector
from schemas.answers import StoredAnswer, distinct
from schemas.settings import NightSettings


@dataclass(frozen=True)
class Shown:
    """An answer that the reader shows."""

    index: int
    """Place among the task's answers."""
    propensity: float
    """Probability that it was chosen and shown."""
    first: int
    """Place of the first choice."""


class Reader(Protocol):
    """Shows one answer of each task; the same arguments give the same answer."""

    def show(self, answers: Sequence[StoredAnswer], history: Floats, seed: int, point: float) -> Shown:
        """One of the answers.

        `history`: (H, E), embeddings; `seed`: the task's; `point`: a random number from [0, 1).
        """


class PolicyReader:
    """Shows what a night's policy chose, as often as the manifest's shares say."""

    def __init__(self, policy: ChoicePolicy, settings: NightSettings) -> None:
        self._policy, self._settings = policy, settings
        some = [Choice(place, 1.0, explored=place > 0) for place in range(settings.variants)]
        self._shares = [reader_shares(some[:count], settings) for count in range(settings.variants + 1)]

    @classmethod
    def of_the_model(cls, settings: NightSettings) -> PolicyReader:
        """What readers show before anything was learned."""
        return cls(ModelPolicy(), settings.model_copy(update={"policy": "model"}))

    def show(self, answers: Sequence[StoredAnswer], history: Floats, seed: int, point: float) -> Shown:
        """One of the variants, by their shares."""
        shares = self._shares[min(self._settings.variants, len(distinct(answers)))]
        # The first choice does not depend on how many are wanted, and mostly it is all that is looked at.
        wanted = 1 if point < shares[0] else len(shares)
        choices = self._policy.choose(answers, wanted, seed, cast("Vector", history))  # they compute in float64
        place = min(int(np.searchsorted(np.cumsum(shares), point, side="right")), len(shares) - 1)
        chosen, first = choices[place], choices[0].index
        return Shown(chosen.index, chosen.probability * shares[place], first)
