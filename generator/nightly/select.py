"""Which of a task's pictures are kept, and why the others are not.

Pure functions of pixels, embeddings and settings. Score (PIGEON.md section 5; Xu et al., arXiv 2410.14170): 0.5 CS + 0.5
mean CIS to the history, both 100 x cosine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.nightly.rows import CandidateRow, PictureRow
from schemas.settings import NightSettings

Vector = npt.NDArray[np.float32]

THUMBNAIL_SIDE = 4
# Mean difference per channel (0-255) of two thumbnails under which their colours count as the same.
SAME_COLOURS = 12.0

BLANK = "blank"
OFF_REFERENCE = "off_reference"
COPY_OF_REFERENCE = "near_duplicate_of_reference"
COPY_OF_VARIANT = "near_duplicate_of_kept_variant"


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
        """Inverse of `str`, as stored in `pictures.look` and `posters.look`."""
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
class PromptFeatures:
    """What pictures are compared with: features of the task's prompt, unit rows."""

    text: Vector
    """(D,): of the description, or of the title where there is none."""
    reference: Vector
    """(D,)"""
    history: Vector
    """(H, D)"""
    reference_hash: ImageHash


@dataclass(frozen=True)
class Judged:
    """A picture of a task's answer with its scores (100 x cosine).

    With the reason, when the task does not keep it."""

    index: int
    """Place of the answer among the task's answers."""
    alpha: float
    picture: PictureRow
    cs: float
    cis_reference: float
    cis_history: float
    score: float
    refused: str | None

    def row(self) -> CandidateRow:
        """As kept in `night_tasks.candidates`."""
        return CandidateRow(
            self.index, self.alpha, self.cs, self.cis_reference, self.cis_history, self.score, self.refused
        )

    @property
    def image_hash(self) -> ImageHash:
        """The drawn picture's."""
        return ImageHash.parse(self.picture.look)


def judge(
    index: int,
    alpha: float,
    picture: PictureRow,
    features: PromptFeatures,
    kept: Sequence[Judged],
    settings: NightSettings,
) -> Judged:
    """Score a picture for a task, beside the ones that the task keeps already.

    What is wrong with the picture for everybody is in its row; what is wrong with it here is decided here.
    """
    if picture.embedding is None:
        return Judged(index, alpha, picture, math.nan, math.nan, math.nan, math.nan, picture.reason)
    cs = 100 * float(picture.embedding @ features.text)
    cis_reference = 100 * float(picture.embedding @ features.reference)
    cis_history = 100 * float((features.history @ picture.embedding).mean())
    score = settings.reference_weight * cs + (1 - settings.reference_weight) * cis_history
    judged = Judged(index, alpha, picture, cs, cis_reference, cis_history, score, picture.reason)
    if judged.refused:
        return judged
    reason = None
    if cs < settings.min_reference_score:
        reason = OFF_REFERENCE
    elif judged.image_hash.is_near(features.reference_hash, settings.near_duplicate_distance):
        reason = COPY_OF_REFERENCE
    elif any(judged.image_hash.is_near(other.image_hash, settings.near_duplicate_distance) for other in kept):
        reason = COPY_OF_VARIANT
    return replace(judged, refused=reason)


def propensities(scores: Sequence[float], exploration: float) -> list[float]:
    """Probability of showing each variant: `exploration` shared evenly, the rest to the best score."""
    if not scores:
        return []
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    return [exploration / len(scores) + (1 - exploration) * (i == best) for i in range(len(scores))]
