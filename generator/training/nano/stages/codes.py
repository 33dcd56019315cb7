"""Codes and latents of every picture of the world, computed once by the frozen tokenizer and VAE."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from generator.training.nano.stages.tokenizer import PALETTE_CODES, STYLE_CODES
from generator.training.nano.world import Triple, World

log = logging.getLogger(__name__)
PALETTE = slice(0, PALETTE_CODES)
STYLE = slice(PALETTE_CODES, PALETTE_CODES + STYLE_CODES)
SHAPE = slice(PALETTE_CODES + STYLE_CODES, None)
ANSWER_SHARE = 0.6
CHUNK = 64


@dataclass(frozen=True)
class CodeCache:
    """Codes of every picture, and the answers that the language model learns.

    `codes` int16 (concepts, styles, palettes, N): the tokenizer's.

    `answers`, of the same shape: what the language model learns to answer. A picture has many codes that draw it; of them the
    answer takes those that the tokenizer uses most for the palette, for the style, and for the thing in any style on any
    palette. So a thing has the same answer in a style in which it was never drawn as in the others.
    """

    codes: npt.NDArray[np.int16]
    answers: npt.NDArray[np.int16]

    @classmethod
    def of(cls, codes: npt.NDArray[np.int16], world: World) -> CodeCache:
        """Answers come from the pictures that training may see."""
        seen = world.trained & world.shown[:, None]  # (concepts, styles)
        answers = codes.copy()
        for palette in range(codes.shape[2]):
            answers[:, :, palette, PALETTE] = most_used(codes[:, :, palette, PALETTE][seen])
        for style in range(codes.shape[1]):
            answers[:, style, :, STYLE] = most_used(codes[:, style, :, STYLE][seen[:, style]].reshape(-1, STYLE_CODES))
        for concept in np.flatnonzero(world.shown):
            shapes = codes[concept, world.trained[concept]][..., SHAPE].reshape(-1, answers[..., SHAPE].shape[-1])
            shared = (shapes[:, None] == shapes[None]).sum(axis=(1, 2))  # (rows,): with all drawings of the thing
            answers[concept, ..., SHAPE] = shapes[shared.argmax()]
        return cls(codes, answers)

    def mixed(self, world: World, triple: Triple, rng: np.random.Generator, other_style_share: float) -> Tensor:
        """Codes (B, N) int64 for the pictures `triple`, each role's codes from another picture.

        `ANSWER_SHARE` of the rows are the answers, and all of drawings that training may not see; `other_style_share` of the
        rest take the shape from another style's drawing.
        """
        concept, style, palette = triple
        count = len(concept)
        rows = self.answers[triple].astype(np.int64)
        some = np.flatnonzero((rng.random(count) >= ANSWER_SHARE) & world.trained[concept, style])
        others, other_styles, other_palettes = world.sample(count, rng)
        rows[some, PALETTE] = self.codes[others, other_styles, palette][some, PALETTE]
        fit = np.where(world.trained[others, style], others, concept)  # no held-out drawing shows what its style is
        rows[some, STYLE] = self.codes[fit, style, other_palettes][some, STYLE]
        drawn = np.where(rng.random(count) < other_style_share, world.other_styles(concept, style, rng), style)
        rows[some, SHAPE] = self.codes[concept, drawn, other_palettes][some, SHAPE]
        return torch.from_numpy(rows)


def most_used(rows: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The commonest row: (n, k) -> (k,)."""
    found, count = np.unique(rows, axis=0, return_counts=True)
    row: npt.NDArray[np.int16] = found[count.argmax()]
    return row


def fill(
    world: World,
    folder: Path,
    name: str,
    shape: tuple[int, ...],
    dtype: str,
    make: Callable[[Tensor], Tensor],
    every: bool = False,
) -> npt.NDArray[np.generic]:
    """Fill `<folder>/<name>.npy`, (concepts, styles, palettes, *shape), with numbers of every picture.

    make: pixels (B, 3, S, S) in [0, 1] -> (B, *shape).
    every: of all concepts; else of those that films show, and the others stay zero.
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
    triples = np.stack(np.unravel_index(np.arange(len(flat)), full[:3]), axis=1)
    wanted = np.flatnonzero(world.shown[triples[:, 0]] | every)
    with torch.no_grad():
        for number, start in enumerate(range(0, len(wanted), CHUNK)):
            places = wanted[start : start + CHUNK]
            pixels = torch.from_numpy(world.images(*triples[places].T))
            flat[places] = make(pixels).cpu().numpy().astype(dtype)
            if number % 100 == 0:
                log.info("%s: %d of %d", name, start, len(wanted))
    np.lib.format.open_memmap(path, mode="r+").flush()
    return array
