"""Scores, quality gate, image hashes, propensities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator.nightly.select import (
    BLANK,
    COPY_OF_REFERENCE,
    COPY_OF_VARIANT,
    OFF_REFERENCE,
    OUTSCORED,
    ImageHash,
    PromptFeatures,
    choose,
    image_hash,
    propensities,
)
from generator.serving.api import DrawnImage
from schemas.settings import NightSettings

SETTINGS = NightSettings()


def drawing(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST))


def unit(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def candidate(seed: int, embedding: np.ndarray[Any, Any], image: Any = None) -> DrawnImage:
    return DrawnImage(0.5, (1, seed), drawing(seed) if image is None else image, embedding)


def test_scores_by_hand_and_the_best_are_kept() -> None:
    candidates = [candidate(1, unit(1, 0)), candidate(2, unit(0, 1)), candidate(3, unit(1, 1))]
    judged, kept = choose(
        candidates,
        PromptFeatures(unit(1, 0), unit(0, 1), np.stack([unit(0, 1), unit(1, 0)]), image_hash(drawing(99))),
        SETTINGS,
    )
    # Candidate 0: CS 100, CIS 0 to the reference, mean CIS (0 + 100) / 2; candidate 2 is at 45 degrees to everything.
    assert (judged[0].cs, judged[0].cis_reference, judged[0].cis_history, judged[0].score) == (100, 0, 50, 75)
    assert judged[2].score == pytest.approx(100 / np.sqrt(2), abs=1e-4)
    assert [scored.index for scored in kept] == [0, 2]
    assert [scored.refused for scored in judged] == [None, OUTSCORED, None]


def test_another_answer_is_kept_before_the_same_one_drawn_again() -> None:
    def kept(*codes: tuple[int, ...]) -> list[int]:
        candidates = [
            DrawnImage(0.1 * number, tokens, drawing(number), unit(1, 0.1 * number))
            for number, tokens in enumerate(codes)
        ]
        _, chosen = choose(
            candidates,
            PromptFeatures(unit(1, 0), unit(1, 0), np.stack([unit(1, 0)]), image_hash(drawing(99))),
            SETTINGS,
        )
        return [scored.index for scored in chosen]

    assert kept((1,), (1,), (2,)) == [0, 2]
    assert kept((1,), (1,), (1,)) == [0, 1], "rather two drawings of one answer than one"
    assert kept((1,), (2,), (2,)) == [0, 1]


def test_the_gate_says_why() -> None:
    settings = SETTINGS.model_copy(update={"min_reference_score": 10.0, "variants": 3})
    embedding = unit(1, 0.1)
    noisy = np.clip(drawing(1).astype(int) + 2, 0, 255).astype(np.uint8)
    candidates = [
        candidate(0, embedding, np.full((64, 64, 3), 90, np.uint8)),
        candidate(2, unit(-1, 1)),
        candidate(99, embedding),
        candidate(1, embedding),
        candidate(1, unit(1, 0.2), noisy),
    ]
    judged, kept = choose(
        candidates,
        PromptFeatures(unit(1, 0), unit(1, 0), np.stack([unit(1, 0)]), image_hash(drawing(99))),
        settings,
    )
    assert [scored.refused for scored in judged] == [BLANK, OFF_REFERENCE, COPY_OF_REFERENCE, None, COPY_OF_VARIANT]
    assert [scored.index for scored in kept] == [3]


def test_an_image_hash_sees_shapes_and_colours() -> None:
    image = drawing(5)
    recoloured = image[..., ::-1]
    assert ImageHash.parse(str(image_hash(image))) == image_hash(image)
    assert image_hash(image).is_near(image_hash(image), 0)
    assert not image_hash(image).is_near(image_hash(recoloured), 64)  # same shapes, another palette
    assert not image_hash(image).is_near(image_hash(drawing(6)), 2)


@pytest.mark.parametrize(
    ("scores", "exploration", "expected"),
    [
        ([], 0.5, []),
        ([3.0], 0.5, [1.0]),
        ([3.0, 5.0], 0.5, [0.25, 0.75]),
        ([5.0, 5.0], 0.0, [1.0, 0.0]),
        ([1, 2, 3], 1.0, [1 / 3] * 3),
    ],
)
def test_propensities(scores: list[float], exploration: float, expected: list[float]) -> None:
    assert propensities(scores, exploration) == pytest.approx(expected)
