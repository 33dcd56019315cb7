"""The world that nano is trained on: every concept in every style and palette, less what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from generator.datasets.icons import STYLES, load_icons
from generator.datasets.movies import load_movielens
from generator.datasets.palettes import PALETTES
from generator.datasets.posters import PosterSpec, draw, spec_for
from generator.datasets.splits import is_held_out_pair
from generator.datasets.titles import ConceptFinder

Indices = npt.NDArray[np.int64]
Triple = tuple[Indices, Indices, Indices]
"""Concepts, styles and palettes of some pictures, (B,) each."""
PLAIN = 0
"""Number of the white "palette" of stickers."""
PLAIN_SHARE = 0.15
CLICK_POWER = 0.75
EVEN_SHARE = 0.5
"""Share of the samples that ignore the clicks: a thing that few films show is asked for, too."""


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, 64, 64) float32 in [0, 1] and what is on them, int64 (B,) each."""

    pixels: npt.NDArray[np.float32]
    concept: Indices
    style: Indices
    palette: Indices


class World:
    """Drawing by number: concept 0..1169, style 0..5, palette 0 (plain) to 9.

    `trained` is bool (concepts, styles): False for the held-out pairs, which no stage ever draws. `shown` (concepts,):
    whether a film's poster shows it; only those are drawn to train on.
    """

    def __init__(self, cache_dir: Path) -> None:
        self.art = load_icons(cache_dir)
        self.concepts = self.art.concepts
        self.styles = STYLES
        self.palettes = ("plain", *(name for name in PALETTES if name != "plain"))
        self.trained = np.array(
            [[not is_held_out_pair(concept.slug, style) for style in STYLES] for concept in self.concepts]
        )
        finder = ConceptFinder(self.concepts)
        shown = {spec_for(movie, finder).concept for movie in load_movielens(cache_dir).movies}
        self.shown = np.array([concept.slug in shown for concept in self.concepts])
        self._pairs = np.argwhere(self.trained)
        self._film_pairs = np.argwhere(self.trained & self.shown[:, None])
        weights = self._click_weights(finder, cache_dir)[self._film_pairs[:, 0]]
        self._film_weights = EVEN_SHARE / len(weights) + (1 - EVEN_SHARE) * weights / weights.sum()

    def _click_weights(self, finder: ConceptFinder, cache_dir: Path) -> npt.NDArray[np.float64]:
        """Click weights (concepts,): (ratings of 4 and 5 of films that show the concept) ** 0.75.

        So often do interactions ask for them.
        """
        films = load_movielens(cache_dir)
        concept_of = {m.item_id: self.art.index[spec_for(m, finder).concept] for m in films.movies}
        clicks = np.ones(len(self.concepts))
        np.add.at(clicks, [concept_of[row.item_id] for row in films.interactions if row.rating >= 4], 1)
        weights: npt.NDArray[np.float64] = clicks**CLICK_POWER
        return weights

    def draw(
        self, concept: int, style: int, palette: int, icon: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.float32]:
        """One picture, float32 (3, 64, 64) in [0, 1]; `icon`: RGBA, shown in the place of the one there is."""
        spec = PosterSpec(self.concepts[concept].slug, self.styles[style], self.palettes[palette])
        pixels = draw(spec, 64, self.art, icon).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        return np.ascontiguousarray(pixels)

    def sample(self, count: int, rng: np.random.Generator) -> Triple:
        """Random training triples (concept, style, palette)."""
        concept, style = self._film_pairs[rng.choice(len(self._film_pairs), size=count, p=self._film_weights)].T
        return concept, style, self.sample_palettes(count, rng)

    def sample_any(self, count: int, rng: np.random.Generator) -> Triple:
        """Random training triples of all things, those that no film shows as well, evenly."""
        concept, style = self._pairs[rng.integers(len(self._pairs), size=count)].T
        return concept, style, self.sample_palettes(count, rng)

    def sample_palettes(self, count: int, rng: np.random.Generator) -> Indices:
        palette = rng.integers(1, len(self.palettes), size=count)
        return np.where(rng.random(count) < PLAIN_SHARE, PLAIN, palette)

    def other_styles(self, concept: Indices, style: Indices, rng: np.random.Generator) -> Indices:
        """(B,): for each a random style, not held out for its concept, that is not the given one."""
        fit = self.trained[concept].copy()
        fit[np.arange(len(style)), style] = False
        chosen: Indices = np.where(fit, rng.random(fit.shape), -1.0).argmax(axis=1)
        return chosen

    def some_unseen(
        self, triple: Triple, share: float, rng: np.random.Generator
    ) -> tuple[Triple, npt.NDArray[np.bool_]]:
        """Change `share` of the rows to a style in which their concept is held out, where there is one.

        -> the rows (B,) and which were changed. What such a drawing looks like training may not see; stage `imputer` guesses it.
        """
        concept, style, palette = triple
        unseen = ~self.trained[concept]
        chosen = (rng.random(len(concept)) < share) & unseen.any(axis=1)
        hidden = np.where(unseen, rng.random(unseen.shape), -1.0).argmax(axis=1)
        return (concept, np.where(chosen, hidden, style), palette), chosen

    def images(
        self, concept: Indices, style: Indices, palette: Indices, guesses: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.float32]:
        """Draw pictures (B,) -> float32 (B, 3, 64, 64) in [0, 1].

        guesses: RGBA (concepts, styles, 64, 64, 4), for drawings that may not be seen.
        """
        rows = zip(concept.tolist(), style.tolist(), palette.tolist(), strict=True)
        if guesses is None:
            return np.stack([self.draw(*row) for row in rows])
        return np.stack([self.draw(*row, None if self.trained[row[:2]] else guesses[row[:2]]) for row in rows])

    def batch(self, count: int, rng: np.random.Generator, any_share: float = 0.0) -> Batch:
        """A batch with `any_share` of it from all concepts, the rest as interactions would ask for them."""
        parts = [self.sample(count, rng), self.sample_any(count, rng)]
        some = rng.random(count) < any_share
        concept, style, palette = (np.where(some, other, shown) for shown, other in zip(*parts, strict=True))
        return Batch(self.images(concept, style, palette), concept, style, palette)
