"""The rows of the tables: what a checkpoint draws for each sample, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generator.pigeon.masking import MutualMaskGenerator
from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import ImageArray, PigeonPipeline, Task
from generator.pigeon.sampling import noise_image
from generator.training.evaluation.extractors import ImageArrays
from generator.training.evaluation.samples import Drawings, Sample

BATCH = 12
"""Number of tasks that are drawn at once."""
PIGEON, OTHER = "pigeon", "other"


@dataclass(frozen=True)
class Row:
    """A row of the tables: `draw(samples)` gives an image for each, (B, S, S, 3)."""

    name: str
    title: str
    draw: Callable[[Sequence[Sample]], ImageArrays]


@dataclass(frozen=True)
class Grid:
    """One checkpoint over the α_r grid: a row per ratio, and the scorer's choice, the row `name`."""

    name: str
    title: str
    model: PigeonModel
    alphas: Sequence[float]

    def row_name(self, alpha: float) -> str:
        return f"{self.name}@{alpha:g}"

    def draw(self, chosen: Sequence[Sample]) -> dict[str, ImageArrays]:
        """Images (B, S, S, 3) by row name."""
        images = drawn(PigeonPipeline(self.model), [replace(s.task, alphas=tuple(self.alphas)) for s in chosen])
        return {self.row_name(alpha): images[:, number] for number, alpha in enumerate(self.alphas)}


def baselines(drawings: Drawings, model: PigeonModel, alpha: float, seed: int) -> dict[str, Row]:
    """Rows to compare with, by their names on the command line; `alpha`: that of the random mask."""
    pipeline = PigeonPipeline(model)

    def without_history(chosen: Sequence[Sample]) -> ImageArrays:
        return drawn(pipeline, [replace(s.task, history=[], alphas=(0.0,)) for s in chosen])[:, 0]

    def randomly_masked(chosen: Sequence[Sample]) -> ImageArrays:
        with indifferent_masks(model):
            return drawn(pipeline, [replace(s.task, alphas=(alpha,)) for s in chosen])[:, 0]

    def past(chosen: Sequence[Sample]) -> ImageArrays:
        picks = [int(np.random.default_rng([seed, s.task.seed]).integers(len(s.task.history))) for s in chosen]
        return np.stack([s.task.history[pick].image for s, pick in zip(chosen, picks, strict=True)])

    def copied(chosen: Sequence[Sample]) -> ImageArrays:
        return np.stack([s.task.reference.image for s in chosen])

    def truth(chosen: Sequence[Sample]) -> ImageArrays:
        return np.stack([drawings.draw(s.target) for s in chosen])

    def redrawn(chosen: Sequence[Sample]) -> ImageArrays:
        codes = [row.tolist() for row in model.tokenizer.encode(pipeline.pixels(list(truth(chosen))))]
        return rendered(pipeline, codes, [(s.task.seed, 0) for s in chosen])

    rows = (
        Row("no-personalization", "no history (α_r 0)", without_history),
        Row("random-mask", f"random mask (α_r {alpha:g})", randomly_masked),
        Row("reference-copied", "reference copied", copied),
        Row("random-history", "random history picture", past),
        Row("redrawn", "true codes drawn again", redrawn),
        Row("truth", "the true drawing", truth),
    )
    return {row.name: row for row in rows}


@torch.no_grad()
def drawn(pipeline: PigeonPipeline, tasks: Sequence[Task]) -> ImageArrays:
    """Draw the tasks without scoring them: (B, A, S, S, 3) for A alphas; a history may be empty."""
    history, references = pipeline.encode(tasks)
    keeps, embeddings = pipeline.mask(tasks, history, references)
    answers = pipeline.generate(tasks, history, keeps, embeddings)
    flat = [answer for row in answers for answer in row]
    streams = [(task.seed, variant) for task in tasks for variant in range(len(task.alphas))]
    images = rendered(pipeline, flat, streams)
    out: ImageArrays = images.reshape(len(tasks), -1, *images.shape[1:])
    return out


@torch.no_grad()
def rendered(pipeline: PigeonPipeline, codes: list[list[int]], streams: Sequence[tuple[int, int]]) -> ImageArrays:
    """Draw codes (one list per image) from the noise of their (seed, variant) -> (N, S, S, 3)."""
    shape = pipeline.model.diffusion.latent_shape
    noise = np.stack([noise_image(seed, variant, shape) for seed, variant in streams])
    return pipeline.model.diffusion.draw(*pipeline.decode(codes), noise)


class IndifferentMasks(MutualMaskGenerator):
    """A mask generator that scores all tokens alike.

    With Gumbel noise, what is kept is random, and as much as the mutual mask keeps.
    """

    def scores(self, embeds: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        return embeds.new_zeros(types.shape, dtype=torch.float32)


@contextmanager
def indifferent_masks(model: PigeonModel) -> Iterator[None]:
    """Replace the model's mask generator by one that is indifferent, for a `with` block."""
    personalizer = model.personalizer
    own = personalizer.mask_generator
    personalizer.mask_generator = IndifferentMasks(model.config.language.width, own.config).eval()
    try:
        yield
    finally:
        personalizer.mask_generator = own


def sized(images: ImageArrays, side: int) -> ImageArrays:
    """Resize (N, S, S, 3) to the side of the real drawings."""
    if images.shape[1] == side:
        return images
    fitted: list[ImageArray] = [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images
    ]
    return np.stack(fitted)
