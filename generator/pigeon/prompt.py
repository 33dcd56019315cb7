"""Prompt assembly: text, images and masks -> token arrays.

Only the standard library and numpy, no project import: serving copies this file as it is.

In the arrays -1 stands for a masked token (a zero vector) and -2 for the place of the reference embedding; every other
number is a token id of `TokenIds`. In text ids, `image_start` marks the place of an image and `image_end` that of the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MASKED = -1
EMBEDDING = -2
IGNORED_LABEL = -100
HISTORY, REFERENCE = 1, 2
_MARKERS = re.compile(r"(<img>|<emb>)")
_FIELDS = re.compile(r"\{(title|description)\}")


@dataclass(frozen=True)
class TokenIds:
    """The language model's vocabulary: `text_size` text ids, image start and end, visual codes."""

    text_size: int
    codebook_size: int
    pad_id: int = 0
    bos_id: int | None = 1
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.text_size < 1 or self.codebook_size < 1:
            raise ValueError("text_size and codebook_size must be at least 1")
        if not 0 <= self.pad_id < self.text_size:
            raise ValueError(f"pad_id {self.pad_id} must be a text id, 0..{self.text_size - 1}")

    @property
    def image_start(self) -> int:
        return self.text_size

    @property
    def image_end(self) -> int:
        return self.text_size + 1

    @property
    def code_offset(self) -> int:
        """Visual code k is id `code_offset + k`."""
        return self.text_size + 2

    @property
    def vocab_size(self) -> int:
        return self.code_offset + self.codebook_size

    def image(self, codes: Sequence[int]) -> list[int]:
        """Codes 0..K-1 -> start, ids, end."""
        return [self.image_start, *(self.code_offset + int(code) for code in codes), self.image_end]


@dataclass(frozen=True)
class PromptWording:
    """The prompt's fixed sentences.

    `<img>` is where an image goes, `<emb>` where the reference embedding goes.

    `history_line` may use {title}; `reference` may use {title} and {description} and holds `<emb>` once;
    `response` ends with `<img>`, where the answer starts. Longer titles and descriptions are cut.
    """

    instruction: str
    reference: str
    response: str
    history_line: str = "{title} <img>\n"
    title_chars: int = 100
    description_chars: int = 300
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.history_line.count("<img>") != 1 or "<emb>" in self.history_line:
            raise ValueError("history_line must hold <img> exactly once and no <emb>")
        if self.reference.count("<emb>") != 1 or "<img>" in self.reference:
            raise ValueError("reference must hold <emb> exactly once and no <img>")
        if not self.response.endswith("<img>") or len(_MARKERS.findall(self.response)) != 1:
            raise ValueError("response must end with its only <img>")
        if _MARKERS.search(self.instruction):
            raise ValueError("instruction must hold neither <img> nor <emb>")


def prompt_text_ids(
    wording: PromptWording,
    history_titles: Sequence[str],
    title: str,
    description: str,
    encode: Callable[[str], Sequence[int]],
    ids: TokenIds,
) -> list[int]:
    """One task's text ids, with `image_start` / `image_end` where images / the embedding go.

    encode: plain text -> text ids, without special tokens. A title that happens to hold "<img>" stays text.

    Raises:
        ValueError: the text tokenizer gave an id that is no text id of this vocabulary.
    """
    out = [] if ids.bos_id is None else [ids.bos_id]

    def add(template: str, fields: dict[str, str]) -> None:
        for piece in _MARKERS.split(template):
            if piece == "<img>":
                out.append(ids.image_start)
            elif piece == "<emb>":
                out.append(ids.image_end)
            elif piece:
                out.extend(_text_ids(_FIELDS.sub(lambda match: fields.get(match.group(1), ""), piece), encode, ids))

    add(wording.instruction, {})
    for past in history_titles:
        add(wording.history_line, {"title": past[: wording.title_chars]})
    add(
        wording.reference,
        {"title": title[: wording.title_chars], "description": description[: wording.description_chars]},
    )
    add(wording.response, {})
    return out


