"""A task's answers: which are asked for, and as what they are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from generator.nightly.policies import Choice
from generator.serving.api import AnswerRequest, Answers, InferenceCorrupt
from schemas.answers import AnswerSet, StoredAnswer
from schemas.preferences import PromptSnapshot
from schemas.settings import NightSettings
from schemas.tables import NightTask


def ladder(settings: NightSettings) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """α and temperature of each answer.

    Answer 0 is greedy at the first α. The others pair each α with each temperature, one step further at every round of the
    grid, so that no α has one temperature only.
    """
    alphas, temperatures = settings.alphas, settings.temperatures
    pairs = [(alphas[0], 0.0)]
    for number in range(settings.answers - 1):
        turn, place = divmod(number, len(alphas))
        pairs.append((alphas[place], temperatures[(place + turn) % len(temperatures)]))
    return tuple(alpha for alpha, _ in pairs), tuple(temperature for _, temperature in pairs)


def request_of(task: NightTask, prompt: PromptSnapshot, settings: NightSettings) -> AnswerRequest:
    """The request for a task's answers."""
    alphas, temperatures = ladder(settings)
    return AnswerRequest(
        task_id=f"{task.run_id}/{task.user_id}/{task.item_id}",
        prompt=prompt,
        alphas=alphas,
        temperatures=temperatures,
        seed=task.seed,
        adapter_version=task.adapter_version,
    )


def as_set(request: AnswerRequest, answers: Answers, text: npt.NDArray[np.float32]) -> AnswerSet:
    """The answers with the scores (100 x cosine) of their previews; nothing is chosen yet.

    `text`: (D,), the scorer's embedding of the item's text; compared with previews that are sketches, others are in another space.

    Raises:
        InferenceCorrupt: another number of answers than was asked for.
    """
    if len(answers.answers) != len(request.alphas):
        raise InferenceCorrupt(f"{len(answers.answers)} answers for {len(request.alphas)} that were asked for")
    sketches = answers.preview_kind == "sketch"
    return AnswerSet(
        tuple(
            StoredAnswer(
                codes=answer.tokens,
                alpha=answer.alpha,
                temperature=answer.temperature,
                logprob=answer.logprob,
                sampling_logprob=answer.sampling_logprob,
                preview=answer.preview,
                cs=100 * float(answer.preview @ text) if sketches else float("nan"),
                cis_history=100 * float((answers.history_previews @ answer.preview).mean()),
            )
            for answer in answers.answers
        )
    )


def with_choice(found: AnswerSet, chooser: str, choices: Sequence[Choice], variants: Mapping[int, int]) -> AnswerSet:
    """The set with who chose what.

    `choices`: those whose pictures were asked for; `variants`: the variant number of each answer that is kept.
    """
    chosen_with = {choice.index: choice.probability for choice in choices}
    return AnswerSet(
        tuple(
            replace(answer, variant=variants.get(index, -1), chosen_with=chosen_with.get(index, 0.0))
            for index, answer in enumerate(found.answers)
        ),
        chooser,
    )
