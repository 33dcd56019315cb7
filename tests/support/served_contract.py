"""What CONTRACT.md asks of every model behind the night, as one check for all implementations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from generator.nightly.pictures import picture_seed
from generator.serving.api import (
    Answer,
    AnswerRequest,
    Answers,
    DrawRequest,
    PictureRequest,
    ServedPigeon,
)
from schemas.answers import AnswerSet, StoredAnswer
from schemas.preferences import PromptSnapshot

ALPHAS = (0.0, 0.5, 1.0, 0.0)
TEMPERATURES = (0.0, 1.0, 1.0, 2.0)
MOST_CODE = 2**31 - 1
SEED = 2**53 - 1


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    """Portraits that differ in colour and shape."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        image = np.full((96, 64, 3), rng.integers(0, 256, 3), np.uint8)
        x, y = rng.integers(0, 30, 2)
        image[y : y + 40, x : x + 24] = rng.integers(0, 256, 3)
        made.append(image)
    return made


def prompt_of(model: ServedPigeon, images: Sequence[npt.NDArray[np.uint8]]) -> PromptSnapshot:
    """A history of all images but the last, which is the reference."""
    *history, reference = [features.tokens for features in model.image_features(images)]
    return PromptSnapshot(
        history_titles=tuple(f"film {number}" for number in range(len(history))),
        history_tokens=tuple(history),
        title="A Film of One's Own, été",
        description="what happens in it",
        reference_tokens=reference,
    )


def check_contract(model: ServedPigeon, again: ServedPigeon) -> None:
    """Hold a model, and a second one made of the same weights, to the contract."""
    assert model.ready()
    versions = (model.tokenizer_version, model.drawing_version, model.base_weights)
    assert versions == (again.tokenizer_version, again.drawing_version, again.base_weights)
    assert all(versions)
    _check_features(model)
    asked = AnswerRequest("run/user/item", prompt_of(model, pictures(4)), ALPHAS, TEMPERATURES, SEED, 1)
    answers = model.answer(asked)
    _check_answers(answers)
    assert _stored(again.answer(asked)) == _stored(answers)
    _check_pictures(model, again, answers.answers)
    drawn = model.draw(DrawRequest("run/user/item", asked.prompt, (0.0, 1.0), SEED, 1))
    assert [one.alpha for one in drawn] == [0.0, 1.0]
    assert all(one.image.dtype == np.uint8 for one in drawn)


def _check_features(model: ServedPigeon) -> None:
    """Features do not depend on neighbours; texts and pictures are in one space of unit rows."""
    images = pictures(3)
    together = model.image_features(images)
    for image, features in zip(images, together, strict=True):
        (alone,) = model.image_features([image])
        assert alone.tokens == features.tokens
        assert np.array_equal(alone.embedding, features.embedding)
        assert all(0 <= token <= MOST_CODE for token in features.tokens)
        assert _is_unit(features.embedding)
    texts = model.text_embeddings(["a film", "another " * 200])
    assert texts.shape == (2, len(together[0].embedding))
    assert all(_is_unit(row) for row in texts)


def _check_answers(answers: Answers) -> None:
    """One per (α, temperature) in order, with probabilities, and previews in one space."""
    assert [(one.alpha, one.temperature) for one in answers.answers] == list(zip(ALPHAS, TEMPERATURES, strict=True))
    for one in answers.answers:
        assert all(0 <= token <= MOST_CODE for token in one.tokens)
        assert one.logprob <= 0
        assert (one.sampling_logprob == 0) if one.temperature == 0 else (one.sampling_logprob <= 0)
        assert _is_unit(one.preview)
    assert answers.history_previews.shape == (3, len(answers.answers[0].preview))
    assert all(_is_unit(row) for row in answers.history_previews)
    stored = AnswerSet.unpack(_stored(answers))
    assert [one.codes for one in stored.answers] == [one.tokens for one in answers.answers]


def _check_pictures(model: ServedPigeon, again: ServedPigeon, answers: Sequence[Answer]) -> None:
    """A picture's bytes depend on its codes and its seed alone: not on neighbours, nor on who draws it."""
    requests = [PictureRequest(one.tokens, picture_seed(model.drawing_version, one.tokens)) for one in answers]
    together = model.draw_pictures(requests)
    backwards = again.draw_pictures(requests[::-1])[::-1]
    for one, other in zip(together, backwards, strict=True):
        assert one.image.dtype == np.uint8
        assert one.image.ndim == 3
        assert one.image.shape[2] == 3
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.embedding, other.embedding)
        assert _is_unit(one.embedding)
    (elsewhere,) = model.draw_pictures([PictureRequest(requests[0].tokens, requests[0].seed + 1)])
    assert not np.array_equal(elsewhere.image, together[0].image)
    assert model.draw_pictures([]) == []


def _stored(answers: Answers) -> bytes:
    """As the night stores them."""
    return AnswerSet(
        tuple(
            StoredAnswer(one.tokens, one.alpha, one.temperature, one.logprob, one.sampling_logprob, one.preview)
            for one in answers.answers
        )
    ).pack()


def _is_unit(row: npt.NDArray[np.float32]) -> bool:
    return abs(float(np.linalg.norm(row)) - 1) < 1e-3
