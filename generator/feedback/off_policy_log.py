"""The log behind an off-policy value.

It is showings of held-out users, their tasks' answers, and both models' log π of these.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from generator.feedback.dated_pair import prompt_of
from generator.feedback.gate import NotJudged
from generator.feedback.off_policy import LoggedShowings, OffPolicyValue, evaluate, shown_probabilities
from generator.feedback.ports import RetrainContext
from generator.feedback.queries import SHOWN_ANSWERS, WITH_NESTED_LOOPS, WITHOUT_NESTED_LOOPS
from generator.feedback.reward_pairs import AnsweredTask, ClickModel, ExpectedClicks
from generator.feedback.split import is_held_out
from generator.storage.showings import hygiene
from schemas.answers import AnswerSet, StoredAnswer
from schemas.hashing import unit_interval
from schemas.settings_loop import ClickSettings

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ShownTask:
    """A task of a held-out user, its distinct answers, and what was shown of it."""

    task: AnsweredTask
    """Its answers are the distinct ones, each where it came first."""
    reader: Floats
    """(V,), with which the reader shows variants 0, 1, ..."""
    showings: tuple[tuple[int, float, int], ...]
    """Place of the shown answer, joint propensity, click."""


def value_of(
    context: RetrainContext,
    session: Session,
    window: tuple[datetime, datetime],
    challenger: Path,
    champion: Path | None,
) -> OffPolicyValue | NotJudged:
    """The challenger's off-policy gain over the champion on the window's showings of held-out users."""
    settings = context.settings.retrain
    if settings.off_policy_tasks == 0:
        return NotJudged("retrain.off_policy_tasks is 0")
    clicks = context.settings.clicks
    shown = read_shown(session, window, settings.holdout_share, settings.off_policy_tasks, context.base_sha256, clicks)
    if not shown:
        return NotJudged("no showings of held-out users with stored answers")
    tasks = [one.task for one in shown]
    logprobs = tuple(context.trainer.answer_logprobs(adapter, tasks) for adapter in (challenger, champion))
    return evaluate(
        as_showings(shown, logprobs[0], logprobs[1], expect(context.clicks, tasks)),
        settings.gate_confidence,
        settings.off_policy_min_samples,
        settings.off_policy_min_clicks,
    )


def expect(model: ClickModel | None, tasks: Sequence[AnsweredTask]) -> Sequence[ExpectedClicks] | None:
    """A click model's expectations per task, if there is one."""
    return model(tasks) if model is not None else None


def read_shown(
    session: Session,
    window: tuple[datetime, datetime],
    holdout_share: float,
    limit: int,
    base_sha256: str,
    clicks: ClickSettings,
) -> list[ShownTask]:
    """At most `limit` tasks, chosen by a stable hash; `clicks`: whose showings do not count."""
    session.execute(WITHOUT_NESTED_LOOPS)
    bindings = {"start": window[0], "stop": window[1], "base": base_sha256, **hygiene(clicks)}
    rows: dict[tuple[str, str, str], list[Any]] = defaultdict(list)
    for row in session.execute(SHOWN_ANSWERS, bindings):
        if is_held_out(row.user_id, holdout_share):
            rows[(row.run_id, row.user_id, row.item_id)].append(row)
    session.execute(WITH_NESTED_LOOPS)
    keys = sorted(rows, key=lambda key: unit_interval("off-policy:" + "/".join(key)))
    found = [_shown_task(rows[key]) for key in keys[:limit]]
    return [one for one in found if one is not None]


def _shown_task(rows: Sequence[Any]) -> ShownTask | None:
    first = rows[0]
    prompt = prompt_of(first.prompt)
    answers = AnswerSet.unpack(bytes(first.answers)).answers
    places = _distinct(answers)
    shown_as = {answer.variant: answer for answer in answers if answer.variant >= 0}
    showings = [
        (places[answer.codes], answer.chosen_with * row.propensity, row.clicked)
        for row in rows
        if (answer := shown_as.get(row.variant)) is not None and answer.chosen_with > 0 and row.propensity
    ]
    if prompt is None or not showings:
        return None
    kept = tuple(next(a for a in answers if a.codes == codes) for codes in places)
    task = AnsweredTask(first.run_id, first.user_id, first.item_id, first.seed, prompt, kept, first.shown_at)
    reader = np.array(first.reader, dtype=np.float64)
    return ShownTask(task, reader, tuple(showings))


def _distinct(answers: Sequence[StoredAnswer]) -> dict[tuple[int, ...], int]:
    """Distinct codes -> place among the distinct, in order of first appearance."""
    found: dict[tuple[int, ...], int] = {}
    for answer in answers:
        if answer.codes:
            found.setdefault(answer.codes, len(found))
    return found


def as_showings(
    shown: Sequence[ShownTask],
    challenger: Sequence[Floats],
    champion: Sequence[Floats],
    expected: Sequence[ExpectedClicks] | None,
) -> LoggedShowings:
    """Showings with both policies' probabilities; `challenger`, `champion`: log π (K,) per task."""
    columns: list[tuple[float, ...]] = []
    users: list[str] = []
    for number, one in enumerate(shown):
        ours, theirs = (shown_probabilities(side[number], one.reader) for side in (challenger, champion))
        means = expected[number].mean if expected else np.zeros(len(ours))
        for place, logged, clicked in one.showings:
            users.append(one.task.user_id)
            columns.append(
                (clicked, logged, theirs[place], ours[place], means[place], float(theirs @ means), float(ours @ means))
            )
    clicks, logged_with, base, new, mean, base_mean, new_mean = np.array(columns, dtype=np.float64).T
    have = expected is not None
    return LoggedShowings(
        tuple(users),
        clicks,
        logged_with,
        base,
        new,
        mean if have else None,
        base_mean if have else None,
        new_mean if have else None,
    )
