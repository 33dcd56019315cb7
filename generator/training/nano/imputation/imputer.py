"""Stage `imputer`: guesses what a concept looks like in a style in which it was never drawn.

It guesses from the concept's drawings in the other styles and in the auxiliary sets, and from its neighbours' in that style.

A small convolutional network over icons, a tool of training and no part of the model. A held-out drawing is never seen;
what this network makes of those stands in for it where the token decoder must say something of every thing in every style
(stage `decoder`), and where the UNet must draw it or learn to draw from such a guess (stage `diffusion`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.datasets.icons import ICON_SIZE
from generator.pigeon.placement import Placement
from generator.training.nano.imputation.neighbours import COUNT, Neighbours
from generator.training.nano.imputation.perceptual_loss import (
    PerceptualFeatures,
    PosterRenderer,
    compared,
    premultiplied,
    straight,
)
from generator.training.nano.world import Indices, World
from generator.training.processes import ProcessGroup
from generator.training.trainer import Trainer, TrainerConfig

log = logging.getLogger(__name__)
WIDTHS = (48, 80, 128)
"""Channels at half, a quarter and an eighth of the icon's side."""
BLOCKS = 2
CONDITION = 32
RECOLOUR_WIDTH = 12
"""Width of the networks that recolour a pixel, in channels."""
CHANNELS = 4
DROPPED_SHARE = 0.25
"""Share of the given drawings that are dropped."""
SHOWN_SHARE = 0.5
"""Share of a step's concepts that films show; they are what is drawn, and the harder ones."""
SHIFT = 2
"""Largest shift of all drawings of a concept together, in pixels."""
TURNED_SHARE, TURN, STRETCH = 0.5, 12.0, 0.1
"""Share of the concepts that are turned and stretched; largest turn in degrees; largest stretch each way, as a share of the side."""
PIXELS_WEIGHT, MISTAKEN_WEIGHT, UNLIKE_WEIGHT = 3.0, 0.15, 0.6
"""Weights of the mean distance of the pixels and of the two perceptual losses."""
RAMP = 800
"""Number of steps until the style counts in full: at first, farther from every drawing would be better than nearer to the right one."""
OWN_AT_FIRST = -3.0
"""Logit of the network's own drawing before training: copying is learned first, what to add to it then."""


