"""Which of a task's candidates are kept, and why the others are not.

Pure functions of pixels, embeddings and settings. Score (PIGEON.md section 5; Xu et al., arXiv 2410.14170): 0.5 CS + 0.5
mean CIS to the history, both 100 x cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.nightly.rows import CandidateRow
from generator.serving.api import DrawnImage
from schemas.settings import NightSettings

Vector = npt.NDArray[np.float32]

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
    """What finds near-duplicates: shapes (64-bit perceptual hash) and colours (4x4 RGB thumbnail).

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
    """The hash of an (H, W, 3) RGB image."""
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
    image_hash: ImageHash
    refused: str | None

    def row(self) -> CandidateRow:
        """As kept in `night_tasks.candidates`."""
        return CandidateRow(
            self.index, self.candidate.alpha, self.cs, self.cis_reference, self.cis_history, self.score, self.refused
        )


@dataclass(frozen=True)
class PromptFeatures:
    """What candidates are compared with: features of the task's prompt, unit rows."""

    text: Vector
    """(D,): of the description, or of the title where there is none."""
    reference: Vector
    """(D,)"""
    history: Vector
    """(H, D)"""
    reference_hash: ImageHash


def choose(
    candidates: Sequence[DrawnImage], features: PromptFeatures, settings: NightSettings
) -> tuple[list[Scored], list[Scored]]:
    """Score all candidates and keep the best `settings.variants` that pass the quality gate.

    A candidate whose answer, its codes, is that of a better one comes after all with another answer: feedback on two
    drawings of one answer teaches the model nothing.

    Returns:
        All candidates in their order, and the kept ones, best first but for repeated answers: place in that list = variant number.
    """
    judged = [_judge(index, candidate, features, settings) for index, candidate in enumerate(candidates)]
    kept: list[Scored] = []
    answers: set[tuple[int, ...]] = set()
    repeated: dict[int, bool] = {}
    by_score = sorted(judged, key=lambda s: (-s.score, s.index))
    for scored in by_score:
        if not scored.refused:
            repeated[scored.index] = scored.candidate.tokens in answers
            answers.add(scored.candidate.tokens)
    for scored in sorted(by_score, key=lambda s: repeated.get(s.index, False)):
        if scored.refused:
            continue
        reason = None
        if len(kept) == settings.variants:
            reason = OUTSCORED
        elif any(scored.image_hash.is_near(other.image_hash, settings.near_duplicate_distance) for other in kept):
            reason = COPY_OF_VARIANT
        if reason:
            judged[scored.index] = replace(scored, refused=reason)
        else:
            kept.append(scored)
    return judged, kept


def _judge(index: int, candidate: DrawnImage, features: PromptFeatures, settings: NightSettings) -> Scored:
    cs = 100 * float(candidate.embedding @ features.text)
    cis_reference = 100 * float(candidate.embedding @ features.reference)
    cis_history = 100 * float((features.history @ candidate.embedding).mean())
    score = settings.reference_weight * cs + (1 - settings.reference_weight) * cis_history
    found = image_hash(candidate.image)
    refused = None
    if float(candidate.image.std(axis=(0, 1)).max()) < settings.blank_stddev:
        refused = BLANK
    elif cs < settings.min_reference_score:
        refused = OFF_REFERENCE
    elif found.is_near(features.reference_hash, settings.near_duplicate_distance):
        refused = COPY_OF_REFERENCE
    return Scored(index, candidate, cs, cis_reference, cis_history, score, found, refused)


def propensities(scores: Sequence[float], exploration: float) -> list[float]:
    """Probability of showing each variant: `exploration` shared evenly, the rest to the best score."""
    if not scores:
        return []
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    return [exploration / len(scores) + (1 - exploration) * (i == best) for i in range(len(scores))]
