"""Simulated users with a known taste, and the picture that each should get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from generator.datasets.captions import facts_of, with_article
from generator.datasets.movies import load_movielens
from generator.pigeon.pipeline import Item, Task
from generator.training.nano.world import Indices, World

ImageArray = npt.NDArray[np.uint8]
HISTORY = 5
PALETTES_PER_STYLE = 2
ALPHAS = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class Sample:
    """A user with a taste, and an item to be drawn in it; rows are (concept, style, palette)."""

    history: Indices  # (H, 3)
    reference: Indices  # (3,), the target's concept in another style
    target: Indices  # (3,)
    task: Task


def samples(
    world: World, cache: Path, count: int, seed: int, *, held_out: bool = True, alphas: Sequence[float] = ALPHAS
) -> list[Sample]:
    """Users who like one style and palette (four of five history pictures), and a concept that the films show.

    `held_out`: the target's (concept, style) pair was never drawn in training; every other picture was. Each pair comes
    once before any comes twice.
    """
    rng = np.random.default_rng(seed)
    facts = [(movie.title, facts_of(movie)) for movie in load_movielens(cache).movies]
    pairs = np.argwhere((~world.trained if held_out else world.trained) & world.shown[:, None])
    drawable = np.argwhere(world.trained & world.shown[:, None])

    def item(row: Indices) -> Item:
        concept, style, palette = row.tolist()
        title, fact = facts[int(rng.integers(len(facts)))]
        named = with_article(world.concepts[concept].label)
        return Item(title, as_rgb(world.draw(concept, style, palette)), f"{fact}. A poster with {named}.")

    out = []
    for number in np.resize(rng.permutation(len(pairs)), count):
        concept, style = pairs[number].tolist()
        palette = int(rng.choice(palettes_of(world, style)))
        liked = np.setdiff1d(np.flatnonzero(world.trained[:, style] & world.shown), [concept])
        history = np.stack(
            [rng.choice(liked, HISTORY, replace=False), np.full(HISTORY, style), np.full(HISTORY, palette)], axis=1
        )
        others = drawable[drawable[:, 0] != concept]
        history[int(rng.integers(HISTORY)), :2] = others[rng.integers(len(others))]
        reference_style = int(rng.choice([s for s in np.flatnonzero(world.trained[concept]) if s != style]))
        reference = np.array([concept, reference_style, int(rng.integers(1, len(world.palettes)))])
        task = Task(
            history=[item(row) for row in history],
            reference=item(reference),
            seed=int(rng.integers(2**32)),
            alphas=tuple(alphas),
        )
        out.append(Sample(history, reference, np.array([concept, style, palette]), task))
    return out


def palettes_of(world: World, style: int) -> list[int]:
    """The palettes that users who like this style like: two each, over all styles every palette but plain.

    Two and not all eight, because the concept is looked for among all drawings in the target's style and palette, and each
    pair of these is a thousand pictures to encode.
    """
    coloured = len(world.palettes) - 1
    return [1 + (PALETTES_PER_STYLE * style + number) % coloured for number in range(PALETTES_PER_STYLE)]


def as_rgb(pixels: npt.NDArray[np.float32]) -> ImageArray:
    """(3, S, S) in 0..1 -> (S, S, 3) uint8."""
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
