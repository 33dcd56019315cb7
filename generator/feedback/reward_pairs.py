"""Reward-ranked pairs: over all stored answers of a task.

The answer that a click model expects most of is chosen over the one that it expects least of.

Both are answers to the same prompt, so what sets them apart is what the model may learn. With the log-odds u of a click and
their posterior's covariance C the better one is better with probability Φ((u_a - u_b) / √(C_aa + C_bb - 2 C_ab)); a pair that is
less certain than `retrain.reward_certainty` is no pair, others weigh 2Φ - 1, divided by their mean.

The click model is fitted without held-out users (clicks/ranking.py): what judges a challenger must not have taught it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from generator.feedback.dated_pair import DatedPair, pair_id, prompt_of
from generator.feedback.queries import ANSWERED_TASKS
from schemas.answers import AnswerSet, StoredAnswer
from schemas.preferences import PreferencePair, PromptSnapshot

Floats = npt.NDArray[np.float64]
TASKS_AT_ONCE = 500


@dataclass(frozen=True)
class AnsweredTask:
    """A task with all answers that were sampled for it."""

    run_id: str
    user_id: str
    item_id: str
    seed: int
    prompt: PromptSnapshot
    answers: tuple[StoredAnswer, ...]
    decided_at: datetime

    @property
    def task_id(self) -> str:
        """As the night's requests name it."""
        return f"{self.run_id}/{self.user_id}/{self.item_id}"


@dataclass(frozen=True)
class ExpectedClicks:
    """What a click model expects of a task's K answers, shown to its user at the best position."""

    mean: Floats
    """(K,), probability of a click."""
    utility: Floats
    """(K,), log-odds of a click, the same number for all of them left out."""
    covariance: Floats
    """(K, K), how sure these log-odds are: all answers rest on the same weights, so their errors hang together."""

    def certainty(self, better: int, worse: int) -> float:
        """Probability that one answer is better than another one."""
        apart = float(self.utility[better] - self.utility[worse])
        own = self.covariance
        variance = float(own[better, better] + own[worse, worse] - 2 * own[better, worse])
        if variance > 0:
            return NormalDist().cdf(apart / math.sqrt(variance))
        return float(apart > 0) if apart else 0.5


ClickModel = Callable[[Sequence[AnsweredTask]], Sequence[ExpectedClicks]]
"""Expectations per task, in order."""


@dataclass(frozen=True)
class RewardRanking:
    """A click model, and how certain it has to be of a pair (0.5 to 1)."""

    model: ClickModel
    certainty: float


def rank_answers(
    session: Session, bindings: Mapping[str, Any], reward: RewardRanking, taken: Collection[tuple[str, str]]
) -> list[DatedPair]:
    """Pairs of the latest task of each user and item; none for (user, item) in `taken`.

    `bindings`: start, stop and base of `ANSWERED_TASKS`.
    """
    found: list[tuple[AnsweredTask, int, int, float]] = []
    for tasks in _in_parts(read_tasks(session, bindings, taken)):
        for task, expected in zip(tasks, reward.model(tasks), strict=True):
            ranked = best_over_worst(task.answers, expected, reward.certainty)
            if ranked is not None:
                found.append((task, *ranked))
    mean = sum(weight for *_, weight in found) / len(found) if found else 1.0
    return [_pair(task, best, worst, weight / mean) for task, best, worst, weight in found]


def read_tasks(
    session: Session, bindings: Mapping[str, Any], taken: Collection[tuple[str, str]] = ()
) -> Iterator[AnsweredTask]:
    """The latest task of each user and item with its stored answers, ordered by user and item."""
    for row in session.execute(ANSWERED_TASKS, dict(bindings)):
        prompt = prompt_of(row.prompt)
        if prompt is not None and (row.user_id, row.item_id) not in taken:
            answers = AnswerSet.unpack(bytes(row.answers)).answers
            yield AnsweredTask(row.run_id, row.user_id, row.item_id, row.seed, prompt, answers, row.decided_at)


def best_over_worst(
    answers: Sequence[StoredAnswer], expected: ExpectedClicks, certainty: float
) -> tuple[int, int, float] | None:
    """Places of the answer that most is expected of and of the one that least is.

    The third is the pair's weight, 2Φ - 1.

    None when they are less certain apart than `certainty`, or one answer.
    """
    places = [place for place, answer in enumerate(answers) if answer.codes]
    if len({answers[place].codes for place in places}) < 2:
        return None
    best = max(places, key=lambda place: (expected.mean[place], -place))
    worst = min(places, key=lambda place: (expected.mean[place], place))
    if expected.mean[best] <= expected.mean[worst] or answers[best].codes == answers[worst].codes:
        return None
    sure = expected.certainty(best, worst)
    return (best, worst, 2 * sure - 1) if sure >= certainty else None


def _pair(task: AnsweredTask, best: int, worst: int, weight: float) -> DatedPair:
    chosen, rejected = f"{task.task_id}#{best}", f"{task.task_id}#{worst}"
    return DatedPair(
        PreferencePair(
            pair_id=pair_id(chosen, rejected, "reward"),
            user_id=task.user_id,
            item_id=task.item_id,
            prompt=task.prompt,
            alpha=round(task.answers[best].alpha, 6),  # stored as float32
            seed=task.seed,
            chosen_poster_id=chosen,
            rejected_poster_id=rejected,
            chosen_tokens=task.answers[best].codes,
            rejected_tokens=task.answers[worst].codes,
            source="reward",
            weight=round(weight, 6),
        ),
        task.decided_at,
    )


def _in_parts(tasks: Iterator[AnsweredTask]) -> Iterator[list[AnsweredTask]]:
    part: list[AnsweredTask] = []
    for task in tasks:
        part.append(task)
        if len(part) == TASKS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part
