"""What readers show of a task: the product's own policies and shares, on an arm's answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from generator.feedback.simulation.world import Floats
from generator.nightly.policies import ChoicePolicy, ModelPolicy, reader_shares
from schemas.answers import StoredAnswer
from schemas.settings import NightSettings


@dataclass(frozen=True)
class Shown:
    """An answer that the reader shows."""

    index: int
    """Place among the task's answers."""
    propensity: float
    """Probability that it was chosen and shown."""
    explored: bool
    """Shown in place of the first choice."""
    first: int
    """Place of the first choice."""


class Reader(Protocol):
    """Shows one answer of each task; the same arguments give the same answer."""

    def show(self, answers: Sequence[StoredAnswer], history: Floats, seed: int, point: float) -> Shown:
        """One of the answers, by the history's embeddings (H, E), the task's seed and a random number from [0, 1)."""


class PolicyReader:
    """Shows what a night's policy chose, as often as the manifest's shares say."""

    def __init__(self, policy: ChoicePolicy, settings: NightSettings) -> None:
        self._policy, self._settings = policy, settings

    @classmethod
    def of_the_model(cls, settings: NightSettings) -> PolicyReader:
        """What readers show before anything was learned."""
        return cls(ModelPolicy(), settings.model_copy(update={"policy": "model"}))

    def show(self, answers: Sequence[StoredAnswer], history: Floats, seed: int, point: float) -> Shown:
        """One of the variants, by their shares."""
        choices = self._policy.choose(answers, self._settings.variants, seed, history)
        shares = reader_shares(choices, self._settings)
        for choice, share in zip(choices, shares, strict=True):
            if point < share:
                break
            point -= share
        first = choices[0].index
        return Shown(choice.index, choice.probability * share, choice.index != first, first)
