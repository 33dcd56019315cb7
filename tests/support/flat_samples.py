"""Samples of plain colours, whose figures are known by construction, for tests of the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from generator.datasets.icons import STYLES
from generator.pigeon.pipeline import Item, Task
from generator.training.evaluation.samples import Sample, Truth
from generator.training.nano.samples import as_rgb

SIDE = 32


class Flat:
    """Samples of plain colours: red is the concept, green the style, blue the palette."""

    concepts = tuple(f"c{n}" for n in range(20))
    styles = STYLES
    palettes = ("plain", "one", "two")
    shown = np.arange(12)
    about = "All are alike."

    def check(self) -> None:
        """Nothing is needed."""

    def choose(self, count: int, seed: int, alphas: Sequence[float], *, held_out: bool) -> list[Sample]:
        return [wanted(5, 1, 1)] * count

    def draw(self, truth: Truth) -> np.ndarray:
        return flat(*truth)


def colour(concept: float, style: float, palette: float) -> tuple[float, float, float]:
    return concept / 20, style / 5, palette / 2


def flat(*at: float) -> np.ndarray:
    return as_rgb(np.ones((3, SIDE, SIDE), np.float32) * np.array([colour(*at)], np.float32).T[..., None])


def wanted(concept: int, style: int, palette: int) -> Sample:
    past = [Item("w1", flat(concept + n, style, palette), "w2") for n in (1, 2)]
    reference = Item("w1", flat(concept, (style + 2) % 6, palette), "w4")
    return Sample(Truth(concept, style, palette), Task(past, reference, 1))
