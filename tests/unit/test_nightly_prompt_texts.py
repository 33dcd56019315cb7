"""Texts of prompts and their fingerprints are those of `FrozenPrompt`, restated by their definition."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.nightly.frozen_prompt import ANSWERING, FrozenImage, FrozenPrompt, drawing_settings
from generator.nightly.prompt_texts import HistoryTexts, ItemTexts, PromptTexts, TaskTexts
from schemas.settings import NightSettings

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
images = st.builds(FrozenImage, item_id=words, title=words, uri=words, sha256=words)


def texts(prompt: FrozenPrompt, drawing: dict[str, Any]) -> TaskTexts:
    """By the product's way."""

    def item(image: FrozenImage) -> ItemTexts:
        return ItemTexts.of(image, prompt.description, prompt.year, synthetic=prompt.synthetic)

    history = HistoryTexts.of([item(image) for image in prompt.history])
    return PromptTexts(drawing, prompt.tokenizer_version).task(history, item(prompt.reference))


def restated(kind: str, content: Any, settings: dict[str, Any]) -> str:
    data = json.dumps([content, settings], sort_keys=True).encode()
    parts = [kind.encode(), data]
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()[:32]


@given(st.lists(images, max_size=3), images, words, st.none() | words, st.booleans(), words)
def test_prompts_and_fingerprints_are_the_same_bytes_as_by_their_definition(
    history: list[FrozenImage],
    reference: FrozenImage,
    description: str,
    year: str | None,
    synthetic: bool,
    version: str,
) -> None:
    prompt = FrozenPrompt(
        history=tuple(history),
        reference=reference,
        description=description,
        year=year,
        synthetic=synthetic,
        tokenizer_version=version,
    )
    drawing = drawing_settings(NightSettings(), "d1")
    made = texts(prompt, drawing)
    assert FrozenPrompt.model_validate_json(made.prompt) == prompt
    content = prompt.model_dump(
        mode="json", exclude={"snapshot": True, "reference": {"uri"}, "history": {"__all__": {"uri"}}}
    )
    assert made.input_fingerprint == restated("input", content, drawing)
    del content["year"], content["synthetic"]
    assert made.answers_fingerprint == restated("answers", content, {name: drawing[name] for name in ANSWERING})


def prompt(**changes: Any) -> FrozenPrompt:
    image = FrozenImage(item_id="i", title="T", uri="file:///a", sha256="a" * 64)
    return FrozenPrompt(
        **{"history": (image,), "reference": image, "description": "d", "tokenizer_version": "1", **changes}
    )


def rules(drawing_version: str = "d1", **changes: Any) -> dict[str, Any]:
    return drawing_settings(NightSettings(**changes), drawing_version)


def test_bytes_count_for_the_fingerprint_and_addresses_do_not() -> None:
    moved = FrozenImage(item_id="i", title="T", uri="s3://elsewhere/b", sha256="a" * 64)
    redrawn = moved.model_copy(update={"sha256": "b" * 64})
    base = texts(prompt(), rules()).input_fingerprint
    assert texts(prompt(history=(moved,), reference=moved), rules()).input_fingerprint == base
    others = [
        (prompt(reference=redrawn), rules()),
        (prompt(history=(redrawn,)), rules()),
        (prompt(description="e"), rules()),
        (prompt(tokenizer_version="2"), rules()),
        (prompt(year="1994"), rules()),
        (prompt(), rules(alphas=(0.1,))),
        (prompt(), rules(policy="paper")),
        (prompt(), rules("another decoder")),
    ]
    assert len({base, *(texts(*other).input_fingerprint for other in others)}) == 9


@pytest.mark.parametrize(
    ("same", "changed", "settings"),
    [
        (True, {"year": "1994", "synthetic": True}, {}),
        (True, {}, {"policy": "paper", "variants": 3, "sizes": ("64x64",), "blank_stddev": 1.0}),
        (False, {"description": "e"}, {}),
        (False, {"tokenizer_version": "2"}, {}),
        (False, {}, {"alphas": (0.1,)}),
        (False, {}, {"answers": 3}),
        (False, {}, {"temperatures": (1.0,)}),
    ],
)
def test_answers_outlive_a_change_of_what_is_made_of_them(
    same: bool, changed: dict[str, Any], settings: dict[str, Any]
) -> None:
    base = texts(prompt(), rules()).answers_fingerprint
    assert (texts(prompt(**changed), rules(**settings)).answers_fingerprint == base) is same
    assert texts(prompt(), rules("another decoder")).answers_fingerprint == base
