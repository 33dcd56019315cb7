"""Stage `imputer`: what a thing would look like in a style, from its drawings in the other styles.

A small convolutional network over latents, a tool of training and no part of the model. A held-out drawing is never seen;
what this network makes of the thing's other drawings stands in for it where the token decoder must say something of every
thing in every style (stage `decoder`), and where the UNet must learn to draw from such a guess (stage `diffusion`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.training.critic import Critic, Critique, Latents
from generator.training.pictures import Indices, World
from generator.training.trainer import Trainer, TrainerConfig, load_averaged

WIDTH, DEPTH, CONDITION = 64, 6, 32
DROPPED_SHARE = 0.15
MISTAKEN_WEIGHT, UNLIKE_WEIGHT = 0.2, 0.2
"""Of what the critique says, beside the distance from the drawing."""


class Block(nn.Module):
    """x (B, C, h, w), condition (B, K) -> (B, C, h, w); the condition scales and shifts (FiLM, arXiv 1709.07871)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, WIDTH)
        self.spread = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.film = nn.Linear(CONDITION, 2 * WIDTH)
        self.mix = nn.Conv2d(WIDTH, WIDTH, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = x + self.mix(F.gelu(self.spread(self.norm(x)) * (1 + scale) + shift))
        return out


class Imputer(nn.Module):
    """A thing's drawings in all styles, of which some are given, and the style that is asked for -> that drawing.

    Each place of it is a mean of the given drawings there, with weights of the place's own, and a correction.
    """

    def __init__(self, styles: int, channels: int) -> None:
        super().__init__()
        self.style = nn.Embedding(styles, CONDITION)
        self.inlet = nn.Conv2d(styles * (channels + 1), WIDTH, 1)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.outlet = nn.Sequential(nn.GroupNorm(1, WIDTH), nn.Conv2d(WIDTH, styles + channels, 1))

    def forward(self, drawings: Tensor, given: Tensor, style: Tensor) -> Tensor:
        """drawings (B, S, c, h, w), given (B, S) of 0/1, style (B,) -> (B, c, h, w)."""
        styles, (height, width) = drawings.shape[1], drawings.shape[-2:]
        shown = given[:, :, None, None, None]
        flags = shown.expand(-1, -1, 1, height, width)
        x = self.inlet(torch.cat([drawings * shown, flags], dim=2).flatten(1, 2))
        condition = self.style(style)
        for block in self.blocks:
            x = block(x, condition)
        weights, correction = self.outlet(x).split([styles, drawings.shape[2]], dim=1)
        weights = weights.masked_fill(given[:, :, None, None] == 0, float("-inf")).softmax(dim=1)  # (B, S, h, w)
        out: Tensor = (weights[:, :, None] * drawings).sum(dim=1) + correction
        return out


def others(trained: npt.NDArray[np.bool_], concept: Indices, style: Indices) -> npt.NDArray[np.bool_]:
    """(B, S): the drawings of each thing that training may see, less the one in `style`."""
    given = trained[concept].copy()
    given[np.arange(len(style)), style] = False
    return given


def build_imputer(world: World, latents: Latents) -> Imputer:
    return Imputer(len(world.styles), latents.shape[3])


def train_imputer(
    folder: Path, world: World, latents: Latents, critic: Critic, config: TrainerConfig, things: int = 6
) -> None:
    """latents (concepts, styles, palettes, c, h, w), of all concepts: how styles differ shows on any thing."""
    network = build_imputer(world, latents)
    critique = Critique(critic, world, latents)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.integers(len(world.concepts), size=things)
        thing, style = np.nonzero(world.trained[chosen])  # (B,) each: every drawing of theirs that may be seen
        concept, palette = chosen[thing], world.sample_palettes(things, rng)[thing]
        given = others(world.trained, concept, style)
        fewer = given & (rng.random(given.shape) >= DROPPED_SHARE)
        given = np.where(fewer.any(axis=1, keepdims=True), fewer, given)
        drawings = torch.from_numpy(latents[concept, :, palette].astype(np.float32))
        made = network(drawings, torch.from_numpy(given).float(), torch.from_numpy(style))
        wanted = drawings[torch.arange(len(style)), torch.from_numpy(style)]
        mistaken, unlike = (part.mean() for part in critique((concept, style, palette), made))
        apart = F.l1_loss(made, wanted)  # the median of what it may be is sharper than the mean
        figures = {
            "mse": float(F.mse_loss(made, wanted).detach()),
            "l1": float(apart.detach()),
            "mistaken": float(mistaken.detach()),
            "unlike": float(unlike.detach()),
        }
        return apart + MISTAKEN_WEIGHT * mistaken + UNLIKE_WEIGHT * unlike, figures

    Trainer(network, loss, folder, config).run()


@torch.no_grad()
def impute(folder: Path, world: World, latents: Latents, target: Path) -> None:
    """Write `target`, float16 like `latents`: every drawing that films show, as guessed from the thing's others."""
    network = build_imputer(world, latents)
    load_averaged(network, folder)
    network.eval()
    partial = target.with_suffix(".partial")  # a stage that reads the guesses of before keeps them
    out = np.lib.format.open_memmap(partial, mode="w+", dtype="float16", shape=latents.shape)
    styles = np.arange(len(world.styles))
    for concept in np.flatnonzero(world.shown):
        given = torch.from_numpy(others(world.trained, np.full(len(styles), concept), styles)).float()
        for palette in range(latents.shape[2]):
            drawings = torch.from_numpy(latents[concept, :, palette].astype(np.float32))
            drawings = drawings.expand(len(styles), *drawings.shape)
            out[concept, :, palette] = network(drawings, given, torch.from_numpy(styles)).numpy()
    out.flush()
    partial.replace(target)
