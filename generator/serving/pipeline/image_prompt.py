"""An image prompt as codes: all that a picture is drawn from, in numbers that the night stores.

    picture   peak, then three levels a code                      (`image_codes`)
    prompt    noise, bytes of the text, three bytes a code, then the picture's codes   (`prompt_codes`)

A level has ten bits: the embedding's entries are rounded to 1/511 of the largest one. The peak is the bits of a float32. A
prompt ends like a picture, so that a drawn poster's codes can stand in a history. Codes are below 2^31, as Postgres' integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

LEVELS = 511
"""Levels on each side of 0."""
MIDDLE = 512
PER_CODE = 3
"""Levels, or bytes of the text, in one code."""
HEAD = 2
"""Codes before the text: number of the noise, and bytes of the text."""


class BadCodes(ValueError):
    """Codes that are no image prompt of this width."""


@dataclass(frozen=True)
class ImagePrompt:
    """What one picture is drawn from."""

    embedding: Floats
    """(D,): the image encoder's, not normalised."""
    text: str
    noise: int
    """Number of the start noise among those that answers choose from."""


def image_codes(embedding: Floats) -> tuple[int, ...]:
    """(D,) -> `image_length(D)` codes.

    Raises:
        ValueError: not finite, or all zero.
    """
    peak = np.abs(embedding).max()
    if not (np.isfinite(peak) and peak > 0):
        raise ValueError("embedding: is not finite, or all zero")
    levels = np.full(PER_CODE * _codes(len(embedding)), MIDDLE, dtype=np.int64)
    levels[: len(embedding)] += np.rint(embedding.astype(np.float64) / peak * LEVELS).astype(np.int64)
    first, second, third = levels.reshape(-1, PER_CODE).T
    packed = (first << 20) | (second << 10) | third
    return (int(np.float32(peak).view(np.int32)), *packed.tolist())


def image_length(width: int) -> int:
    """Codes of a picture whose embedding has `width` entries."""
    return 1 + _codes(width)


def image_embedding(codes: Sequence[int], width: int) -> Floats:
    """Codes of a picture or of a prompt -> (width,): the picture's part, which is at the end of both.

    Raises:
        BadCodes: too few, or none of ours.
    """
    length = image_length(width)
    if len(codes) < length:
        raise BadCodes(f"{len(codes)} codes; a picture has {length} (embeddings of {width})")
    own = np.array(codes[-length:], dtype=np.int64)
    peak = own[:1].astype(np.int32).view(np.float32)[0]
    levels = np.stack([own[1:] >> 20, own[1:] >> 10, own[1:]], axis=1).reshape(-1) & 1023
    if (own < 0).any() or (own >= 1 << 31).any() or not (np.isfinite(peak) and peak > 0) or (levels == 0).any():
        raise BadCodes("codes that are no picture's; they are of another model")
    entries: Floats = ((levels[:width] - MIDDLE) / LEVELS * peak).astype(np.float32)
    return entries


def prompt_codes(prompt: ImagePrompt) -> tuple[int, ...]:
    """A prompt as codes; equal prompts have equal ones.

    Raises:
        ValueError: as `image_codes`.
    """
    text = prompt.text.encode()
    padded = text.ljust(PER_CODE * _codes(len(text)), b"\0")
    letters = (int.from_bytes(padded[at : at + PER_CODE], "big") for at in range(0, len(padded), PER_CODE))
    return (prompt.noise, len(text), *letters, *image_codes(prompt.embedding))


def parse_prompt(codes: Sequence[int], width: int) -> ImagePrompt:
    """Inverse of `prompt_codes`, but for the embedding's rounding.

    Raises:
        BadCodes: not the codes of a prompt with embeddings of `width`.
    """
    if len(codes) < HEAD or min(codes) < 0:
        raise BadCodes(f"{len(codes)} codes, which are no image prompt")
    noise, size = codes[:HEAD]
    letters = codes[HEAD : HEAD + _codes(size)]
    if len(codes) != HEAD + len(letters) + image_length(width) or any(code >= 1 << 8 * PER_CODE for code in letters):
        raise BadCodes(f"{len(codes)} codes, which are no image prompt with embeddings of {width}")
    text = b"".join(code.to_bytes(PER_CODE, "big") for code in letters)[:size]
    try:
        return ImagePrompt(image_embedding(codes, width), text.decode(), noise)
    except UnicodeDecodeError as error:
        raise BadCodes(f"an image prompt whose text is not UTF-8: {error}") from error


def _codes(count: int) -> int:
    """Codes for so many levels or bytes."""
    return -(-count // PER_CODE)
