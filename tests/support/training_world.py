"""A world of twenty things drawn as noise, for tests of the stages that train on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from generator.datasets.icons import STYLES, Concept, IconArt
from generator.training.nano.imputation.imputer import Drawings
from generator.training.nano.imputation.neighbours import find_neighbours
from generator.training.nano.world import World


def small_world() -> World:
    """Twenty concepts of which films show ten, six styles, a third of the pairs held out, three palettes; icons of noise."""
    rng = np.random.default_rng(0)
    made = World.__new__(World)
    made.trained = rng.random((20, 6)) > 0.3
    made.shown = np.arange(20) < 10
    made.concepts = tuple(Concept(f"thing-{number}", f"thing {number}", (), "", "", "", ()) for number in range(20))
    made.styles = STYLES
    made.palettes = ("plain", "sunset", "noir")
    made.art = IconArt(made.concepts, rng.integers(256, size=(20, 6, 64, 64, 4), dtype=np.uint8), Path())
    made._pairs = np.argwhere(made.trained)
    made._film_pairs = np.argwhere(made.trained & made.shown[:, None])
    made._film_weights = np.full(len(made._film_pairs), 1 / len(made._film_pairs))
    return made


def to_look_at(world: World) -> Drawings:
    """Two auxiliary sets of noise beside the styles, of which the second has half of the things."""
    auxiliary = np.random.default_rng(1).integers(1, 256, size=(20, 2, 64, 64, 4), dtype=np.uint8)
    auxiliary[::2, 1] = 0
    return Drawings(world, auxiliary, find_neighbours(world))


def coded(world: World) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    """Codes that tell their picture: 100 + palette, 200 + style, 10 * concept + style."""
    concept, style, palette = np.indices((20, 6, 3))
    parts = [100 + palette] * 2 + [200 + style] * 2 + [10 * concept + style] * 12
    return np.stack(parts, axis=-1).astype(np.int16)


def drawn(world: World) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """Latents of noise, and of the same noise with all that is held out changed."""
    latents = np.random.default_rng(0).standard_normal((20, 6, 3, 4, 8, 8)).astype(np.float16)
    changed = latents.copy()
    changed[~world.trained] = 7
    return np.stack([latents, changed])


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "state.pt", weights_only=True)["module"]
    return found
