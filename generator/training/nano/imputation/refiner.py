"""Stage `retouch`: redraws the guesses of two paired styles, each from the drawing in the other.

The two are the same drawings in another finish. The imputer makes every style with one network and mixes what all sets draw: of the
skull that Fluent draws in 3D it makes a flat one in the grey of all sets' skulls. Here each of the two has a network of its own, which
draws the other's drawing again, or the imputer's guess where that is held out, too (decision 17). A tool of training and no part of
the model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.datasets.posters import LINE_ART_STYLE
from generator.pigeon.placement import Placement
from generator.training.nano.imputation.imputer import CHANNELS, placed, places
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

PAIRED_STYLES = {"fluent-emoji": "fluent-emoji-flat", "fluent-emoji-flat": "fluent-emoji"}
FAMILY = (*PAIRED_STYLES, LINE_ART_STYLE)
"""Styles that place a concept alike, which are looked at with the guess."""
WIDTH = 32
DROPPED_SHARE, PARTNER_DROPPED_SHARE = 0.2, 0.1
SHOWN_TIMES = 3.0
"""Weight in the draw of the concepts that films show; the others have 1."""
PIXELS_ONLY_SHARE = 0.25
"""Share of the training, at its beginning, on pixels alone: the perceptual losses cost more than the network."""
PIXELS_WEIGHT, ICON_WEIGHT, MISTAKEN_WEIGHT, UNLIKE_WEIGHT = 3.0, 0.5, 0.6, 0.6
BATCH = 8


class StyleRefiner(nn.Module):
    """One style's network: a U-Net at a half, a quarter and an eighth of the side.

    Untrained, it nearly copies what it is to redraw.
    """

    def __init__(self, images: int, width: int = WIDTH) -> None:
        """images: how many it is shown."""
        super().__init__()

        def layers(count: int, channels: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count))

        self.inlet = nn.Conv2d(4 * CHANNELS * images, width, 1)
        self.fine = layers(1, width)
        self.to_middle = nn.Conv2d(width, 2 * width, 2, stride=2)
        self.middle = layers(3, 2 * width)
        self.to_coarse = nn.Conv2d(2 * width, 3 * width, 2, stride=2)
        self.coarse = layers(3, 3 * width)
        self.from_coarse = nn.ConvTranspose2d(3 * width, 2 * width, 2, stride=2)
        self.middle_again = layers(2, 2 * width)
        self.from_middle = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.fine_again = layers(1, width)
        self.outlet = nn.Conv2d(width, 4 * CHANNELS, 3, padding=1)
        with torch.no_grad():
            for parameter in self.outlet.parameters():
                parameter.mul_(0.1)

    def forward(self, base: Tensor, sources: Tensor) -> Tensor:
        """base (B, 4, h, w), sources (B, N, 4, h, w) -> (B, 4, h, w), which may leave [0, 1].

        Base is what is to be redrawn, sources what else there is to see; colours times alpha.
        """
        seen = torch.cat([base[:, None], sources], dim=1).flatten(1, 2)
        fine = _through(self.fine, self.inlet(F.pixel_unshuffle(seen, 2)))
        middle = _through(self.middle, self.to_middle(F.gelu(fine)))
        coarse = _through(self.coarse, self.to_coarse(F.gelu(middle)))
        middle = _through(self.middle_again, middle + self.from_coarse(F.gelu(coarse)))
        fine = _through(self.fine_again, fine + self.from_middle(F.gelu(middle)))
        return base + F.pixel_shuffle(self.outlet(F.gelu(fine)), 2)


def _through(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = x + layer(F.gelu(x))
    return x


class Refiner(nn.Module):
    """A `StyleRefiner` for each of the paired styles."""

    def __init__(self) -> None:
        super().__init__()
        self.styles = nn.ModuleDict({name: StyleRefiner(1 + len(FAMILY)) for name in PAIRED_STYLES})


def shown(
    world: World, guesses: npt.NDArray[np.uint8], concept: Indices, style: str, dropped: npt.NDArray[np.bool_]
) -> tuple[Tensor, Tensor]:
    """What a style's network sees: base (B, 4, 64, 64) and sources (B, 3, 4, 64, 64), colours times alpha.

    guesses: RGBA (concepts, styles, 64, 64, 4), straight alpha; concept (B,); dropped (B, S): drawings that are not to be looked at.
    """
    family = [name for name in FAMILY if name != style]
    others = [world.styles.index(name) for name in family]
    there = torch.from_numpy((world.trained[concept] & ~dropped)[:, others])[:, :, None, None, None]
    icons = premultiplied(world.art.pixels[concept][:, others]) * there
    guess, partner = premultiplied(guesses[concept, world.styles.index(style)]), family.index(PAIRED_STYLES[style])
    base = torch.where(there[:, partner], icons[:, partner], guess)
    return base, torch.cat([icons, guess[:, None]], dim=1)


def train_refiner(
    folder: Path,
    world: World,
    guesses: npt.NDArray[np.uint8],
    config: TrainerConfig,
    batch: int = BATCH,
    start: Refiner | None = None,
    placement: Placement | None = None,
) -> None:
    """Train the two networks in turn, a step each, on `batch` concepts that training may see in its style.

    guesses: RGBA uint8 (concepts, styles, 64, 64, 4), the imputer's of every drawing, made without looking at it; start: what learning
    begins from, else nothing.
    """
    placement = placement or Placement()
    put, device = placement.put, placement.device()
    network = (start or Refiner()).to(device)
    perceptual, renderer, group, count = (
        PerceptualFeatures(device),
        PosterRenderer(world.palettes, device),
        ProcessGroup.join(placement.device().type),
        len(world.styles),
    )
    chances = np.where(world.shown, SHOWN_TIMES, 1.0)[:, None] * world.trained
    chances /= chances.sum(axis=0)

    def loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        name = tuple(PAIRED_STYLES)[step % len(PAIRED_STYLES)]
        style, partner = world.styles.index(name), world.styles.index(PAIRED_STYLES[name])
        concept = rng.choice(len(chances), batch, p=chances[:, style])
        palette, place = torch.from_numpy(world.sample_palettes(batch, rng)), places(batch, rng, turned_share=0.0)
        dropped = rng.random((batch, count)) < DROPPED_SHARE
        dropped[:, partner] = rng.random(batch) < PARTNER_DROPPED_SHARE
        (mine,) = group.parts(batch)
        concept, palette = concept[mine], put(palette[mine])
        base, sources = shown(world, guesses, concept, name, dropped[mine])
        both = np.array([style, partner])
        real = premultiplied(world.art.pixels[concept][:, both])
        moved = put(placed(torch.cat([base[:, None], sources, real], dim=1), place[mine]))
        base, sources, real = torch.split(moved, [1, sources.shape[1], real.shape[1]], dim=1)
        made = network.styles[name](base[:, 0], sources)
        icon = (made - real[:, 0]).abs().mean(dim=(1, 2, 3)).sum() / batch
        if trainer.progress() < PIXELS_ONLY_SHARE:
            return PIXELS_WEIGHT * icon, {"icon": float(icon.detach())}
        rows = len(concept)
        images = renderer(made, put(torch.full((rows,), style)), palette)
        with torch.no_grad():
            posters = renderer(real.flatten(0, 1), put(both).repeat(rows), palette.repeat_interleave(2))
            seen = [part.view(rows, 2, -1) for part in perceptual(posters)]
        known = put(world.trained[concept][:, both]).float()
        parts = compared(perceptual(images), seen, torch.zeros(rows, dtype=torch.int64, device=device), known)
        mistaken, unlike = (part.sum() / batch for part in parts)
        apart = (images - posters[::2]).abs().mean(dim=(1, 2, 3)).sum() / batch
        figures = {"icon": icon, "l1": apart, "mistaken": mistaken, "unlike": unlike}
        total = PIXELS_WEIGHT * apart + ICON_WEIGHT * icon + MISTAKEN_WEIGHT * mistaken + UNLIKE_WEIGHT * unlike
        return total, {name: float(figure.detach()) for name, figure in figures.items()}

    trainer = Trainer(network, loss, folder, config, placement)
    trainer.run()


@torch.no_grad()
def refined(network: Refiner, world: World, guesses: npt.NDArray[np.uint8], at_once: int = 32) -> npt.NDArray[np.uint8]:
    """Redraw the guesses of what films show in the paired styles; the others stay as they are.

    guesses: RGBA uint8 (concepts, styles, 64, 64, 4), straight alpha. The mean of two drawings, one of everything mirrored, as the guess
    itself.
    """
    out, concepts = guesses.copy(), np.flatnonzero(world.shown)
    for start in range(0, len(concepts), at_once):
        part = concepts[start : start + at_once]
        nothing = np.zeros((len(part), out.shape[1]), dtype=bool)
        for name, own in network.styles.items():
            style = world.styles.index(name)
            base, sources = (x.to(next(own.parameters()).device) for x in shown(world, guesses, part, name, nothing))
            made = own(base, sources) + own(base.flip(-1), sources.flip(-1)).flip(-1)
            out[part, style] = straight((made / 2).clamp(0, 1))
    return out
