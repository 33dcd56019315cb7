"""Arms: what is shown to the same users in the same showings, night after night.

All arms get the same catalogue clicks. Where an arm takes clicked posters into the history, it does as nights do
(generator/nightly/clicked_posters.py, history.drawn_share).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from generator.feedback.simulation.drawing import Histories, NightAnswers, Shift, answer, look_of
from generator.feedback.simulation.learning import retrain
from generator.feedback.simulation.log import Log, LoggedTask
from generator.feedback.simulation.showing import PolicyReader, Reader, Shown
from generator.feedback.simulation.world import Draws, Floats, Ints
from schemas.answers import StoredAnswer
from schemas.settings import Settings

ARMS = {
    "official": "the items' own posters",
    "frozen": "the model's favourite answer, never retrained; histories of catalogue clicks only",
    "frozen_history": "the same, and clicked posters enter the history: what lifts are over",
    "loop": "the loop: the night's policies, click model, retrains, clicked posters in the history",
    "loop_unexplored": "the loop that never explores: one variant, the best",
    "oracle": "the best of all looks under the truth",
}
BASELINE = "frozen_history"

Progress = Callable[[str], None]


@dataclass
class ArmResult:
    """What came of an arm in one world."""

    rates: list[float] = field(default_factory=list)
    """By night, mean true probability of a click on what was shown."""
    clicks: list[int] = field(default_factory=list)
    """By night, what the dice made of it."""
    explored: list[int] = field(default_factory=list)
    """By night, showings of something else than the first choice."""
    explored_loss: list[float] = field(default_factory=list)
    """By night, expected clicks that these would have had more as first choices."""
    showings: int = 0
    """Per night."""
    distinct_answers: float = 0.0
    """Mean number of distinct answers per task."""
    retrains: list[dict[str, Any]] = field(default_factory=list)
    cpu_seconds: float = 0.0


def run_arm(name: str, draws: Draws, retrains: tuple[int, ...], settings: Settings) -> ArmResult:
    """Run one arm of `ARMS`; `retrains` are the nights (from 0) after which it learns."""
    begin = time.process_time()
    if name == "official":
        result = _shown_to_all(draws, draws.official[draws.items])
    elif name == "oracle":
        result = _shown_to_all(draws, draws.truth.argmax(axis=-1))
    elif name in {"frozen", "frozen_history"}:
        result = _frozen(draws, _most_drawn(settings) if name == "frozen_history" else 0)
    else:
        result = _Loop(draws, _never_exploring(settings) if name == "loop_unexplored" else settings).run(retrains)
    result.cpu_seconds = round(time.process_time() - begin, 2)
    return result


def retrain_nights(nights: int, retrains: int) -> tuple[int, ...]:
    """Nights (from 0) after which an arm learns.

    They are evenly spread, and the last nights are left to show what came of it.
    """
    step = nights // (retrains + 1)
    return tuple(step * number for number in range(1, retrains + 1))


def _never_exploring(settings: Settings) -> Settings:
    return settings.model_copy(update={"night": settings.night.model_copy(update={"variants": 1})})


def _shown_to_all(draws: Draws, looks: Ints) -> ArmResult:
    """`looks`: (N, U, T)."""
    result = ArmResult()
    for night in range(draws.world.nights):
        _note(result, _chances(draws, night, looks[night]), draws.dice[night, ..., 1])
    return result


def _most_drawn(settings: Settings) -> int:
    return settings.history.most_drawn(settings.night.history_length)


def _frozen(draws: Draws, most_drawn: int) -> ArmResult:
    result, histories = ArmResult(), Histories(draws, most_drawn)
    distinct_counts = []
    for night in range(draws.world.nights):
        histories.add_catalogue_clicks(night)
        answers = answer(draws, night, histories, Shift.none())
        looks = answers.looks[..., 0]
        clicked = _note(result, _chances(draws, night, looks), draws.dice[night, ..., 1])
        distinct_counts.append(_distinct(answers.looks))
        _remember(histories, answers, looks, clicked)
    result.distinct_answers = float(np.mean(distinct_counts))
    return result


class _Loop:
    """The loop, night by night."""

    def __init__(self, draws: Draws, settings: Settings) -> None:
        self._draws, self._settings = draws, settings
        self._histories, self._log, self._shift = Histories(draws, _most_drawn(settings)), Log(), Shift.none()
        self._reader: Reader = PolicyReader.of_the_model(settings.night)
        self._result = ArmResult()

    def run(self, retrains: tuple[int, ...]) -> ArmResult:
        counts = []
        for night in range(self._draws.world.nights):
            self._histories.add_catalogue_clicks(night)
            answers = answer(self._draws, night, self._histories, self._shift)
            counts.append(_distinct(answers.looks))
            looks, clicked = self._show(night, answers)
            _remember(self._histories, answers, looks, clicked)
            if night in retrains:
                self._learn(night)
        self._result.distinct_answers = float(np.mean(counts))
        return self._result

    def _show(self, night: int, answers: NightAnswers) -> tuple[Ints, Ints]:
        """Looks that were shown (U, T) and clicks (U, T)."""
        looks, first = np.zeros_like(answers.items), np.zeros_like(answers.items)
        shown: list[tuple[tuple[StoredAnswer, ...], Shown]] = []
        for number, (user, place) in enumerate(np.ndindex(*answers.items.shape)):
            stored = tuple(answers.stored(self._draws, user, place))
            seed, point = night * answers.items.size + number, float(self._draws.dice[night, user, place, 0])
            one = self._reader.show(stored, answers.histories[user], seed, point)
            looks[user, place], first[user, place] = (look_of(stored[at].codes) for at in (one.index, one.first))
            shown.append((stored, one))
        best, chances = _chances(self._draws, night, first), _chances(self._draws, night, looks)
        clicked = _note(self._result, chances, self._draws.dice[night, ..., 1])
        self._result.explored[-1] = int((looks != first).sum())
        self._result.explored_loss[-1] = float((best - chances).sum())
        for (user, place), (stored, one) in zip(np.ndindex(*answers.items.shape), shown, strict=True):
            self._log.add(
                LoggedTask(
                    user=user,
                    item=int(answers.items[user, place]),
                    night=night,
                    position=place,
                    answers=stored,
                    history=answers.histories[user],
                    shown=one.index,
                    propensity=one.propensity,
                    clicked=bool(clicked[user, place]),
                    shift=self._shift,
                )
            )
        return looks, clicked

    def _learn(self, night: int) -> None:
        number = len(self._result.retrains) + 1
        reading = self._draws.world.reading
        found = retrain(self._log, self._histories.looks, reading, self._shift, number, self._settings)
        self._reader, self._shift = found.reader or self._reader, found.shift
        self._result.retrains.append({"after_night": night + 1, **found.record})


def _chances(draws: Draws, night: int, looks: Ints) -> Floats:
    """(U, T): true probability of a click on looks (U, T)."""
    return np.take_along_axis(draws.truth[night], looks[..., None], axis=2)[..., 0]


def _note(result: ArmResult, chances: Floats, dice: Floats) -> Ints:
    """Add a night's figures; returns its clicks (U, T), 0 or 1."""
    clicked = (dice < chances).astype(np.int64)
    result.rates.append(float(chances.mean()))
    result.clicks.append(int(clicked.sum()))
    result.explored.append(0)
    result.explored_loss.append(0.0)
    result.showings = chances.size
    return clicked


def _remember(histories: Histories, answers: NightAnswers, looks: Ints, clicked: Ints) -> None:
    for user, place in zip(*np.nonzero(clicked), strict=True):
        histories.add_poster(int(user), int(answers.items[user, place]), int(looks[user, place]), int(place))


def _distinct(looks: Ints) -> float:
    ordered = np.sort(looks, axis=-1)
    return float(1 + (np.diff(ordered, axis=-1) != 0).sum(axis=-1).mean())
