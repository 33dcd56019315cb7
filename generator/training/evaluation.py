"""A small, plain measure of what a checkpoint draws: held-out (concept, style) pairs, judged by nearest real drawing.

Distances are between pixels (both pictures softened by a 4x4 mean, on the same palette), so nothing that was trained
judges itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import Candidate, Item, PigeonPipeline, Task, best
from generator.training.datasets.captions import facts_of, with_article
from generator.training.datasets.movies import load_movielens
from generator.training.pictures import Indices, World

Picture = npt.NDArray[np.uint8]
RATIOS = (0.0, 0.3, 0.6, 0.9)


@dataclass(frozen=True)
class Sample:
    """A simulated user with a taste, and an item whose picture in that taste is held out; rows are (concept, style, palette)."""

    history: Indices  # (H, 3)
    reference: Indices  # (3,)
    target: Indices  # (3,)
    task: Task


@dataclass(frozen=True)
class Figures:
    """Shares of samples, 0..1, and the mean absolute pixel error (0..1) from the true drawing."""

    style_accuracy: float
    palette_accuracy: float
    concept_recall_1: float
    concept_recall_5: float
    pixel_error: float

    def __str__(self) -> str:
        return (
            f"style {self.style_accuracy:.0%}, palette {self.palette_accuracy:.0%}, concept@1 {self.concept_recall_1:.0%}, "
            f"concept@5 {self.concept_recall_5:.0%}, pixel error {self.pixel_error:.3f}"
        )


def samples(
    world: World, cache: Path, count: int, seed: int, *, held_out: bool = True, ratios: Sequence[float] = RATIOS
) -> list[Sample]:
    """Users who like one style and palette (four of five history pictures), a concept the films show, drawn for them."""
    rng = np.random.default_rng(seed)
    facts = [(movie.title, facts_of(movie)) for movie in load_movielens(cache).movies]
    pairs = np.argwhere((~world.trained if held_out else world.trained) & world.shown[:, None])
    out = []
    for number in rng.choice(len(pairs), count, replace=False):
        concept, style = pairs[number].tolist()
        palette = int(rng.integers(1, len(world.palettes)))
        liked = np.flatnonzero(world.trained[:, style] & world.shown)
        history = np.stack([rng.choice(liked, 5, replace=False), np.full(5, style), np.full(5, palette)], axis=1)
        other = np.argwhere(world.trained & world.shown[:, None])
        stray = int(rng.integers(5))
        history[stray, :2] = other[rng.integers(len(other))]
        reference_style = int(rng.choice([s for s in np.flatnonzero(world.trained[concept]) if s != style]))
        reference = np.array([concept, reference_style, int(rng.integers(1, len(world.palettes)))])
        title, fact = facts[int(rng.integers(len(facts)))]
        thing = world.concepts[concept]
        task = Task(
            history=[
                Item(facts[int(rng.integers(len(facts)))][0], as_rgb(world.draw(*row))) for row in history.tolist()
            ],
            reference=Item(
                title, as_rgb(world.draw(*reference.tolist())), f"{fact}. A poster with {with_article(thing.label)}."
            ),
            seed=int(rng.integers(2**32)),
            ratios=tuple(ratios),
        )
        out.append(Sample(history, reference, np.array([concept, style, palette]), task))
    return out


def as_rgb(pixels: npt.NDArray[np.float32]) -> Picture:
    """(3, S, S) in 0..1 -> (S, S, 3) uint8."""
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)


def judge(world: World, pictures: Sequence[Picture], targets: Indices) -> Figures:
    """pictures of targets (N, 3)."""
    shown = np.flatnonzero(world.shown)
    hits = np.zeros((len(pictures), 4))
    errors = []
    for number, (picture, target) in enumerate(zip(pictures, targets.tolist(), strict=True)):
        concept, style, palette = target
        ours = softened(picture)
        truth = as_rgb(world.draw(concept, style, palette))
        errors.append(np.abs(picture.astype(np.float32) - truth).mean() / 255)
        of_style = [distance(ours, world.draw(concept, other, palette)) for other in range(len(world.styles))]
        of_palette = [distance(ours, world.draw(concept, style, other)) for other in range(len(world.palettes))]
        of_concept = np.array([distance(ours, world.draw(other, style, palette)) for other in shown.tolist()])
        rank = int((of_concept < of_concept[np.flatnonzero(shown == concept)[0]]).sum())
        hits[number] = int(np.argmin(of_style)) == style, int(np.argmin(of_palette)) == palette, rank < 1, rank < 5
    style_share, palette_share, first, fifth = hits.mean(axis=0).tolist()
    return Figures(style_share, palette_share, first, fifth, float(np.mean(errors)))


def softened(picture: Picture) -> npt.NDArray[np.float32]:
    """(S, S, 3) uint8 -> means of 4x4 pixels, 0..1."""
    side = picture.shape[0] // 4
    means: npt.NDArray[np.float32] = picture.astype(np.float32).reshape(side, 4, side, 4, 3).mean(axis=(1, 3)) / 255
    return means


def distance(ours: npt.NDArray[np.float32], drawing: npt.NDArray[np.float32]) -> float:
    return float(np.square(ours - softened(as_rgb(drawing))).mean())


@torch.no_grad()
def rendered(model: PigeonModel, world: World, targets: Indices, seed: int = 0) -> Picture:
    """Token decoder and diffusion alone: the targets' own codes drawn again, (N, S, S, 3). What a perfect LLaMA would get."""
    pipeline = PigeonPipeline(model)
    truth = [as_rgb(world.draw(*row)) for row in targets.tolist()]
    codes: list[list[int]] = [row.tolist() for row in model.tokenizer.encode(pipeline.pixels(truth))]
    embeds, pooled = pipeline.decode(codes)
    noise = np.random.default_rng(seed).standard_normal((len(codes), *model.diffusion.latent_shape)).astype(np.float32)
    return model.diffusion.draw(embeds, pooled, noise)


