"""Which of a task's candidates are kept, and why the others are not. Pure functions of pixels, embeddings and settings.

Score (PIGEON.md section 5; Xu et al., arXiv 2410.14170): 0.5 CS + 0.5 mean CIS to the history, both 100 x cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.serving.api import DrawnImage
from schemas.settings import NightSettings

THUMBNAIL_SIDE = 4
# Mean difference per channel (0-255) of two thumbnails under which their colours count as the same.
SAME_COLOURS = 12.0

BLANK = "blank"
OFF_REFERENCE = "off_reference"
COPY_OF_REFERENCE = "near_duplicate_of_reference"
COPY_OF_VARIANT = "near_duplicate_of_kept_variant"
OUTSCORED = "outscored"


@dataclass(frozen=True)
class ImageHash:
    """What near-duplicates are found by: shapes (64-bit perceptual hash) and colours (4x4 RGB thumbnail).

    The hash alone sees no colour, and a change of palette is a personalization.
    """

    shapes: int
    colours: bytes

    def __str__(self) -> str:
        return f"{self.shapes:016x}{self.colours.hex()}"

    @classmethod
    def parse(cls, text: str) -> ImageHash:
        """Inverse of `str`, as stored in `posters.look`."""
        return cls(int(text[:16], 16), bytes.fromhex(text[16:]))

    def is_near(self, other: ImageHash, distance: int) -> bool:
        """Whether both shapes and colours are nearly the same."""
        if (self.shapes ^ other.shapes).bit_count() > distance:
            return False
        mine = np.frombuffer(self.colours, np.uint8).astype(np.float32)
        return float(np.abs(mine - np.frombuffer(other.colours, np.uint8)).mean()) < SAME_COLOURS


def image_hash(pixels: npt.NDArray[np.uint8]) -> ImageHash:
    """The look of an (H, W, 3) RGB picture."""
    image = Image.fromarray(pixels)
    bits = imagehash.phash(image).hash.flatten()
    small = image.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
    return ImageHash(int("".join("1" if bit else "0" for bit in bits), 2), small.tobytes())


@dataclass(frozen=True)
class Scored:
    """A candidate with its scores (100 x cosine) and, when it is not kept, the reason."""

    index: int
    candidate: DrawnImage
    cs: float
    cis_reference: float
    cis_history: float
    score: float
    look: ImageHash
    refused: str | None

    def row(self) -> dict[str, Any]:
        """For `night_tasks.candidates`; rounded, so that it reads well and compares exactly."""
        return {
            "index": self.index,
            "alpha": round(self.candidate.alpha, 6),
            "cs": round(self.cs, 4),
            "cis_reference": round(self.cis_reference, 4),
            "cis_history": round(self.cis_history, 4),
            "score": round(self.score, 4),
            "refused": self.refused,
        }


def choose(
    candidates: Sequence[DrawnImage],
    *,
    text: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    history: npt.NDArray[np.float32],
    reference_look: ImageHash,
    settings: NightSettings,
) -> tuple[list[Scored], list[Scored]]:
    """Score all candidates and keep the best `settings.variants` that pass the quality gate.

    A candidate whose answer, its codes, is that of a better one comes after all that say something else: feedback on two
    drawings of one answer teaches the model nothing.

    `text` and `reference` are (D,), `history` is (H, D), all unit rows.

    Returns:
        All candidates in their order, and the kept ones, best first but for repeated answers: place in that list = variant number.
    """
    judged = [
        _judge(index, candidate, text, reference, history, reference_look, settings)
        for index, candidate in enumerate(candidates)
    ]
    kept: list[Scored] = []
    said: set[tuple[int, ...]] = set()
    repeated: dict[int, bool] = {}
    by_score = sorted(judged, key=lambda s: (-s.score, s.index))
    for scored in by_score:
        if not scored.refused:
            repeated[scored.index] = scored.candidate.tokens in said
            said.add(scored.candidate.tokens)
    for scored in sorted(by_score, key=lambda s: repeated.get(s.index, False)):
        if scored.refused:
            continue
        reason = None
        if len(kept) == settings.variants:
            reason = OUTSCORED
        elif any(scored.look.is_near(other.look, settings.near_duplicate_distance) for other in kept):
            reason = COPY_OF_VARIANT
        if reason:
            judged[scored.index] = Scored(**{**scored.__dict__, "refused": reason})
        else:
            kept.append(scored)
    return judged, kept


def _judge(
    index: int,
    candidate: DrawnImage,
    text: npt.NDArray[np.float32],
    reference: npt.NDArray[np.float32],
    history: npt.NDArray[np.float32],
    reference_look: ImageHash,
    settings: NightSettings,
) -> Scored:
    cs = 100 * float(candidate.embedding @ text)
    cis_history = 100 * float((history @ candidate.embedding).mean())
    score = settings.reference_weight * cs + (1 - settings.reference_weight) * cis_history
    look = image_hash(candidate.image)
    refused = None
    if float(candidate.image.std(axis=(0, 1)).max()) < settings.blank_stddev:
        refused = BLANK
    elif cs < settings.min_reference_score:
        refused = OFF_REFERENCE
    elif look.is_near(reference_look, settings.near_duplicate_distance):
        refused = COPY_OF_REFERENCE
    return Scored(index, candidate, cs, 100 * float(candidate.embedding @ reference), cis_history, score, look, refused)


def propensities(scores: Sequence[float], exploration: float) -> list[float]:
    """Probability with which each variant should be shown: `exploration` shared evenly, the rest to the best score."""
    if not scores:
        return []
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    return [exploration / len(scores) + (1 - exploration) * (i == best) for i in range(len(scores))]
