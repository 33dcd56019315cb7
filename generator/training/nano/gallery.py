"""Vectors of real drawings, made once: all concepts in one style and palette are a slab, a file each under the state's cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from generator.training.evaluation.extractors import Extractor
from generator.training.evaluation.metrics import Vectors
from generator.training.nano.samples import ImageArray, as_rgb
from generator.training.nano.world import World

Slab = tuple[int, int]
"""(style, palette)"""
Advance = Callable[[int], None]
"""Called with a number of pictures that are done."""
CHUNK = 64


class Gallery:
    """`fill`, then `slab`."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world = world
        self._folder = folder
        self._art = art_key(world)

    def missing(self, extractors: Sequence[Extractor], slabs: Iterable[Slab]) -> dict[Slab, list[Extractor]]:
        """What `fill` has to make: for each slab the extractors that have not seen it."""
        wanted = {slab: [e for e in extractors if not self._path(e, slab).exists()] for slab in slabs}
        return {slab: lacking for slab, lacking in wanted.items() if lacking}

    def fill(self, missing: dict[Slab, list[Extractor]], advance: Advance) -> None:
        """Draw each slab once and encode it with all that lack it."""
        concepts = range(len(self._world.concepts))
        for (style, palette), lacking in missing.items():
            parts: list[list[Vectors]] = [[] for _ in lacking]
            for start in range(0, len(concepts), CHUNK):
                places = concepts[start : start + CHUNK]
                images = np.stack([as_rgb(self._world.draw(concept, style, palette)) for concept in places])
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
        return folder / f"{self._world.styles[style]}-{self._world.palettes[palette]}.npy"


def art_key(world: World) -> str:
    """12 hex digits that change when drawings do: of a few concepts in every style on every palette, and of all names."""
    digest = hashlib.sha256("\n".join(concept.slug for concept in world.concepts).encode())
    for concept in np.linspace(0, len(world.concepts) - 1, 3).astype(int).tolist():
        for style in range(len(world.styles)):
            for palette in range(len(world.palettes)):
                image: ImageArray = as_rgb(world.draw(concept, style, palette))
                digest.update(image.tobytes())
    return digest.hexdigest()[:12]
