"""Stage `critic`: a small network that classifies concept, style and palette by a picture's latents.

A tool of training and no part of the model, nor one of the judges of `pigeon evaluate`. Between its layers it measures how alike two
drawings look (as LPIPS does with a network for photographs, arXiv 1801.03924), and by that a drawing that looks like another style's
drawing of its concept is found out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.placement import Placement
from generator.training.nano.world import Triple, World
from generator.training.trainer import Trainer, TrainerConfig

Latents = npt.NDArray[np.float16]
WIDTHS = (64, 96, 128)
BLOCKS = 2
NOISE = 0.4
"""Largest standard deviation of the noise on its inputs; latents have one of 1."""
WORD_WEIGHTS = (1.0, 1.0, 0.2)
"""Weights of concept, style and palette."""
SHARPNESS = 4.0
"""Exponent by which another drawing's share falls on the way from the middle to the right one: by a factor of e to the fourth."""
LEAST_BETWEEN = 0.02
"""Share of the mean squared distance between the right drawing and the others, below which two are as good as the same."""


class Block(nn.Module):
    """(B, C, h, w) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.spread = nn.Conv2d(width, width, 3, padding=1)
        self.mix = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.mix(F.gelu(self.spread(self.norm(x))))
        return out


class Critic(nn.Module):
    """Latents (B, c, h, w) -> logits over concepts, styles, palettes."""

    def __init__(self, channels: int, counts: tuple[int, int, int]) -> None:
        super().__init__()
        self.counts = counts
        inlets, levels, before = [], [], channels
        for number, width in enumerate(WIDTHS):
            inlets.append(nn.Conv2d(before, width, 3, stride=2 if number else 1, padding=1))
            levels.append(nn.Sequential(*(Block(width) for _ in range(BLOCKS))))
            before = width
        self.inlets, self.levels = nn.ModuleList(inlets), nn.ModuleList(levels)
        self.words = nn.Linear(before, sum(counts))

    def maps(self, latents: Tensor) -> list[Tensor]:
        """(B, c, h, w) -> per level (B, C, h', w')."""
        found, x = [], latents
        for inlet, level in zip(self.inlets, self.levels, strict=True):
            x = level(inlet(x))
            found.append(x)
        return found

    def forward(self, latents: Tensor) -> list[Tensor]:
        logits: Tensor = self.words(F.normalize(self.maps(latents)[-1].mean(dim=(2, 3)), dim=1) * 16)
        return list(torch.split(logits, list(self.counts), dim=1))

    def features(self, latents: Tensor) -> list[Tensor]:
        """Latents (B, c, h, w) -> vectors (B, D) in each space in which drawings are compared.

        These are the latents, and each level's maps, of unit length at each place.
        """
        seen = [F.normalize(level, dim=1) for level in self.maps(latents)]
        return [part.flatten(1) for part in (latents, *seen)]


def taken_for_another(made: Tensor, drawings: Tensor, style: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """How much a picture looks like the concept in another style, and its distance from the right one.

    made (B, D); drawings (B, S, D), the concept in each style; style (B,), the right one; known (B, S): drawings that count -> (B,) each.
    On the way from the right drawing to each other one: is it past the middle? The loss is -log of a share that falls with that, so two
    styles that draw the concept nearly alike count as much as two that do not. The distance is squared.
    """
    rows = torch.arange(len(style), device=style.device)
    apart = (made[:, None] - drawings).square().sum(dim=2)
    between = (drawings[rows, style][:, None] - drawings).square().sum(dim=2)
    least = LEAST_BETWEEN * (between * known).sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True)
    right = apart[rows, style]
    between = torch.maximum(between, least).clamp(min=1e-8)
    nearer = (apart - right[:, None]) / between  # 1 at the right drawing, -1 at the other
    logits = (-SHARPNESS * nearer).masked_fill(known == 0, float("-inf"))
    return F.cross_entropy(logits, style, reduction="none"), right


class Critique:
    """Compares what was made with the drawings that it should be or must not be taken for."""

    def __init__(self, critic: Critic, world: World, latents: Latents, guesses: Latents) -> None:
        """Compare with latents (concepts, styles, palettes, c, h, w), else guesses of what may not be seen.

        The critic's features of them are kept: 0.3 MB a concept and palette, 3.4 GB once all have come up.
        """
        self._critic = critic.requires_grad_(False).eval()
        self._device = next(critic.parameters()).device
        self._world, self._latents, self._guesses = world, latents, guesses
        self._seen: dict[tuple[int, int], list[Tensor]] = {}

    @torch.no_grad()
    def _drawings(self, concept: int, palette: int) -> list[Tensor]:
        """Per space (S, D) float16: the thing in all styles."""
        key = concept, palette
        if key not in self._seen:
            may_see = self._world.trained[concept][:, None, None, None]
            drawings = np.where(may_see, self._latents[concept, :, palette], self._guesses[concept, :, palette])
            features = self._critic.features(torch.from_numpy(drawings.astype(np.float32)).to(self._device))
            self._seen[key] = [part.half() for part in features]
        return self._seen[key]

    def __call__(self, triple: Triple, made: Tensor) -> tuple[Tensor, Tensor]:
        """made (B, c, h, w), meant to be the pictures `triple` -> two losses (B,).

        How much it looks like a drawing of the thing in another style that may be seen (`taken_for_another`, mean over spaces). How
        unlike the right drawing it is: the squared distance of the unit vectors at a place, 0..4, mean over places and levels.
        """
        concept, style, palette = triple
        wanted = torch.from_numpy(style)
        known = torch.from_numpy(self._world.trained[concept]).float()
        known[torch.arange(len(wanted)), wanted] = 1  # a guess is the right drawing of its own row and no row's other
        wanted, known = wanted.to(self._device), known.to(self._device)
        seen = [self._drawings(*key) for key in zip(concept.tolist(), palette.tolist(), strict=True)]
        mistaken, unlike = torch.zeros(2, len(made), device=self._device)
        ours = self._critic.features(made)
        for number, our in enumerate(ours):
            drawings = torch.stack([parts[number] for parts in seen]).float()  # (B, S, D)
            taken, apart = taken_for_another(our, drawings, wanted, known)
            mistaken = mistaken + taken / len(ours)
            if number:  # the latents themselves are the caller's
                unlike = unlike + apart * WIDTHS[number - 1] / (our.shape[1] * len(WIDTHS))
        return mistaken, unlike


def build_critic(world: World, latents: Latents) -> Critic:
    return Critic(latents.shape[3], (len(world.concepts), len(world.styles), len(world.palettes)))


def noisy(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents with noise of a strength of each picture's own."""
    strength = torch.from_numpy(rng.uniform(0, NOISE, (len(latents), 1, 1, 1))).float()
    return latents + strength * torch.randn_like(latents)


def train_critic(
    folder: Path,
    world: World,
    latents: Latents,
    config: TrainerConfig,
    batch: int = 48,
    start: Critic | None = None,
    placement: Placement | None = None,
) -> None:
    """Train on latents (concepts, styles, palettes, c, h, w) of all concepts.

    start: a network to continue from; by default a new one.
    """
    placement = placement or Placement()
    critic = (start or build_critic(world, latents)).to(placement.device())

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        triple = world.sample_any(batch, rng)
        seen = torch.from_numpy(latents[triple].astype(np.float32))
        rows, columns = rng.integers(-1, 2, size=2).tolist()
        seen = placement.put(noisy(seen.roll((rows, columns), dims=(2, 3)), rng))
        total, figures = torch.zeros(()), {}
        names = ("concept", "style", "palette")
        for name, weight, logits, truth in zip(names, WORD_WEIGHTS, critic(seen), triple, strict=True):
            right = placement.put(truth)
            total = total + weight * F.cross_entropy(logits, right)
            figures[f"{name}_accuracy"] = float((logits.argmax(1) == right).float().mean())
        return total, figures

    Trainer(critic, loss, folder, config, placement).run()
