"""Showings of an arm as the product's log has them: shown answer, propensity, click."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from generator.feedback.clicks.examples import Showings
from generator.feedback.simulation.drawing import Shift
from generator.feedback.simulation.world import Floats
from schemas.answers import StoredAnswer
from schemas.click_features import Candidates


@dataclass(frozen=True)
class LoggedTask:
    """A task that was shown once."""

    user: int
    item: int
    night: int
    position: int
    answers: tuple[StoredAnswer, ...]
    """The distinct ones."""
    history: Floats
    """(H, E)"""
    shown: int
    """Place of the shown answer."""
    propensity: float
    clicked: bool
    shift: Shift
    """Shift of the model that answered."""


@dataclass
class Log:
    """All showings of an arm so far, in order."""

    tasks: list[LoggedTask] = field(default_factory=list)
    _candidates: list[Candidates] = field(default_factory=list)

    def add(self, task: LoggedTask) -> None:
        """Note a showing."""
        self.tasks.append(task)
        self._candidates.append(Candidates.of(task.answers, task.history))

    def showings(self) -> Showings:
        """What a click model is fitted on."""
        rows = self.tasks
        return Showings(
            users=np.array([f"user{row.user}" for row in rows]),
            items=np.array([f"item{row.item}" for row in rows]),
            tasks=np.arange(len(rows)),
            answers=np.array([row.shown for row in rows]),
            clicked=np.array([float(row.clicked) for row in rows]),
            days=np.array([row.night for row in rows]),
            positions=np.array([row.position for row in rows]),
            surfaces=np.full(len(rows), "home"),
            propensities=np.array([row.propensity for row in rows]),
            candidates=tuple(self._candidates),
        )
