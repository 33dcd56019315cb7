"""Neighbours: for a concept never drawn in a style, the most alike ones that are drawn in it.

What a style does with a face or a book shows best on another face or book. Likeness is by `perceptual_loss` in the styles that both are
known in; nothing of a held-out drawing is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from generator.training.nano.imputation.perceptual_loss import PerceptualFeatures, PosterRenderer, premultiplied
from generator.training.nano.world import PLAIN, Indices, World

COUNT = 3
COMMON_STYLES = 3
"""Number of styles, at least, in which two neighbours are both known."""
SIDE = 32
"""Side of the maps of where two concepts differ, in pixels."""
AT_ONCE = 20


@dataclass(frozen=True)
class Neighbours:
    """The `COUNT` nearest concepts that are known in a style, for every concept and style.

    concept: int64 (N, S, K); nearness: float32 (N, S, K), 1 for the same picture, 0 for none or one no nearer than two things are as a
    rule; differ: float32 (N, S, K, 32, 32) in [0, 1], where the two differ, mean over the styles that they have in common.
    """

    concept: Indices
    nearness: npt.NDArray[np.float32]
    differ: npt.NDArray[np.float32]


@torch.no_grad()
def find_neighbours(world: World) -> Neighbours:
    """For all concepts of `world`; it takes half a minute of two cores for nano's."""
    concepts, styles = world.trained.shape
    known = torch.from_numpy(world.trained)
    perceptual, renderer = PerceptualFeatures(), PosterRenderer(world.palettes)
    apart = torch.stack([_distances(world, perceptual, renderer, style) for style in range(styles)])  # (S, N, N)
    both = known.t()[:, :, None] & known.t()[:, None, :]
    apart = torch.where(both, apart, 0.0)
    icons = torch.stack([F.adaptive_avg_pool2d(premultiplied(pixels), SIDE) for pixels in world.art.pixels])
    count = min(COUNT, concepts - 1)
    found, near, differ = [], [], []
    for style in range(styles):
        common = both.sum(dim=0) - both[style].int()
        cost = (apart.sum(dim=0) - apart[style]) / common.clamp(min=1)
        cost[(common < COMMON_STYLES) | ~known[:, style]] = 1.0
        cost.fill_diagonal_(torch.inf)
        nearest, concept = cost.topk(count, largest=False)  # (N, K)
        shared = both[:, torch.arange(concepts)[:, None], concept].float()  # (S, N, K)
        shared[style] = 0
        shared = (shared / shared.sum(dim=0).clamp(min=1)).permute(2, 1, 0)  # (K, N, S)
        maps = [
            ((icons - icons[other]).abs().mean(dim=2) * share[:, :, None, None]).sum(dim=1)
            for other, share in zip(concept.t(), shared, strict=True)
        ]
        found.append(concept)
        near.append((1 - nearest).clamp(min=0))
        differ.append(torch.stack(maps, dim=1))
    return Neighbours(*(torch.stack(parts, dim=1).numpy() for parts in (found, near, differ)))


def _distances(world: World, perceptual: PerceptualFeatures, renderer: PosterRenderer, style: int) -> Tensor:
    """Distances (N, N) between the drawings in `style`: mean over perceptual spaces, over their median."""
    known, pieces = torch.from_numpy(world.trained[:, style]), []
    for start in range(0, len(known), AT_ONCE):
        icons = premultiplied(world.art.pixels[start : start + AT_ONCE, style])
        icons = icons * known[start : start + AT_ONCE, None, None, None]
        palette = torch.full((len(icons),), PLAIN)
        pieces.append(perceptual(renderer(icons, torch.full_like(palette, style), palette)))
    spaces = [torch.cat(parts) for parts in zip(*pieces, strict=True)]
    upper = torch.triu_indices(len(known), len(known), 1)
    between = known[upper[0]] & known[upper[1]]
    total = torch.zeros(len(known), len(known))
    for space in spaces:
        apart = torch.cdist(space, space)
        total += apart / apart[upper[0], upper[1]][between].median() / len(spaces)
    return total