class Block(nn.Module):
    """x (B, C, h, w), condition (B, K) -> (B, C, h, w); the condition scales and shifts.

    FiLM, arXiv 1709.07871.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.spread = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(CONDITION, 2 * width)
        self.mix = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = x + self.mix(F.gelu(self.spread(self.norm(x)) * (1 + scale) + shift))
        return out


class Recolour(nn.Module):
    """Recolours a set's drawing pixel by pixel in the colours of a style.

    A network of one hidden layer for each set and style, on the pixel alone.
    """

    def __init__(self, styles: int, sets: int) -> None:
        super().__init__()
        self.inlet = nn.Parameter(torch.randn(styles, sets, RECOLOUR_WIDTH, CHANNELS) / 2)
        self.inlet_bias = nn.Parameter(torch.randn(styles, sets, RECOLOUR_WIDTH, 1) / 2)
        self.outlet = nn.Parameter(torch.zeros(styles, sets, CHANNELS, RECOLOUR_WIDTH))
        self.outlet_bias = nn.Parameter(torch.zeros(styles, sets, CHANNELS, 1))

    def forward(self, drawings: Tensor, style: Tensor) -> Tensor:
        """drawings (B, T, 4, h, w) of all sets, style (B,) -> the same shape."""
        flat = drawings.flatten(0, 1).flatten(2)  # (B * T, 4, h * w)
        inlet, inlet_bias, outlet, outlet_bias = (
            part[style].flatten(0, 1) for part in (self.inlet, self.inlet_bias, self.outlet, self.outlet_bias)
        )
        hidden = F.relu(torch.baddbmm(inlet_bias, inlet, flat), inplace=True)
        return (flat + torch.baddbmm(outlet_bias, outlet, hidden)).view_as(drawings)


class NeighbourDrawings(NamedTuple):
    """The neighbours' drawings in the style that is asked for, per row.

    drawings (B, K, 4, h, w); nearness (B, K), 0 where there is none; differ (B, K, h / 2, w / 2), where they and the concept differ in
    other styles.
    """

    drawings: Tensor
    nearness: Tensor
    differ: Tensor

    def to(self, device: torch.device) -> NeighbourDrawings:
        return NeighbourDrawings(*(part.to(device) for part in self))


class Imputer(nn.Module):
    """Guesses a concept's drawing in one style from those of its drawings that are given.

    It sees all styles and auxiliary sets.

    Each pixel of it is a mean of the given drawings there, recoloured for the style, of the neighbours' drawings in that style, and
    of one of the network's own; with weights of the pixel's own.
    """

    def __init__(self, styles: int, auxiliary: int, neighbours: int = COUNT) -> None:
        super().__init__()
        sources = styles + auxiliary + neighbours
        self.sources = sources
        self.style = nn.Embedding(styles, CONDITION)
        self.recolour = Recolour(styles, styles + auxiliary)
        self.prior = nn.Embedding(styles, sources)
        nn.init.zeros_(self.prior.weight)
        self.inlet = nn.Conv2d(sources * (4 * CHANNELS + 1) + neighbours, WIDTHS[0], 1)
        self.fine = nn.ModuleList([Block(WIDTHS[0])])
        self.to_middle = nn.Conv2d(WIDTHS[0], WIDTHS[1], 2, stride=2)
        self.middle = nn.ModuleList(Block(WIDTHS[1]) for _ in range(BLOCKS))
        self.to_coarse = nn.Conv2d(WIDTHS[1], WIDTHS[2], 2, stride=2)
        self.coarse = nn.ModuleList(Block(WIDTHS[2]) for _ in range(2 * BLOCKS))
        self.whole = nn.Linear(WIDTHS[2], sources)
        self.from_coarse = nn.ConvTranspose2d(WIDTHS[2], WIDTHS[1], 2, stride=2)
        self.middle_again = nn.ModuleList(Block(WIDTHS[1]) for _ in range(BLOCKS))
        self.from_middle = nn.ConvTranspose2d(WIDTHS[1], WIDTHS[0], 2, stride=2)
        self.fine_again = nn.ModuleList([Block(WIDTHS[0])])
        last = nn.Conv2d(WIDTHS[0], 4 * (sources + 1 + CHANNELS), 3, padding=1)
        with torch.no_grad():  # the four pixels of a place begin alike: otherwise they make a chequered pattern
            last.weight.copy_(last.weight[::4].repeat_interleave(4, dim=0))
            bias = torch.zeros(sources + 1 + CHANNELS)
            bias[sources] = OWN_AT_FIRST
            last.bias = nn.Parameter(bias.repeat_interleave(4))
        self.outlet = nn.Sequential(nn.GroupNorm(1, WIDTHS[0]), last)

    def forward(self, drawings: Tensor, given: Tensor, style: Tensor, neighbour_drawings: NeighbourDrawings) -> Tensor:
        """drawings (B, T, 4, h, w), given (B, T) of 0/1, style (B,), the neighbours' -> (B, 4, h, w).

        Drawings are those of the styles and of the auxiliary sets, their colours times alpha.
        """
        shown = given[:, :, None, None, None]
        recoloured = self.recolour(drawings * shown, style) * shown
        sources = torch.cat([recoloured, neighbour_drawings.drawings], dim=1)
        small = F.pixel_unshuffle(sources.flatten(1, 2), 2)
        flags = torch.cat([given, neighbour_drawings.nearness], dim=1)[:, :, None, None].expand(
            -1, -1, *small.shape[-2:]
        )
        condition = self.style(style)
        fine = _through(self.fine, self.inlet(torch.cat([small, flags, neighbour_drawings.differ], dim=1)), condition)
        middle = _through(self.middle, self.to_middle(fine), condition)
        coarse = _through(self.coarse, self.to_coarse(middle), condition)
        middle = _through(self.middle_again, middle + self.from_coarse(coarse), condition)
        fine = _through(self.fine_again, fine + self.from_middle(middle), condition)
        likely, own, colour, alpha = torch.split(F.pixel_shuffle(self.outlet(fine), 2), [self.sources, 1, 3, 1], dim=1)
        # Which drawing is followed is first a matter of the whole picture: a thing half in one pose and half in another is none.
        likely = likely + (self.prior(style) + self.whole(coarse.mean(dim=(2, 3))))[:, :, None, None]
        likely = likely.masked_fill(flags[:, :, :1, :1] == 0, float("-inf"))
        weights = torch.cat([likely, own], dim=1).softmax(dim=1)[:, :, None]
        alpha = alpha.sigmoid()
        drawn = torch.cat([colour.sigmoid() * alpha, alpha], dim=1)
        out: Tensor = (weights * torch.cat([sources, drawn[:, None]], dim=1)).sum(dim=1)
        return out


def _through(blocks: nn.ModuleList, x: Tensor, condition: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, condition)
    return x


@dataclass(frozen=True)
class Drawings:
    """The drawings that may be looked at, and which concepts are drawn alike.

    The world's that are not held out, and all of the auxiliary sets, uint8 (concepts, A, 64, 64, 4), as `auxiliary_art` has them.
    """

    world: World
    auxiliary: npt.NDArray[np.uint8]
    neighbours: Neighbours

    @cached_property
    def known(self) -> npt.NDArray[np.bool_]:
        """(concepts, T): which of a thing's drawings there are to look at, styles first."""
        return np.concatenate([self.world.trained, self.auxiliary[..., 3].any(axis=(2, 3))], axis=1)

    def icons(self, concept: Indices | int) -> Tensor:
        """float32 (..., T, 4, 64, 64), colours times alpha: also of what may not be looked at."""
        return premultiplied(np.concatenate([self.world.art.pixels[concept], self.auxiliary[concept]], axis=-4))

    def others(self, concept: Indices, style: Indices) -> npt.NDArray[np.bool_]:
        """(B, T): the drawings of each thing that may be looked at, less the one in `style`."""
        given = self.known[concept].copy()
        given[np.arange(len(style)), style] = False
        return given

    def neighbour_drawings(self, concept: Indices, style: Indices) -> NeighbourDrawings:
        """Drawings of the neighbours of concepts (B,) in styles (B,)."""
        neighbours = self.neighbours
        nearness = torch.from_numpy(neighbours.nearness[concept, style])
        drawings = premultiplied(self.world.art.pixels[neighbours.concept[concept, style], style[:, None]])
        differ = torch.from_numpy(neighbours.differ[concept, style])
        there = (nearness > 0).float()[:, :, None, None]
        return NeighbourDrawings(drawings * there[:, :, None], nearness, differ * there)

    def imputer(self) -> Imputer:
        """A new network for these drawings."""
        return Imputer(len(self.world.styles), self.auxiliary.shape[1], self.neighbours.concept.shape[2])


