"""The icon world's users and drawings, as `evaluation.samples.Samples`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from generator.datasets.captions import facts_of, with_article
from generator.datasets.fetch import versions_key
from generator.datasets.icons import ICON_SIZE
from generator.datasets.movies import load_movielens
from generator.pigeon.pipeline import ImageArray, Item, Task
from generator.training.evaluation.samples import Sample, Truth
from generator.training.nano.world import Indices, World
from schemas.errors import InputError

HISTORY = 5
"""Number of pictures in a user's history."""
PALETTES_PER_STYLE = 2
"""Number of palettes that the users of one style like."""


@dataclass(frozen=True)
class IconSample(Sample):
    """A sample and the pictures of its task by number: (concept, style, palette) rows."""

    history: Indices  # (H, 3)
    reference: Indices  # (3,), the target's concept in another style


class IconSamples:
    """Users who like one style and one palette, and every icon on every poster.

    `cache` is the folder of the data sets.
    """

    about = (
        "Four of a user's five history pictures are in the style and palette that the user likes; "
        "the reference is in another style."
    )

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    @cached_property
    def world(self) -> World:
        return World(self._cache)

    @cached_property
    def concepts(self) -> Sequence[str]:
        return tuple(concept.slug for concept in self.world.concepts)

    @property
    def styles(self) -> Sequence[str]:
        return self.world.styles

    @property
    def palettes(self) -> Sequence[str]:
        return self.world.palettes

    @cached_property
    def shown(self) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.world.shown)

    def check(self) -> None:
        """Raises InputError when icons or films have not been fetched."""
        for path in (self._cache / f"icons-{versions_key()}-{ICON_SIZE}.json", self._cache / "ml-100k"):
            if not path.exists():
                raise InputError(
                    f"{path} is missing: `pigeon train stage text` fetches the data; "
                    "if it is elsewhere, set PIGEON_STATE_DIR"
                )

    def draw(self, truth: Truth) -> ImageArray:
        return as_rgb(self.world.draw(*truth))

    def choose(self, count: int, seed: int, alphas: Sequence[float], *, held_out: bool) -> list[IconSample]:
        """Users who like one style and palette (four of five history pictures), and a concept that films show.

        `held_out`: the target's (concept, style) pair was never drawn in training; every other picture was. Each pair comes
        once before any comes twice.
        """
        world, rng = self.world, np.random.default_rng(seed)
        facts = [(movie.title, facts_of(movie)) for movie in load_movielens(self._cache).movies]
        pairs = np.argwhere((~world.trained if held_out else world.trained) & world.shown[:, None])
        drawable = np.argwhere(world.trained & world.shown[:, None])

        def item(row: Indices) -> Item:
            truth = Truth(*row.tolist())
            title, fact = facts[int(rng.integers(len(facts)))]
            named = with_article(world.concepts[truth.concept].label)
            return Item(title, self.draw(truth), f"{fact}. A poster with {named}.")

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
            out.append(IconSample(Truth(concept, style, palette), task, history, reference))
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
