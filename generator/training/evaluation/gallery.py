"""Vectors of real drawings, computed once and kept in files.

The vectors of all concepts in one style and palette are a slab, a file each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from generator.training.evaluation.extractors import Extractor
from generator.training.evaluation.metrics import Vectors
from generator.training.evaluation.samples import Samples, Truth

Slab = tuple[int, int]
"""Numbers of a style and a palette."""
Advance = Callable[[int], None]
"""Callback that takes the number of images that were done since its last call."""
CHUNK = 64
"""Number of drawings that are encoded at once."""


class Gallery:
    """The slabs under a folder: `fill` those that are `missing`, then read them by `slab`."""

    def __init__(self, samples: Samples, folder: Path) -> None:
        self._samples = samples
        self._folder = folder
        self._art = art_key(samples)

    def missing(self, extractors: Sequence[Extractor], slabs: Iterable[Slab]) -> dict[Slab, list[Extractor]]:
        """What `fill` has to make: for each slab the extractors that have not seen it."""
        wanted = {slab: [e for e in extractors if not self._path(e, slab).exists()] for slab in slabs}
        return {slab: lacking for slab, lacking in wanted.items() if lacking}

    def fill(self, missing: dict[Slab, list[Extractor]], advance: Advance) -> None:
        """Draw each slab once and encode it with all that lack it."""
        concepts = range(len(self._samples.concepts))
        for (style, palette), lacking in missing.items():
            parts: list[list[Vectors]] = [[] for _ in lacking]
            for start in range(0, len(concepts), CHUNK):
                places = concepts[start : start + CHUNK]
                images = np.stack([self._samples.draw(Truth(concept, style, palette)) for concept in places])
                for part, extractor in zip(parts, lacking, strict=True):
                    part.append(extractor.encode(images).vectors)
                advance(len(places))
            for part, extractor in zip(parts, lacking, strict=True):
                path = self._path(extractor, (style, palette))
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                with partial.open("wb") as file:
                    np.save(file, np.concatenate(part))
                partial.replace(path)

    def slab(self, extractor: Extractor, style: int, palette: int) -> Vectors:
        """(concepts, D)."""
        vectors: Vectors = np.load(self._path(extractor, (style, palette)))
        return vectors

    def _path(self, extractor: Extractor, slab: Slab) -> Path:
        style, palette = slab
        folder = self._folder / f"{extractor.name}-{extractor.key}-{self._art}"
        return folder / f"{self._samples.styles[style]}-{self._samples.palettes[palette]}.npy"


def art_key(samples: Samples) -> str:
    """Twelve hex digits that change with the drawings.

    They hash three concepts in all styles and palettes, and all names.
    """
    digest = hashlib.sha256("\n".join(samples.concepts).encode())
    for concept in np.linspace(0, len(samples.concepts) - 1, 3).astype(int).tolist():
        for style in range(len(samples.styles)):
            for palette in range(len(samples.palettes)):
                digest.update(samples.draw(Truth(concept, style, palette)).tobytes())
    return digest.hexdigest()[:12]
