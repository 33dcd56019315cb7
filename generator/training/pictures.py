"""The world that nano is trained on: every concept in every style and palette, less what is held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from generator.training.datasets.icons import STYLES, load_icons
from generator.training.datasets.movies import load_movielens
from generator.training.datasets.palettes import PALETTES
from generator.training.datasets.posters import PosterSpec, draw, spec_for
from generator.training.datasets.splits import is_held_out_pair
from generator.training.datasets.titles import ConceptFinder

Indices = npt.NDArray[np.int64]
PLAIN = 0
"""Number of the white "palette" of stickers."""
PLAIN_SHARE = 0.15
FILM_SHARE = 0.95
"""Share of draws that show what a poster of the catalogue shows; the rest is spread over all pictorial concepts."""
CLICK_POWER = 0.75


@dataclass(frozen=True)
class Batch:
    """Pictures (B, 3, 64, 64) float32 in [0, 1] and what is on them, int64 (B,) each."""

    pixels: npt.NDArray[np.float32]
    concept: Indices
    style: Indices
    palette: Indices


class World:
    """Draws pictures by number: concept 0..1169, style 0..5, palette 0 (plain) to 8.

    `trained` is bool (concepts, styles): False for the held-out pairs, which no stage ever draws. `shown` (concepts,):
    whether a film's poster shows it. `pictorial` (concepts,): neither arrow nor sign nor lettered button.
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
        self.pictorial = np.array([concept.pictorial for concept in self.concepts])
        self._film_pairs = np.argwhere(self.trained & self.shown[:, None])
        self._film_weights = self._click_weights(finder, cache_dir)[self._film_pairs[:, 0]]
        self._film_weights /= self._film_weights.sum()
        self._other_pairs = np.argwhere(self.trained & self.pictorial[:, None])

    def _click_weights(self, finder: ConceptFinder, cache_dir: Path) -> npt.NDArray[np.float64]:
        """(concepts,): (ratings of 4 and 5 of films that show the concept) ** 0.75, as samples come from interactions."""
        films = load_movielens(cache_dir)
        concept_of = {m.item_id: self.art.index[spec_for(m, finder).concept] for m in films.movies}
        clicks = np.ones(len(self.concepts))
        np.add.at(clicks, [concept_of[row.item_id] for row in films.interactions if row.rating >= 4], 1)
        weights: npt.NDArray[np.float64] = clicks**CLICK_POWER
        return weights

    def draw(self, concept: int, style: int, palette: int) -> npt.NDArray[np.float32]:
        """One picture, float32 (3, 64, 64) in [0, 1]."""
        spec = PosterSpec(self.concepts[concept].slug, self.styles[style], self.palettes[palette])
        pixels: npt.NDArray[np.float32] = draw(spec, 64, self.art).transpose(2, 0, 1).astype(np.float32) / np.float32(
            255
        )
        return np.ascontiguousarray(pixels)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Indices, Indices, Indices]:
        """Random training triples (concept, style, palette)."""
        film = self._film_pairs[rng.choice(len(self._film_pairs), size=count, p=self._film_weights)]
        other = self._other_pairs[rng.integers(len(self._other_pairs), size=count)]
        concept, style = np.where((rng.random(count) < FILM_SHARE)[:, None], film, other).T
        return concept, style, self.sample_palettes(count, rng)

    def sample_palettes(self, count: int, rng: np.random.Generator) -> Indices:
        palette = rng.integers(1, len(self.palettes), size=count)
        return np.where(rng.random(count) < PLAIN_SHARE, PLAIN, palette)

    def pictures(self, concept: Indices, style: Indices, palette: Indices) -> npt.NDArray[np.float32]:
        """(B,) each -> float32 (B, 3, 64, 64) in [0, 1]."""
        rows = zip(concept.tolist(), style.tolist(), palette.tolist(), strict=True)
        return np.stack([self.draw(*row) for row in rows])

    def batch(self, count: int, rng: np.random.Generator) -> Batch:
        concept, style, palette = self.sample(count, rng)
        return Batch(self.pictures(concept, style, palette), concept, style, palette)
