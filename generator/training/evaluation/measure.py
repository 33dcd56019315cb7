"""Figures per row and sample, from one encoder pass over all images that they compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from generator.training.evaluation.bootstrap import Values
from generator.training.evaluation.extractors import Encoded, Extractor, ImageArrays, Own, as_pixels
from generator.training.evaluation.gallery import Advance, Gallery
from generator.training.evaluation.metrics import (
    Vectors,
    cosines,
    distances,
    feature_distance,
    frechet_distance,
    ms_ssim,
    ranks,
    ssim,
)
from generator.training.evaluation.samples import Sample, Samples, Truth

AT_ONCE = 4
"""Number of samples that are encoded together: about a hundred images."""
RECALL = (1, 5)
SCORE = "score"
"""Name of the figure that selects a candidate: 0.5 * CS with the description + 0.5 * CIS with the history, by the own scorer."""


@dataclass(frozen=True)
class Measured:
    """The figures of all rows, and the vectors that whole-row distances need.

    `values`: row -> figure -> (n,), one number per sample; `features`: extractor -> row -> (n, D); `truths`: extractor -> (n, D).

    Figures, with X an extractor's name: `X.style`, `X.palette`, `X.concept@1`, `X.concept@5` (of the concepts that films show),
    `X.all@1`, `X.all@5` (of all concepts), 0 or 1; `X.reference`, `X.history`, `X.truth`, 100 * cosine; `X.distance`, feature distance
    from the history, of extractors with maps; `cs.reference`, `cs.history`, 100 * cosine with descriptions; `ssim.history`,
    `ms_ssim.history`, `ssim.truth`; `score`. Against the history: the mean over its pictures.
    """

    values: dict[str, dict[str, Values]]
    features: dict[str, dict[str, Vectors]]
    truths: dict[str, Vectors]

    def choose(self, name: str, among: Sequence[str]) -> list[int]:
        """Add the row `name`: for each sample the best-scored of the rows `among`; return which it was."""
        scores = np.stack([self.values[row][SCORE] for row in among])  # (A, n)
        best = scores.argmax(axis=0)  # ties: the earlier
        places = np.arange(len(best))
        self.values[name] = {
            figure: np.stack([self.values[row][figure] for row in among])[best, places]
            for figure in self.values[among[0]]
        }
        for of in self.features.values():
            of[name] = np.stack([of[row] for row in among])[best, places]
        choice: list[int] = best.tolist()
        return choice

    def frechet(self, row: str) -> dict[str, float]:
        """By extractor: distance of the row's pictures from the true drawings."""
        return {name: frechet_distance(of[row], self.truths[name]) for name, of in self.features.items()}


@dataclass
class _Chunk:
    """Where a sample's images are among those of its chunk.

    Rows come first, then reference, history, the concept in all styles, and on all palettes.
    """

    sample: Sample
    rows: slice
    reference: int
    history: slice
    styles: slice
    palettes: slice


