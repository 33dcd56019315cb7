"""The gate's metrics: how a challenger ranks held-out pairs, draws and answers beside the champion.

Each has an interval over users.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.feedback import diversity
from generator.feedback.diversity import AnswerGrid
from generator.feedback.gate import Metric, NotJudged
from generator.feedback.intervals import Estimate, UserBootstrap
from generator.feedback.off_policy import OffPolicyValue
from generator.feedback.ports import PairScores, RetrainContext
from generator.feedback.split import is_held_out
from generator.nightly.frozen_prompt import FrozenPrompt
from generator.serving.api import AnswerRequest, DrawRequest
from schemas.images import features_version
from schemas.preferences import PromptSnapshot
from schemas.tables import ImageFeature, NightTask

Vectors = npt.NDArray[np.float32]
TEMPERATURE = 1.0
"""Sampling temperature of the answers whose diversity is measured: the model's own distribution."""


@dataclass(frozen=True)
class HeldOutTask:
    """A night's task of a user that no adapter was trained on."""

    task_id: str
    user_id: str
    item_id: str
    prompt: FrozenPrompt
    seed: int
    history: Vectors
    """(H, D), unit rows: the scorer's embeddings of the history's images."""

    @property
    def snapshot(self) -> PromptSnapshot:
        """The model's input."""
        assert self.prompt.snapshot is not None, "held_out_tasks selects drawn tasks"  # noqa: S101 - for mypy
        return self.prompt.snapshot


@dataclass(frozen=True)
class DrawnScores:
    """Mean scores of each task over the α grid, 100·cosine, as the night scores its candidates."""

    users: tuple[str, ...]
    cs: tuple[float, ...]
    """Image against the item's text."""
    cis_history: tuple[float, ...]
    """Image against the history's images."""
    lengths: tuple[float, ...]
    """Codes per answer."""


@dataclass(frozen=True)
class Beside:
    """What both models drew and answered for the same held-out users."""

    challenger: DrawnScores
    champion: DrawnScores
    challenger_answers: AnswerGrid | None
    """None where there are fewer than two users to compare."""
    champion_answers: AnswerGrid | None


# Keys only: the prompts of a window's tasks would fill memory, the gate wants a few dozen of them.
_TASKS = text(
    """
SELECT t.run_id, t.user_id, t.item_id
FROM night_tasks t JOIN night_runs r USING (run_id)
WHERE r.logical_date >= cast(:start AS date)
  AND r.logical_date <= cast(cast(:stop AS timestamptz) - interval '1 microsecond' AS date)
  AND t.status = 'done'
  AND jsonb_typeof(t.prompt -> 'snapshot') = 'object'
  AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id
                  AND (e.completed_at IS NULL OR coalesce(t.finished_at, r.started_at) <= e.requested_at))
ORDER BY md5(cast(:rotation AS text) || '/' || t.user_id || '/' || t.item_id), r.logical_date DESC
"""
).execution_options(yield_per=1000)


def held_out_tasks(
    session: Session, start: datetime, stop: datetime, *, holdout_share: float, limit: int
) -> list[HeldOutTask]:
    """At most `limit` tasks of held-out users from the window's nights, each (user, item) once.

    Which of them is decided by a hash of user, item and the window's end: others every time, the same in a rerun.
    """
    keys: dict[tuple[str, str], str] = {}
    bindings = {"start": start, "stop": stop, "rotation": stop.date().isoformat()}
    for run_id, user_id, item_id in session.execute(_TASKS, bindings):
        if is_held_out(user_id, holdout_share):
            keys.setdefault((user_id, item_id), run_id)
            if len(keys) == limit:
                break
    found = []
    for (user_id, item_id), run_id in keys.items():
        task = session.get_one(NightTask, (run_id, user_id, item_id))
        prompt = FrozenPrompt.model_validate(task.prompt)
        history = _history(session, prompt)
        if history is not None:
            name = f"{run_id}/{user_id}/{item_id}"
            found.append(HeldOutTask(name, user_id, item_id, prompt, task.seed, history))
    return found


def _history(session: Session, prompt: FrozenPrompt) -> Vectors | None:
    """(H, D) embeddings of the history's images; None when the table has lost one."""
    version = features_version(prompt.tokenizer_version)
    rows = [session.get(ImageFeature, (image.sha256, version)) for image in prompt.history]
    kept = [row.embedding for row in rows if row is not None]
    return np.array(kept, np.float32) if len(kept) == len(rows) else None