def _text_ids(text: str, encode: Callable[[str], Sequence[int]], ids: TokenIds) -> list[int]:
    """Only text ids: a tokenizer that knows the image markers must not let a title place one."""
    encoded = [int(token) for token in encode(text)]
    wrong = [token for token in encoded if not 0 <= token < ids.text_size]
    if wrong:
        raise ValueError(
            f"text tokenizer: id {wrong[0]} is outside this model's {ids.text_size} text ids; "
            "use the tokenizer.json of the same checkpoint"
        )
    return encoded


@dataclass(frozen=True)
class PromptBatch:
    """Left-padded arrays, all (B, T) int64."""

    tokens: IntArray  # ids, MASKED, EMBEDDING
    attention: IntArray  # 1 = real
    labels: IntArray  # IGNORED_LABEL but on the answer
    mask_column: IntArray  # for history codes: their column in the mask generator's row; else -1

    @property
    def embedding_column(self) -> int:
        """Where the embedding goes; everything before it does not depend on the reference's mask.

        Raises:
            ValueError: the rows differ in it (answers of different lengths behind it).
        """
        columns = np.argmax(self.tokens == EMBEDDING, axis=1)
        if (columns != columns[0]).any():
            raise ValueError("rows of this batch have their <emb> in different columns; assemble it without answers")
        return int(columns[0])


def assemble(
    text_ids: Sequence[Sequence[int]],
    images: Sequence[Sequence[Sequence[int]]],
    ids: TokenIds,
    *,
    answers: Sequence[Sequence[int]] | None = None,
    max_tokens: int | None = None,
) -> PromptBatch:
    """Puts images into texts and pads on the left.

    text_ids: per row the ids of `prompt_text_ids`, whose last `image_start` begins the answer.
    images: per row the history's images in order, each `image_start, ids or MASKED, image_end`.
    answers: per row the target image in the same form (training), or none (inference: the prompt ends with `image_start`).

    Raises:
        ValueError: the number of images is not the number of their places, or a row is longer than max_tokens.
    """
    rows = np.arange(len(text_ids))
    text, row = _flat(text_ids), np.repeat(rows, [len(part) for part in text_ids])
    image_place = text == ids.image_start
    places = np.bincount(row[image_place], minlength=len(rows))
    for number in np.flatnonzero(places != [len(row_images) + 1 for row_images in images])[:1]:
        raise ValueError(
            f"prompt row {number}: text has {places[number] - 1} image places before the answer's, but "
            f"{len(images[number])} images were given"
        )
    ends = np.cumsum(np.bincount(row, minlength=len(rows))) - 1
    for number in np.flatnonzero(~image_place[ends])[:1]:
        raise ValueError(f"prompt row {number}: text must end with the answer's image start")

    # All texts end to end; each token takes one place, an image as many as it has tokens.
    endings = [[ids.image_start]] * len(rows) if answers is None else answers
    inserted = [image for part, ending in zip(images, endings, strict=True) for image in (*part, ending)]
    size = np.ones(len(text), dtype=np.int64)
    size[image_place] = [len(image) for image in inserted]
    first = np.cumsum(size) - size
    tokens = np.repeat(np.where(text == ids.image_end, EMBEDDING, text), size)
    in_image = np.repeat(image_place, size)
    tokens[in_image] = _flat(inserted)
    in_answer = np.zeros(len(text), dtype=bool)
    in_answer[ends] = True
    in_answer = np.repeat(in_answer, size)
    in_history = in_image & ~in_answer
    in_history[first[image_place]] = in_history[(first + size - 1)[image_place]] = False  # the markers
    row = np.repeat(row, size)
    label = in_answer.copy()
    label[first[ends]] = False

    lengths = np.bincount(row, minlength=len(rows))
    for number in np.flatnonzero(lengths > (lengths.max() if max_tokens is None else max_tokens))[:1]:
        raise ValueError(
            f"prompt row {number}: {lengths[number]} tokens, the model takes {max_tokens}; shorten its texts"
        )
    begin = np.cumsum(lengths) - lengths
    column = lengths.max() - lengths[row] + np.arange(len(tokens)) - begin[row]
    seen: IntArray = np.cumsum(in_history) - in_history

    def padded(values: IntArray, padding: int) -> IntArray:
        out = np.full((len(rows), lengths.max()), padding, dtype=np.int64)
        out[row, column] = values
        return out

    return PromptBatch(
        tokens=padded(tokens, ids.pad_id),
        attention=padded(np.ones_like(tokens), 0),
        labels=padded(np.where(label & (answers is not None), tokens, IGNORED_LABEL), IGNORED_LABEL),
        mask_column=padded(np.where(in_history, seen - seen[begin][row], -1), -1),
    )