def train_imputer(
    folder: Path,
    drawings: Drawings,
    config: TrainerConfig,
    concepts: int = 8,
    start: Imputer | None = None,
    placement: Placement | None = None,
) -> None:
    """Train on the icons of all concepts: how styles differ shows on any of them.

    Each step asks for every drawing of `concepts` concepts that training may see, on posters of a palette each.
    start: a network to continue from; by default a new one.
    """
    world = drawings.world
    placement = placement or Placement()
    put, device = placement.put, placement.device()
    network, perceptual, renderer, group = (
        (start or drawings.imputer()).to(device),
        PerceptualFeatures(device),
        PosterRenderer(world.palettes, device),
        ProcessGroup.join(placement.device().type),
    )
    count = len(world.styles)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = np.where(
            rng.random(concepts) < SHOWN_SHARE,
            rng.choice(np.flatnonzero(world.shown), concepts),
            rng.integers(len(world.concepts), size=concepts),
        )
        palettes = world.sample_palettes(concepts, rng)
        dropped = rng.random((concepts, count, drawings.known.shape[1])) < DROPPED_SHARE
        at_places = places(concepts, rng)
        rows = int(world.trained[chosen].sum())
        (mine,) = group.parts(concepts)
        concept, style = np.nonzero(world.trained[chosen[mine]])  # (B,) each
        given = drawings.others(chosen[mine][concept], style)
        fewer = given & ~dropped[mine][concept, style]
        given = np.where(fewer.any(axis=1, keepdims=True), fewer, given)
        at, wanted, place = torch.from_numpy(concept), torch.from_numpy(style), at_places[mine]
        icons = placed(drawings.icons(chosen[mine]), place)  # (things, T, 4, 64, 64)
        neighbour_drawings = drawings.neighbour_drawings(chosen[mine][concept], style)
        neighbour_drawings = NeighbourDrawings(
            placed(neighbour_drawings.drawings, place[at]),
            neighbour_drawings.nearness,
            placed(neighbour_drawings.differ[:, :, None], place[at])[:, :, 0],
        )
        palette, icons, at, wanted = put(palettes[mine]), put(icons), put(at), put(wanted)
        neighbour_drawings = neighbour_drawings.to(device)
        made = network(icons[at], put(given).float(), wanted, neighbour_drawings)
        images = renderer(made, wanted, palette[at])
        with torch.no_grad():
            drawn = icons[:, :count].flatten(0, 1)
            real = renderer(drawn, put(torch.arange(count)).repeat(len(icons)), palette.repeat_interleave(count))
            seen = [part.view(len(icons), count, -1)[at] for part in perceptual(real)]
            truth = real.view(len(icons), count, *real.shape[1:])[at, wanted]
        known = put(world.trained[chosen[mine]][concept]).float()
        mistaken, unlike = (part.sum() / rows for part in compared(perceptual(images), seen, wanted, known))
        apart = (images - truth).abs().mean(dim=(1, 2, 3)).sum() / rows
        figures = {"l1": apart, "mistaken": mistaken, "unlike": unlike}
        total = PIXELS_WEIGHT * apart + MISTAKEN_WEIGHT * min(1.0, step / RAMP) * mistaken + UNLIKE_WEIGHT * unlike
        return total, {name: float(figure.detach()) for name, figure in figures.items()}

    Trainer(network, loss, folder, config, placement).run()