def draw(context: RetrainContext, tasks: Sequence[HeldOutTask], adapter: int) -> DrawnScores:
    """Draw the tasks with an adapter and score them.

    The seeds are the night's, so two adapters differ by what they learned and nothing else.
    """
    model, alphas = context.serving.model, context.settings.night.alphas
    texts = model.text_embeddings([t.prompt.description or t.prompt.reference.title for t in tasks])
    rows: list[tuple[float, float, float]] = []
    for task, words in zip(tasks, texts, strict=True):
        candidates = model.draw(
            DrawRequest(task.task_id, task.snapshot, alphas, task.seed, adapter),
            deadline_seconds=context.settings.triton.inference_timeout_seconds,
        )
        scores = [
            (100 * float(c.embedding @ words), 100 * float(np.mean(task.history @ c.embedding)), float(len(c.tokens)))
            for c in candidates
        ]
        rows.append(tuple(np.mean(scores, axis=0).tolist()))
    cs, cis, lengths = zip(*rows, strict=True)
    return DrawnScores(tuple(task.user_id for task in tasks), cs, cis, lengths)


def answer_grid(context: RetrainContext, tasks: Sequence[HeldOutTask], adapter: int) -> AnswerGrid | None:
    """Answers for each of `gate_users` users, whatever they were drawn, and each of `gate_items` items.

    None for one user.
    """
    settings = context.settings.retrain
    users = list({task.user_id: task for task in reversed(tasks)}.values())[::-1][: settings.gate_users]
    items = list({task.item_id: task for task in reversed(tasks)}.values())[::-1][: settings.gate_items]
    if len(users) < 2:
        return None
    answers = tuple(tuple(_answers(context, user, item, adapter) for item in items) for user in users)
    return AnswerGrid(tuple(user.user_id for user in users), answers)


def _answers(
    context: RetrainContext, user: HeldOutTask, item: HeldOutTask, adapter: int
) -> tuple[tuple[int, ...], ...]:
    """Answers for one user's history and another task's item."""
    count, alphas = context.settings.retrain.gate_answers, context.settings.night.alphas
    wanted = item.snapshot
    prompt = user.snapshot.model_copy(
        update={
            "title": wanted.title,
            "description": wanted.description,
            "reference_tokens": wanted.reference_tokens,
        }
    )
    request = AnswerRequest(
        task_id=f"{user.task_id} for {item.item_id}",
        prompt=prompt,
        alphas=tuple(alphas[number % len(alphas)] for number in range(count)),
        temperatures=(TEMPERATURE,) * count,
        seed=user.seed,
        adapter_version=adapter,
    )
    timeout = context.settings.triton.inference_timeout_seconds
    found = context.serving.model.answer(request, deadline_seconds=timeout)
    return tuple(answer.tokens for answer in found.answers)


def of_pairs(scores: PairScores, confidence: float) -> dict[str, Estimate]:
    """accuracy, margin, kl and chosen_fall on held-out pairs."""
    bootstrap = UserBootstrap(scores.users, confidence)
    return {
        "accuracy": bootstrap.mean([margin if math.isnan(margin) else float(margin > 0) for margin in scores.margins]),
        "margin": bootstrap.mean(scores.margins),
        "kl": bootstrap.mean(scores.kls),
        "chosen_fall": bootstrap.mean([-gained for gained in scores.chosen]),
    }


def of_drawn(beside: Beside, confidence: float) -> dict[str, Estimate]:
    """What the challenger lost of cs, cis, and of the answers' diversity.

    Also by what share answers became longer.
    """
    champion, challenger = beside.champion, beside.challenger
    bootstrap = UserBootstrap(champion.users, confidence)
    length = bootstrap.ratio(challenger.lengths, champion.lengths)
    found = {
        "cs_drop": bootstrap.mean(np.subtract(champion.cs, challenger.cs)),
        "cis_drop": bootstrap.mean(np.subtract(champion.cis_history, challenger.cis_history)),
        "length_change": Estimate(length.value - 1, length.low - 1, length.high - 1, length.users),
    }
    if beside.champion_answers is not None and beside.challenger_answers is not None:
        found |= diversity.drops(beside.champion_answers, beside.challenger_answers, confidence)
    return found


def as_json(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """For the registry: each figure by its name, and under `intervals` its bounds and users."""
    estimates = {name: metric for name, metric in metrics.items() if isinstance(metric, Estimate)}
    return {
        **{name: estimate.value for name, estimate in estimates.items()},
        "intervals": {name: [one.low, one.high, one.users] for name, one in estimates.items()},
        "not_judged": {name: metric.reason for name, metric in metrics.items() if isinstance(metric, NotJudged)},
    }


def diversity_json(beside: Beside) -> dict[str, Any]:
    """For the registry: the diversities of both models themselves."""
    grids = {"champion": beside.champion_answers, "challenger": beside.challenger_answers}
    return {name: vars(diversity.measure(grid)) for name, grid in grids.items() if grid is not None}


def off_policy_json(value: OffPolicyValue | NotJudged | None) -> dict[str, Any]:
    """For the registry: values of both policies and on how much they rest."""
    if not isinstance(value, OffPolicyValue):
        return {}
    robust = value.doubly_robust
    return {
        "champion": value.champion,
        "challenger": value.challenger,
        "snips_gain": [value.snips.value, value.snips.low, value.snips.high],
        "doubly_robust_gain": [robust.value, robust.low, robust.high] if robust else None,
        "effective_samples": value.effective_samples,
        "showings": value.showings,
    }
