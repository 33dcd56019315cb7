"""Whether a checkpoint can draw a catalogue's pictures at all: tokenize some, decode, and look.

Before anybody trains for hours: what the frozen tokenizer and decoder cannot say, no alignment can draw.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import PigeonPipeline
from generator.training.catalog.dataset.card import Tiles, sheet
from generator.training.catalog.dataset.manifest import Redrawn, read_manifest
from generator.training.catalog.dataset.reader import Dataset
from generator.training.evaluation.extractors import Extractor, Own, Pixels, as_pixels
from generator.training.evaluation.metrics import cosines, ssim
from generator.training.evaluation.rows import rendered, sized

REDRAWN = 64
"""Items that are redrawn; fewer where there are fewer pictures."""
PAIRS_A_LINE = 8
DRAWN_AT_ONCE = 16


def redraw(folder: Path, model: PigeonModel, count: int = REDRAWN) -> Redrawn:
    """Redraw pictures of a data set, chosen by a stable hash, and write redrawn.webp."""
    dataset = Dataset(folder, read_manifest(folder))
    hashes = {item.image for item in dataset.items}
    chosen = sorted(hashes, key=lambda one: hashlib.sha256(one.encode()).digest())[:count]
    known = dataset.images_of(set(chosen))
    originals = np.stack([known[one] for one in chosen])
    drawn = reconstructed(model, list(originals))
    pairs: Tiles = [tile for pair in zip(originals, drawn, strict=True) for tile in pair]
    step = 2 * PAIRS_A_LINE
    lines = [
        [pairs[start + n : start + n + 2] for n in range(0, len(pairs[start : start + step]), 2)]
        for start in range(0, len(pairs), step)
    ]
    sheet(lines).save(folder / "redrawn.webp", "WEBP", quality=85, method=6)
    judge: Extractor = Pixels() if model.scorer is None else Own(model)
    apart = cosines(judge.encode(drawn).vectors, judge.encode(originals).vectors)  # (n, n)
    likeness = ssim(as_pixels(drawn), as_pixels(originals)).double()
    return Redrawn(
        images=len(chosen),
        similarity=float(np.diag(apart).mean()),
        recognised=float((apart.argmax(axis=1) == np.arange(len(chosen))).mean()),
        ssim=float(likeness.mean()),
        extractor=judge.title,
    )


def reconstructed(
    model: PigeonModel, images: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Pictures (S, S, 3) -> their codes drawn again, (n, S, S, 3)."""
    pipeline = PigeonPipeline(model)
    parts = []
    for start in range(0, len(images), DRAWN_AT_ONCE):
        some = images[start : start + DRAWN_AT_ONCE]
        codes = [row.tolist() for row in model.tokenizer.encode(pipeline.pixels(some))]
        drawn = rendered(pipeline, codes, [(start + number, 0) for number in range(len(some))])
        parts.append(sized(drawn, images[0].shape[0]))
    return np.concatenate(parts)