def _flat(rows: Iterable[Sequence[int]]) -> IntArray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64)


def masked(batch: PromptBatch, keep: NDArray[Any]) -> PromptBatch:
    """Mask a batch of whole images by the mask generator's keep rows (B, N); dropped codes are MASKED."""
    kept = np.take_along_axis(keep, np.maximum(batch.mask_column, 0), axis=1) > 0.5
    return replace(batch, tokens=np.where((batch.mask_column >= 0) & ~kept, MASKED, batch.tokens))


@dataclass(frozen=True)
class MaskInputs:
    """The mask generator's rows, right-padded, all (B, N) int64.

    History codes come first, then the reference with its markers.
    """

    tokens: IntArray
    positions: IntArray  # 1.. within each image, 0 for padding
    types: IntArray  # 1 history, 2 reference, 0 padding


def mask_inputs(
    history: Sequence[Sequence[Sequence[int]]], references: Sequence[Sequence[int]], ids: TokenIds
) -> MaskInputs:
    """history: per row, per image the codes 0..K-1; references: per row the codes."""
    images = [codes for past, reference in zip(history, references, strict=True) for codes in (*past, reference)]
    per_row = np.array([len(past) + 1 for past in history])
    row = np.repeat(np.arange(len(per_row)), per_row)
    is_reference = np.zeros(len(images), dtype=bool)
    is_reference[np.cumsum(per_row) - 1] = True
    size = np.array([len(codes) for codes in images]) + 2 * is_reference
    first = np.cumsum(size) - size
    tokens = np.zeros(size.sum(), dtype=np.int64)
    marker = np.zeros(len(tokens), dtype=bool)
    for place, token in ((first, ids.image_start), (first + size - 1, ids.image_end)):
        tokens[place[is_reference]] = token
        marker[place[is_reference]] = True
    tokens[~marker] = ids.code_offset + _flat(images)
    lengths = np.bincount(row, weights=size, minlength=len(per_row)).astype(np.int64)
    row = np.repeat(row, size)
    column = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[row]
    out = np.zeros((3, len(per_row), lengths.max()), dtype=np.int64)
    out[0] = ids.pad_id
    out[0, row, column] = tokens
    out[1, row, column] = np.arange(len(tokens)) - np.repeat(first, size) + 1
    out[2, row, column] = np.repeat(np.where(is_reference, REFERENCE, HISTORY), size)
    return MaskInputs(out[0], out[1], out[2])


def mask_history(
    history: Sequence[Sequence[int]], keep: Sequence[float] | NDArray[Any], ids: TokenIds
) -> list[list[int]]:
    """One row's history codes and keep row (N,) -> images for `assemble`, dropped codes MASKED."""
    images = []
    column = 0
    for codes in history:
        image = ids.image(codes)
        for place in range(len(codes)):
            if keep[column + place] < 0.5:
                image[place + 1] = MASKED
        column += len(codes)
        images.append(image)
    return images


def kept_reference(
    reference: Sequence[int], history: Sequence[Sequence[int]], keep: Sequence[float] | NDArray[Any]
) -> list[int]:
    """One row's reference codes that its keep row (N,) keeps; the markers' own decisions do not matter."""
    first = sum(len(codes) for codes in history) + 1
    return [int(code) for place, code in enumerate(reference) if keep[first + place] > 0.5]
