"""The gate's metrics: how a challenger ranks held-out pairs and draws beside the champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.feedback.ports import PairScores, RetrainContext
from generator.feedback.split import is_held_out
from generator.nightly.frozen_prompt import FrozenPrompt
from generator.serving.api import DrawRequest
from schemas.images import features_version
from schemas.tables import ImageFeature, NightTask

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeldOutTask:
    """A night's task of a user that no adapter was trained on."""

    task_id: str
    prompt: FrozenPrompt
    seed: int
    history: Vectors
    """(H, D), unit rows: the scorer's embeddings of the history's images."""


@dataclass(frozen=True)
class DrawnScores:
    """Mean scores over tasks and the α grid, 100·cosine, as the night scores its candidates."""

    cs: float
    """Image against the item's text."""
    cis_history: float
    """Image against the history's images."""


# Keys only: the prompts of a window's tasks would fill memory, the gate wants a few dozen of them.
_TASKS = text(
    """
SELECT t.run_id, t.user_id, t.item_id
FROM night_tasks t JOIN night_runs r USING (run_id)
WHERE r.logical_date >= cast(:start AS date) AND r.logical_date < cast(:stop AS date) AND t.status = 'done'
  AND NOT EXISTS (SELECT FROM erasures e WHERE e.user_id = t.user_id
                  AND coalesce(t.finished_at, r.started_at) <= e.requested_at)
ORDER BY md5(t.user_id || '/' || t.item_id), r.logical_date DESC
"""
).execution_options(yield_per=1000)


def held_out_tasks(
    session: Session, start: datetime, stop: datetime, *, holdout_share: float, limit: int
) -> list[HeldOutTask]:
    """At most `limit` tasks of held-out users from the window's nights, each (user, item) once.

    Which of them is decided by a stable hash.
    """
    keys: dict[tuple[str, str], str] = {}
    for run_id, user_id, item_id in session.execute(_TASKS, {"start": start, "stop": stop}):
        if is_held_out(user_id, holdout_share):
            keys.setdefault((user_id, item_id), run_id)
            if len(keys) == limit:
                break
    found = []
    for (user_id, item_id), run_id in keys.items():
        task = session.get_one(NightTask, (run_id, user_id, item_id))
        prompt = FrozenPrompt.model_validate(task.prompt)
        history = _history(session, prompt)
        if prompt.snapshot is not None and history is not None:
            found.append(HeldOutTask(f"{run_id}/{user_id}/{item_id}", prompt, task.seed, history))
    return found


def _history(session: Session, prompt: FrozenPrompt) -> Vectors | None:
    """(H, D) embeddings of the history's images; None when the table has lost one."""
    version = features_version(prompt.tokenizer_version)
    rows = [session.get(ImageFeature, (image.sha256, version)) for image in prompt.history]
    kept = [row.embedding for row in rows if row is not None]
    return np.array(kept, np.float32) if len(kept) == len(rows) else None


def draw(context: RetrainContext, tasks: Sequence[HeldOutTask], adapter: int) -> DrawnScores | None:
    """Draw the tasks with an adapter and score them; None when there are none.

    The seeds are the night's, so two adapters differ by what they learned and nothing else.
    """
    if not tasks:
        return None
    model, alphas = context.serving.model, context.settings.night.alphas
    texts = model.text_embeddings([t.prompt.description or t.prompt.reference.title for t in tasks])
    cs: list[float] = []
    cis: list[float] = []
    for task, words in zip(tasks, texts, strict=True):
        assert task.prompt.snapshot is not None, "held_out_tasks selects drawn tasks"  # noqa: S101 - for mypy
        candidates = model.draw(
            DrawRequest(task.task_id, task.prompt.snapshot, alphas, task.seed, adapter),
            deadline_seconds=context.settings.triton.inference_timeout_seconds,
        )
        for candidate in candidates:
            cs.append(100 * float(candidate.embedding @ words))
            cis.append(100 * float(np.mean(task.history @ candidate.embedding)))
    return DrawnScores(float(np.mean(cs)), float(np.mean(cis)))


def figures(
    judged: PairScores, challenger: DrawnScores | None = None, champion: DrawnScores | None = None
) -> dict[str, float | None]:
    """The gate's metrics by name; None where something was not measured."""
    both = challenger is not None and champion is not None
    return {
        "accuracy": judged.accuracy,
        "margin": judged.margin,
        "kl": judged.kl,
        "cs": challenger.cs if challenger else None,
        "cis_history": challenger.cis_history if challenger else None,
        "champion_cs": champion.cs if champion else None,
        "champion_cis_history": champion.cis_history if champion else None,
        "cs_drop": champion.cs - challenger.cs if both and champion and challenger else None,
        "cis_drop": champion.cis_history - challenger.cis_history if both and champion and challenger else None,
    }