@dataclass(frozen=True)
class Evaluation:
    """`whole`: the best-scored candidates; `first`: those at the first ratio; `ceiling`: the true codes, drawn again."""

    whole: Figures
    first: Figures
    ceiling: Figures


def evaluate(
    model: PigeonModel, world: World, cache: Path, count: int, sheet: Path | None = None, seed: int = 7
) -> Evaluation:
    """Draw `count` held-out samples and judge them; `sheet` gets a contact sheet."""
    chosen = samples(world, cache, count, seed)
    pipeline = PigeonPipeline(model)
    results = [
        result for start in range(0, count, 8) for result in pipeline([s.task for s in chosen[start : start + 8]])
    ]
    targets = np.stack([sample.target for sample in chosen])
    again = rendered(model, world, targets)
    winners = [best(result)[0].picture for result in results]
    if sheet is not None:
        contact_sheet(world, chosen, [result.candidates for result in results], again, sheet)
    return Evaluation(
        judge(world, winners, targets),
        judge(world, [result.candidates[0].picture for result in results], targets),
        judge(world, list(again), targets),
    )


def contact_sheet(
    world: World, chosen: Sequence[Sample], candidates: Sequence[Sequence[Candidate]], again: Picture, path: Path
) -> None:
    """A row per sample: history (5) | reference | candidates | the true drawing, and it drawn again from its own codes."""
    rows = []
    for sample, drawn, redrawn in zip(chosen, candidates, again, strict=True):
        gap = np.full((64, 8, 3), 255, np.uint8)
        past = [item.picture for item in sample.task.history]
        truth = as_rgb(world.draw(*sample.target.tolist()))
        cells = [*past, gap, sample.task.reference.picture, gap, *(c.picture for c in drawn), gap, truth, redrawn]
        rows.append(np.concatenate(cells, axis=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(path)