def places(count: int, rng: np.random.Generator, turned_share: float = TURNED_SHARE) -> Tensor:
    """Random shifts, turns and stretches (count, 2, 3), as `affine_grid` takes them.

    Each maps a place of the new picture to the old one.
    """
    mirror = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    turned = rng.random(count) < turned_share
    angle = np.deg2rad(rng.uniform(-TURN, TURN, count)) * turned
    stretch = 1 + rng.uniform(-STRETCH, STRETCH, (count, 2)) * turned[:, None]
    move = rng.integers(-SHIFT, SHIFT + 1, size=(count, 2)) * 2 / ICON_SIZE
    cos, sin = np.cos(angle), np.sin(angle)
    across = np.stack([mirror * cos * stretch[:, 0], -mirror * sin * stretch[:, 1], move[:, 0]], axis=1)
    down = np.stack([sin * stretch[:, 0], cos * stretch[:, 1], move[:, 1]], axis=1)
    return torch.from_numpy(np.stack([across, down], axis=1)).float()


def placed(images: Tensor, place: Tensor) -> Tensor:
    """Move all N pictures of a row of (B, N, C, h, w) by the same `place` (B, 2, 3); zeros around them."""
    flat = images.flatten(1, 2)
    grid = F.affine_grid(place, list(flat.shape), align_corners=False)
    return F.grid_sample(flat, grid, align_corners=False).view_as(images)


def guessed(network: Imputer, drawings: Drawings, concept: int) -> npt.NDArray[np.uint8]:
    """A concept in every style: RGBA uint8 (S, 64, 64, 4), straight alpha.

    The mean of two guesses, one of everything mirrored: of what the network errs in on one side only, half is left.
    """
    count = len(drawings.world.styles)
    styles = np.arange(count)
    same = np.full(count, concept)
    device = next(network.parameters()).device
    given = torch.from_numpy(drawings.others(same, styles)).float().to(device)
    icons = drawings.icons(concept)[None].expand(count, -1, -1, -1, -1).to(device)
    neighbour_drawings = drawings.neighbour_drawings(same, styles).to(device)
    style = torch.from_numpy(styles).to(device)
    mirrored = NeighbourDrawings(
        neighbour_drawings.drawings.flip(-1), neighbour_drawings.nearness, neighbour_drawings.differ.flip(-1)
    )
    made = network(icons, given, style, neighbour_drawings) + network(icons.flip(-1), given, style, mirrored).flip(-1)
    return straight(made / 2)


@torch.no_grad()
def imagine(network: Imputer, drawings: Drawings, concepts: Indices) -> npt.NDArray[np.uint8]:
    """Every drawing of these concepts as guessed: RGBA uint8 (concepts, styles, 64, 64, 4), else zeros."""
    icons = np.zeros_like(drawings.world.art.pixels)
    for concept in concepts.tolist():
        icons[concept] = guessed(network, drawings, concept)
    return icons


@torch.no_grad()
def impute(
    icons: npt.NDArray[np.uint8],
    world: World,
    encode: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    target: Path,
) -> None:
    """Write the guessed icons of what films show, on every poster, to `target`.

    It is float16 (concepts, styles, palettes, *shape).

    encode: pixels (B, 3, 64, 64) in [0, 1] -> (B, *shape).
    """
    partial = target.with_suffix(".partial")  # a stage that reads the guesses of before keeps them
    full = (len(world.concepts), len(world.styles), len(world.palettes), *shape)
    out = np.lib.format.open_memmap(partial, mode="w+", dtype="float16", shape=full)
    for number, concept in enumerate(np.flatnonzero(world.shown).tolist()):
        for style, icon in enumerate(icons[concept]):
            posters = [world.draw(concept, style, palette, icon) for palette in range(len(world.palettes))]
            out[concept, style] = encode(torch.from_numpy(np.stack(posters))).cpu().numpy()
        if number % 50 == 0:
            log.info("imputed: %d of %d things", number, int(world.shown.sum()))
    out.flush()
    partial.replace(target)
