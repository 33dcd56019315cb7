"""What a safety model is for the night, and what it says about a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import ModelError

Pixels = npt.NDArray[np.uint8]
Safety = Literal["unchecked", "safe", "unsafe", "cleared"]

UNCHECKED: Safety = "unchecked"
SAFE: Safety = "safe"
UNSAFE: Safety = "unsafe"
"""Also the reason with which a picture is refused."""
CLEARED: Safety = "cleared"
"""Found unsafe by a model, and shown again by a person: no model judges it any more."""


DIGITS = 6
"""Decimals of a score: what the column keeps of one."""


class SafetyJudge(Protocol):
    """A model that scores pictures; called by several threads."""

    @property
    def version(self) -> str:
        """Name of the model and of its weights: another one judges all pictures again."""

    def score(self, image: Pixels) -> float:
        """How unsafe an (H, W, 3) RGB image is, from 0 (harmless) to 1."""


@dataclass(frozen=True)
class Verdict:
    """What is stored with a picture: the score and whose it is, so that another threshold needs no model."""

    safety: str = UNCHECKED
    score: float | None = None
    model: str | None = None

    @property
    def is_unsafe(self) -> bool:
        """Whether nobody may be shown the picture."""
        return self.safety == UNSAFE

    def words(self) -> str:
        """The verdict for whoever looks at it later."""
        return f"{self.model} scored {self.score:.3f}" if self.score is not None else "no score"


@dataclass(frozen=True)
class SafetyCheck:
    """A safety model with the score from which a picture is unsafe."""

    judge: SafetyJudge
    threshold: float

    def judged(self, image: Pixels) -> Verdict:
        """The verdict on an (H, W, 3) RGB image.

        Raises:
            ModelError: the model's score is no number from 0 to 1.
        """
        score = self.judge.score(image)
        if not 0 <= score <= 1:
            raise ModelError(f"safety model {self.judge.version}: a score of {score} is not from 0 to 1")
        return self._of(round(score, DIGITS))

    def of_stored(self, stored: Verdict) -> Verdict | None:
        """What a stored verdict is by today's threshold; None when the picture must be judged again."""
        if stored.safety == CLEARED:
            return stored
        if stored.score is None or stored.model != self.judge.version:
            return None
        return self._of(stored.score)

    def _of(self, score: float) -> Verdict:
        return Verdict(UNSAFE if score >= self.threshold else SAFE, score, self.judge.version)
