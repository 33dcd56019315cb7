"""Prompt assembly: text, images and masks -> token arrays. Only the standard library and numpy, no project import:
serving copies this file as it is.

In the arrays -1 stands for a masked token (a zero vector) and -2 for the place of the reference embedding; every other
number is a token id of `TokenIds`. In text ids, `image_start` marks the place of an image and `image_end` that of the embedding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """The language model's vocabulary: `text_size` text ids, image start, image end, then the visual codes."""

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
    """The prompt's fixed sentences. `<img>` is where an image goes, `<emb>` where the reference embedding goes.

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
    rows: list[list[int]] = []
    columns: list[list[int]] = []
    starts: list[int] = []
    for number, (text, row_images) in enumerate(zip(text_ids, images, strict=True)):
        places = sum(token == ids.image_start for token in text)
        if places != len(row_images) + 1:
            raise ValueError(
                f"prompt row {number}: text has {places - 1} image places before the answer's, but "
                f"{len(row_images)} images were given"
            )
        if text[-1] != ids.image_start:
            raise ValueError(f"prompt row {number}: text must end with the answer's image start")
        row: list[int] = []
        column: list[int] = []
        pending = iter(row_images)
        seen = 0
        for token in text[:-1]:
            if token == ids.image_start:
                image = next(pending)
                inner = len(image) - 2
                row.extend(image)
                column.extend([-1, *range(seen, seen + inner), -1])
                seen += inner
            else:
                row.append(EMBEDDING if token == ids.image_end else token)
                column.append(-1)
        starts.append(len(row) + 1)
        answer = [ids.image_start] if answers is None else list(answers[number])
        row.extend(answer)
        column.extend([-1] * len(answer))
        if max_tokens is not None and len(row) > max_tokens:
            raise ValueError(f"prompt row {number}: {len(row)} tokens, the model takes {max_tokens}; shorten its texts")
        rows.append(row)
        columns.append(column)

    length = max(len(row) for row in rows)
    tokens = np.full((len(rows), length), ids.pad_id, dtype=np.int64)
    attention = np.zeros((len(rows), length), dtype=np.int64)
    labels = np.full((len(rows), length), IGNORED_LABEL, dtype=np.int64)
    mask_column = np.full((len(rows), length), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        offset = length - len(row)
        tokens[number, offset:] = row
        attention[number, offset:] = 1
        mask_column[number, offset:] = columns[number]
        if answers is not None:
            begin = starts[number]
            labels[number, offset + begin :] = row[begin:]
    return PromptBatch(tokens, attention, labels, mask_column)


@dataclass(frozen=True)
class MaskInputs:
    """The mask generator's rows, right-padded, all (B, N) int64: history codes first, then the reference with markers."""

    tokens: IntArray
    positions: IntArray  # 1.. within each image, 0 for padding
    types: IntArray  # 1 history, 2 reference, 0 padding


def mask_inputs(
    history: Sequence[Sequence[Sequence[int]]], references: Sequence[Sequence[int]], ids: TokenIds
) -> MaskInputs:
    """history: per row, per image the codes 0..K-1; references: per row the codes."""
    rows: list[tuple[list[int], list[int], list[int]]] = []
    for past, reference in zip(history, references, strict=True):
        images = [ids.image(codes)[1:-1] for codes in past]
        wrapped = ids.image(reference)
        tokens = [token for image in images for token in image] + wrapped
        positions = [place + 1 for image in [*images, wrapped] for place in range(len(image))]
        types = [HISTORY] * (len(tokens) - len(wrapped)) + [REFERENCE] * len(wrapped)
        rows.append((tokens, positions, types))
    width = max(len(row[0]) for row in rows)
    out = np.zeros((3, len(rows), width), dtype=np.int64)
    out[0] = ids.pad_id
    for number, row in enumerate(rows):
        out[:, number, : len(row[0])] = row
    return MaskInputs(out[0], out[1], out[2])


def mask_history(
    history: Sequence[Sequence[int]], keep: Sequence[float] | NDArray[Any], ids: TokenIds
) -> list[list[int]]:
    """One row's history codes and its mask generator's keep row (N,) -> images for `assemble`, dropped codes MASKED."""
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
