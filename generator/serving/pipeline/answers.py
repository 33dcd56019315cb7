"""A task's answers: image prompts between its reference and its history; only numpy.

The image prompt of α mixes the mean of the history's embeddings with the reference's. The noise is what is sampled: all are
equally likely at any temperature, so the model prefers none (log π is the same for all), and the greedy answer has noise 0.
"""

from __future__ import annotations

import math

import numpy as np

from generator.pigeon.sampling import row_stream
from generator.serving.api import Answer, AnswerRequest, Answers, InferenceRejected
from generator.serving.pipeline.image_prompt import (
    BadCodes,
    Floats,
    ImagePrompt,
    image_embedding,
    prompt_codes,
)
from schemas.preferences import PromptSnapshot
from schemas.settings_models import PipelineSettings

ONLY_ADAPTER = 1
"""Number of the weights as they are; a pipeline has no retrained adapters."""


def answer_task(request: AnswerRequest, width: int, settings: PipelineSettings) -> Answers:
    """An answer per (α, temperature); `width` is that of the image encoder's embeddings.

    Raises:
        InferenceRejected: a grid that does not fit, an adapter, or codes of another model.
    """
    _check(request)
    history, reference = _pictures(request.prompt, width)
    chance = -math.log(settings.noises)
    answers = []
    for number, (alpha, temperature) in enumerate(zip(request.alphas, request.temperatures, strict=True)):
        greedy = temperature == 0
        noise = 0 if greedy else int(row_stream(request.seed, number).random() * settings.noises)
        mixed = mix(history, reference, settings.least_history + (1 - settings.least_history) * alpha)
        codes = prompt_codes(ImagePrompt(mixed, prompt_text(request.prompt, settings), noise))
        preview = unit(image_embedding(codes, width))
        answers.append(Answer(alpha, temperature, codes, chance, 0.0 if greedy else chance, preview))
    return Answers(tuple(answers), "conditions", np.stack([unit(row) for row in history]))


def mix(history: Floats, reference: Floats, share: float) -> Floats:
    """(H, D) and (D,) -> (D,): `share` of the history's mean, the rest of the reference.

    As long as they are on average: an IP-Adapter has learned from embeddings of their own length, and a mean is shorter.
    """
    lengths = np.linalg.norm(history, axis=1).mean(), np.linalg.norm(reference)
    mixed = share * history.mean(axis=0) + (1 - share) * reference
    length = share * lengths[0] + (1 - share) * lengths[1]
    scaled: Floats = (mixed * (length / max(float(np.linalg.norm(mixed)), 1e-12))).astype(np.float32)
    return scaled


def prompt_text(prompt: PromptSnapshot, settings: PipelineSettings) -> str:
    """The text prompt of a task."""
    return settings.text.format(title=prompt.title, description=prompt.description).strip()


def unit(vector: Floats) -> Floats:
    """The vector at length 1."""
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _check(request: AnswerRequest) -> None:
    if not request.alphas or not all(0 <= alpha <= 1 for alpha in request.alphas):
        raise InferenceRejected(f"alphas: {list(request.alphas)} must be one or more numbers in 0..1")
    if len(request.temperatures) != len(request.alphas) or min(request.temperatures) < 0:
        raise InferenceRejected(
            f"temperatures: {list(request.temperatures)}; give one per alpha ({len(request.alphas)}), none negative"
        )
    if request.seed < 0:
        raise InferenceRejected(f"seed: {request.seed} must not be negative")
    if request.adapter_version != ONLY_ADAPTER:
        raise InferenceRejected(
            f"adapter {request.adapter_version}: a pipeline has no retrained adapters, only number {ONLY_ADAPTER}"
        )
    if not request.prompt.history_tokens:
        raise InferenceRejected("prompt: history_tokens is empty; a task needs at least one history picture")


def _pictures(prompt: PromptSnapshot, width: int) -> tuple[Floats, Floats]:
    """Embeddings of the history (H, D) and of the reference (D,)."""
    try:
        history = np.stack([image_embedding(codes, width) for codes in prompt.history_tokens])
        return history, image_embedding(prompt.reference_tokens, width)
    except BadCodes as error:
        raise InferenceRejected(f"prompt: {error}") from error
