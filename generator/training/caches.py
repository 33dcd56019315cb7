"""Codes and latents of every picture of the world, made once by the frozen tokenizer and VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from generator.training.pictures import Indices, World

log = logging.getLogger(__name__)
CHUNK = 64


@dataclass(frozen=True)
class CodeCache:
    """codes int16 (concepts, styles, palettes, max_tokens), lengths uint8 (concepts, styles, palettes)."""

    codes: npt.NDArray[np.int16]
    lengths: npt.NDArray[np.uint8]

    def rows(self, concept: Indices, style: Indices, palette: Indices) -> list[list[int]]:
        """Per picture its codes 0..K-1."""
        taken = zip(self.codes[concept, style, palette], self.lengths[concept, style, palette], strict=True)
        return [codes[:length].tolist() for codes, length in taken]


def fill(
    world: World,
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    make: Callable[[Tensor], Tensor],
    part: tuple[int, int] = (0, 1),
) -> npt.NDArray[np.generic]:
    """Make `<folder>/<name>.npy`, (concepts, styles, palettes, *shape), of every picture that is ever drawn.

    Concepts that are neither shown by films nor pictorial stay zero. `part` (i, n): do only the i-th n-th.

    make: pixels (B, 3, S, S) in [0, 1] -> (B, *shape). The parts of one array may be filled by several processes at once.
    """
    full = (len(world.concepts), len(world.styles), len(world.palettes), *shape)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npy"
    try:
        with path.open("xb"):
            pass
        np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=full).flush()
    except FileExistsError:
        pass
    array: npt.NDArray[np.generic] = np.lib.format.open_memmap(path, mode="r+")
    flat = array.reshape(-1, *shape)
    every = np.stack(np.unravel_index(np.arange(len(flat)), full[:3]), axis=1)
    mine = np.array_split(np.flatnonzero((world.shown | world.pictorial)[every[:, 0]]), part[1])[part[0]]
    with torch.no_grad():
        for number, start in enumerate(range(0, len(mine), CHUNK)):
            places = mine[start : start + CHUNK]
            pixels = torch.from_numpy(world.pictures(*every[places].T))
            flat[places] = make(pixels).numpy().astype(dtype)
            if number % 100 == 0:
                log.info("%s: %d of %d", name, start, len(mine))
    np.lib.format.open_memmap(path, mode="r+").flush()
    return array