class Judge:
    """Measures rows of pictures against what each sample asked for."""

    def __init__(self, samples: Samples, gallery: Gallery, extractors: Sequence[Extractor], own: Own) -> None:
        """`own` selects candidates, whether it is among the reported extractors or not."""
        self._samples, self._gallery, self._own = samples, gallery, own
        self._reported = {extractor.name for extractor in extractors}
        self._extractors = [own, *(extractor for extractor in extractors if extractor.name != own.name)]
        self._shown = samples.shown

    def measure(self, chosen: Sequence[Sample], rows: Mapping[str, ImageArrays], advance: Advance) -> Measured:
        """Measure all samples, a few at a time.

        rows: name -> images (n, S, S, 3), of the drawings' size; advance: called with the number of samples done.
        """
        values: dict[str, dict[str, Values]] = {row: {} for row in rows}
        features: dict[str, list[Vectors]] = {extractor.name: [] for extractor in self._extractors}
        truths: dict[str, list[Vectors]] = {extractor.name: [] for extractor in self._extractors}
        slabs: dict[tuple[str, int, int], Vectors] = {}
        for start in range(0, len(chosen), AT_ONCE):
            part = chosen[start : start + AT_ONCE]
            images, chunks = self._laid_out(part, {name: row[start : start + AT_ONCE] for name, row in rows.items()})
            found: list[dict[str, Values]] = [self._of_images(images, chunk) for chunk in chunks]
            for extractor in self._extractors:
                encoded = extractor.encode(images)
                for chunk, figures in zip(chunks, found, strict=True):
                    figures.update(self._likeness(extractor, encoded, chunk))
                    features[extractor.name].append(encoded.vectors[chunk.rows])
                    truths[extractor.name].append(encoded.vectors[chunk.styles][chunk.sample.target.style])
                    if extractor.name in self._reported:
                        _, style, palette = chunk.sample.target
                        key = extractor.name, style, palette
                        if key not in slabs:
                            slabs[key] = self._gallery.slab(extractor, style, palette)
                        figures.update(self._truth(extractor.name, encoded.vectors, slabs[key], chunk))
                    if isinstance(extractor, Own):
                        figures.update(self._descriptions(encoded.vectors, chunk))
            for number, figures in enumerate(found, start):
                for figure, numbers in figures.items():
                    for row, value in zip(rows, numbers.tolist(), strict=True):
                        values[row].setdefault(figure, np.zeros(len(chosen)))[number] = value
            advance(len(part))
        stacked = {name: np.stack(parts) for name, parts in features.items()}  # (n, R, D) each
        return Measured(
            values,
            {name: {row: of[:, number] for number, row in enumerate(rows)} for name, of in stacked.items()},
            {name: np.stack(parts) for name, parts in truths.items()},
        )

    def _laid_out(self, part: Sequence[Sample], rows: Mapping[str, ImageArrays]) -> tuple[ImageArrays, list[_Chunk]]:
        images: list[ImageArrays] = []
        chunks = []
        for number, sample in enumerate(part):
            concept, style, palette = sample.target
            first = len(images)
            images += [row[number] for row in rows.values()]
            reference = len(images)
            images += [sample.task.reference.image, *(item.image for item in sample.task.history)]
            styles = len(images)
            images += [self._samples.draw(Truth(concept, s, palette)) for s in range(len(self._samples.styles))]
            palettes = len(images)
            images += [self._samples.draw(Truth(concept, style, p)) for p in range(len(self._samples.palettes))]
            chunks.append(
                _Chunk(
                    sample,
                    slice(first, reference),
                    reference,
                    slice(reference + 1, styles),
                    slice(styles, palettes),
                    slice(palettes, len(images)),
                )
            )
        return np.stack(images), chunks

    def _of_images(self, images: ImageArrays, chunk: _Chunk) -> dict[str, Values]:
        ours = as_pixels(images[chunk.rows])  # (R, 3, S, S)
        past = as_pixels(images[chunk.history])
        truth = as_pixels(images[chunk.styles][chunk.sample.target.style][None])
        rows, items = len(ours), len(past)
        left, right = ours.repeat_interleave(items, dim=0), past.repeat(rows, 1, 1, 1)
        return {
            "ssim.history": ssim(left, right).view(rows, items).mean(dim=1).double().numpy(),
            "ms_ssim.history": ms_ssim(left, right).view(rows, items).mean(dim=1).double().numpy(),
            "ssim.truth": ssim(ours, truth.expand_as(ours)).double().numpy(),
        }

    def _likeness(self, extractor: Extractor, encoded: Encoded, chunk: _Chunk) -> dict[str, Values]:
        vectors, name = encoded.vectors, extractor.name
        ours = vectors[chunk.rows]
        truth = vectors[chunk.styles][chunk.sample.target.style][None]
        figures = {
            f"{name}.reference": cosines(ours, vectors[chunk.reference][None])[:, 0],
            f"{name}.history": cosines(ours, vectors[chunk.history]).mean(axis=1),
            f"{name}.truth": cosines(ours, truth)[:, 0],
        }
        if encoded.maps:
            rows, items = len(ours), len(vectors[chunk.history])
            apart = feature_distance(
                [layer[chunk.rows].repeat_interleave(items, dim=0) for layer in encoded.maps],
                [layer[chunk.history].repeat(rows, 1, 1, 1) for layer in encoded.maps],
            )
            figures[f"{name}.distance"] = apart.view(rows, items).mean(dim=1).numpy()
        return {figure: numbers.astype(np.float64) for figure, numbers in figures.items()}

    def _truth(self, name: str, vectors: Vectors, slab: Vectors, chunk: _Chunk) -> dict[str, Values]:
        concept, style, palette = chunk.sample.target
        ours = vectors[chunk.rows]
        apart = distances(ours, slab)  # (R, concepts)
        of_all = ranks(apart, concept)
        of_shown = ranks(apart[:, self._shown], int(np.searchsorted(self._shown, concept)))
        hits = {
            f"{name}.style": ranks(distances(ours, vectors[chunk.styles]), style) < 1,
            f"{name}.palette": ranks(distances(ours, vectors[chunk.palettes]), palette) < 1,
        }
        for depth in RECALL:
            hits[f"{name}.concept@{depth}"] = of_shown < depth
            hits[f"{name}.all@{depth}"] = of_all < depth
        return {figure: hit.astype(np.float64) for figure, hit in hits.items()}

    def _descriptions(self, vectors: Vectors, chunk: _Chunk) -> dict[str, Values]:
        task = chunk.sample.task
        words = self._own.texts([item.description for item in (task.reference, *task.history)])
        text_scores = cosines(vectors[chunk.rows], words).astype(np.float64)  # (R, 1 + H)
        past = cosines(vectors[chunk.rows], vectors[chunk.history]).mean(axis=1)
        return {
            "cs.reference": text_scores[:, 0],
            "cs.history": text_scores[:, 1:].mean(axis=1),
            SCORE: 0.5 * text_scores[:, 0] + 0.5 * past.astype(np.float64),
        }
