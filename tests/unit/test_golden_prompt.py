"""Prompt assembly against the published implementation's two samples, and its properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.pigeon.prompt import (
    EMBEDDING,
    IGNORED_LABEL,
    MASKED,
    PromptWording,
    TokenIds,
    assemble,
    kept_reference,
    mask_history,
    mask_inputs,
    masked,
    prompt_text_ids,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "prompt_assembly.json").read_text())
LLAMA = TokenIds(text_size=32000, codebook_size=16384, pad_id=2)
SMALL = TokenIds(text_size=20, codebook_size=10)
WORDING = PromptWording(instruction="A", reference="{title}: {description} <emb>", response="R <img>")


@pytest.mark.parametrize("part", ["train", "inference"])
def test_golden_samples(part: str) -> None:
    images = [row[:2] for row in GOLDEN["image_tokens"]]
    answers = [row[2] for row in GOLDEN["image_tokens"]] if part == "train" else None
    batch = assemble(GOLDEN["text_ids"], images, LLAMA, answers=answers)
    assert batch.tokens.tolist() == GOLDEN[part]["tokens"]
    assert batch.attention.tolist() == GOLDEN[part]["attention"]
    if part == "train":
        assert batch.labels.tolist() == GOLDEN[part]["labels"]
    else:
        assert (batch.labels == IGNORED_LABEL).all()
        assert (batch.tokens[:, batch.embedding_column] == EMBEDDING).all()


codes = st.lists(st.integers(0, 9), max_size=6)
task = st.tuples(
    st.lists(codes, min_size=1, max_size=4), codes, codes, st.lists(st.integers(0, 19), min_size=1, max_size=5)
)


def text_for(history: list[list[int]], words: list[int]) -> list[int]:
    line = [*words, SMALL.image_start]
    return [1, *(line * len(history)), *words, SMALL.image_end, 5, SMALL.image_start]


@given(tasks=st.lists(task, min_size=1, max_size=4), data=st.data())
def test_every_token_lands_once_and_padding_is_left(tasks: list[tuple], data: st.DataObject) -> None:
    inputs = mask_inputs([t[0] for t in tasks], [t[1] for t in tasks], SMALL)
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=inputs.types.size, max_size=inputs.types.size)))
    keep = keep.reshape(inputs.types.shape)
    images = [mask_history(t[0], row, SMALL) for t, row in zip(tasks, keep, strict=True)]
    answers = [SMALL.image(t[2]) for t in tasks]
    batch = assemble([text_for(t[0], t[3]) for t in tasks], images, SMALL, answers=answers)
    for row, (history, reference, answer, _) in enumerate(tasks):
        real = batch.attention[row] == 1
        assert (np.diff(batch.attention[row]) >= 0).all()
        assert (batch.tokens[row][~real] == SMALL.pad_id).all()
        assert (batch.tokens[row] == EMBEDDING).sum() == 1
        flat = [SMALL.code_offset + code for codes_ in history for code in codes_]
        at = batch.mask_column[row] >= 0
        assert batch.mask_column[row][at].tolist() == list(range(len(flat)))
        expected = [token if kept else MASKED for token, kept in zip(flat, keep[row], strict=False)]
        assert batch.tokens[row][at].tolist() == expected
        labels = batch.labels[row]
        assert labels[labels != IGNORED_LABEL].tolist() == SMALL.image(answer)[1:]
        assert len(kept_reference(reference, history, keep[row])) == sum(
            keep[row][len(flat) + 1 : len(flat) + 1 + len(reference)]
        )


@given(tasks=st.lists(task, min_size=2, max_size=4))
def test_a_row_of_a_batch_is_the_row_alone(tasks: list[tuple]) -> None:
    texts = [text_for(t[0], t[3]) for t in tasks]
    images = [[SMALL.image(c) for c in t[0]] for t in tasks]
    batch = assemble(texts, images, SMALL)
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        alone = assemble([text], [own], SMALL)
        assert batch.tokens[row][batch.attention[row] == 1].tolist() == alone.tokens[0].tolist()


@given(tasks=st.lists(task, min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_masking_a_batch_is_assembling_masked_images(tasks: list[tuple], seed: int) -> None:
    texts = [text_for(t[0], t[3]) for t in tasks]
    inputs = mask_inputs([t[0] for t in tasks], [t[1] for t in tasks], SMALL)
    keep = np.random.default_rng(seed).integers(0, 2, inputs.types.shape).astype(np.float32)
    whole = assemble(texts, [[SMALL.image(c) for c in t[0]] for t in tasks], SMALL)
    one_by_one = [mask_history(t[0], row, SMALL) for t, row in zip(tasks, keep, strict=True)]
    assert (masked(whole, keep).tokens == assemble(texts, one_by_one, SMALL).tokens).all()


@given(tasks=st.lists(task, min_size=1, max_size=4))
def test_mask_rows_are_history_codes_then_the_wrapped_reference(tasks: list[tuple]) -> None:
    inputs = mask_inputs([t[0] for t in tasks], [t[1] for t in tasks], SMALL)
    for row, (history, reference, _, _) in enumerate(tasks):
        images = [*([SMALL.code_offset + code for code in codes] for codes in history), SMALL.image(reference)]
        count = sum(map(len, images))
        padding = inputs.types.shape[1] - count
        assert inputs.tokens[row].tolist() == [t for image in images for t in image] + [SMALL.pad_id] * padding
        assert inputs.positions[row].tolist() == [n + 1 for i in images for n in range(len(i))] + [0] * padding
        assert inputs.types[row].tolist() == [1] * (count - len(images[-1])) + [2] * len(images[-1]) + [0] * padding


def encode(text: str) -> list[int]:
    return [ord(c) % 20 for c in text]


def test_markers_in_a_title_stay_text() -> None:
    plain = prompt_text_ids(WORDING, ["x", "y"], "t", "d", encode, SMALL)
    tricky = prompt_text_ids(WORDING, ["<img>", "<emb>"], "{description}", "{title}<emb>", encode, SMALL)
    for ids in (plain, tricky):
        assert ids[0] == SMALL.bos_id
        assert ids.count(SMALL.image_start) == 3
        assert ids.count(SMALL.image_end) == 1
        assert ids[-1] == SMALL.image_start


def test_long_texts_are_cut() -> None:
    long = prompt_text_ids(WORDING, ["x" * 9999], "t" * 9999, "d" * 9999, encode, SMALL)
    assert len(long) < 2 * WORDING.title_chars + WORDING.description_chars + 30


def test_errors_name_the_row_and_the_numbers() -> None:
    with pytest.raises(ValueError, match="row 0: text has 1 image places before the answer's, but 2 images"):
        assemble([text_for([[1]], [3])], [[SMALL.image([1]), SMALL.image([2])]], SMALL)
    with pytest.raises(ValueError, match="row 0: 8 tokens, the model takes 5"):
        assemble([text_for([[1]], [3])], [[SMALL.image([])]], SMALL, max_tokens=5)
    for token in (500, SMALL.image_start, -1):
        with pytest.raises(ValueError, match=f"id {token} is outside this model's 20 text ids"):
            prompt_text_ids(WORDING, [], "t", "d", lambda _, token=token: [token], SMALL)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("response", "no image", "response must end with its only <img>"),
        ("reference", "{title}", "reference must hold <emb> exactly once"),
        ("history_line", "{title}", "history_line must hold <img> exactly once"),
    ],
)
def test_wording_without_its_markers_is_refused(field: str, value: str, message: str) -> None:
    fields = {"instruction": "A", "reference": "<emb>", "response": "<img>"} | {field: value}
    with pytest.raises(ValueError, match=message):
        PromptWording(**fields)
