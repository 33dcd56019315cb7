"""Scores, quality gate, image hashes, propensities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator.nightly.rows import PictureRow
from generator.nightly.select import (
    BLANK,
    COPY_OF_REFERENCE,
    COPY_OF_VARIANT,
    OFF_REFERENCE,
    ImageHash,
    PromptFeatures,
    image_hash,
    judge,
    propensities,
)
from schemas.settings import NightSettings

SETTINGS = NightSettings()


def drawing(seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST))


def unit(*values: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.array(values, np.float32)
    return vector / np.linalg.norm(vector)


def picture(seed: int, embedding: np.ndarray[Any, Any] | None, image: Any = None) -> PictureRow:
    look = str(image_hash(drawing(seed) if image is None else image))
    return PictureRow(f"key{seed}", (1, seed), "drawn", None, "unchecked", "a", "b", look, embedding=embedding)


def features(reference: Any = None) -> PromptFeatures:
    return PromptFeatures(
        unit(1, 0),
        unit(0, 1),
        np.stack([unit(0, 1), unit(1, 0)]),
        image_hash(drawing(99) if reference is None else reference),
    )


def test_scores_by_hand() -> None:
    first = judge(0, 0.3, picture(1, unit(1, 0)), features(), [], SETTINGS)
    # CS 100, CIS 0 to the reference, mean CIS (0 + 100) / 2.
    assert (first.cs, first.cis_reference, first.cis_history, first.score) == (100, 0, 50, 75)
    assert first.refused is None
    assert first.row().json() == {
        "index": 0,
        "alpha": 0.3,
        "cs": 100.0,
        "cis_reference": 0.0,
        "cis_history": 50.0,
        "score": 75.0,
        "refused": None,
    }
    slanted = judge(2, 0.3, picture(3, unit(1, 1)), features(), [first], SETTINGS)
    assert slanted.score == pytest.approx(100 / np.sqrt(2), abs=1e-4), "at 45 degrees to everything"


def test_the_gate_says_why() -> None:
    settings = SETTINGS.model_copy(update={"min_reference_score": 10.0})
    good = unit(1, 0.1)
    noisy = np.clip(drawing(1).astype(int) + 2, 0, 255).astype(np.uint8)
    kept = [judge(0, 0.0, picture(1, good), features(), [], settings)]
    assert kept[0].refused is None
    for given, reason in (
        (picture(2, unit(-1, 1)), OFF_REFERENCE),
        (picture(99, good), COPY_OF_REFERENCE),
        (picture(7, unit(1, 0.2), noisy), COPY_OF_VARIANT),
    ):
        assert judge(1, 0.0, given, features(), kept, settings).refused == reason
    assert judge(1, 0.0, picture(2, good), features(), kept, settings).refused is None


def test_what_is_wrong_for_everybody_is_wrong_here() -> None:
    blank = replace(picture(1, unit(1, 0)), status="refused", reason=BLANK)
    assert judge(0, 0.0, blank, features(), [], SETTINGS).refused == BLANK
    broken = PictureRow("k", (1,), "refused", "corrupt", "unchecked")
    judged = judge(0, 0.0, broken, features(), [], SETTINGS)
    assert judged.refused == "corrupt"
    assert np.isnan(judged.cs)


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
