"""Frozen prompts and their fingerprints as texts, put together from texts that are made once per item.

The same bytes as by way of `FrozenPrompt`, at a small part of the time: a night has millions of prompts of thousands of items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from generator.nightly.frozen_prompt import ANSWERING, FrozenImage, hash_parts


@dataclass(frozen=True, slots=True)
class ItemTexts:
    """What an item contributes to prompts, each as JSON."""

    image: str
    """As a prompt stores it."""
    content: str
    """The same without its address: of images the bytes count."""
    description: str
    year: str
    synthetic: str

    @classmethod
    def of(cls, image: FrozenImage, description: str, year: str | None, *, synthetic: bool) -> ItemTexts:
        """The texts of an item with its image."""
        content = {"item_id": image.item_id, "sha256": image.sha256, "title": image.title}
        drawn = {"picture_key": image.picture_key} if image.picture_key else {}
        return cls(
            json.dumps({**content, "uri": image.uri, **drawn}),
            json.dumps(content),
            json.dumps(description),
            json.dumps(year),
            json.dumps(synthetic),
        )


@dataclass(frozen=True, slots=True)
class HistoryTexts:
    """A user's history, oldest first, as JSON arrays."""

    images: str
    contents: str

    @classmethod
    def of(cls, items: Sequence[ItemTexts]) -> HistoryTexts:
        """The texts of a history's items, oldest first."""
        return cls(f"[{', '.join([item.image for item in items])}]", f"[{', '.join([item.content for item in items])}]")


@dataclass(frozen=True, slots=True)
class TaskTexts:
    """A task's prompt, and what its posters and its answers depend on."""

    prompt: str
    """A `FrozenPrompt` as JSON."""
    input_fingerprint: str
    """Hash of all that the task's posters depend on but the model's weights."""
    answers_fingerprint: str
    """Hash of all that the task's answers depend on but the model; equal ones share their stored answers."""


class PromptTexts:
    """Makes the texts of one plan's tasks.

    `drawing`: as `drawing_settings` returns them.
    """

    def __init__(self, drawing: dict[str, Any], tokenizer_version: str) -> None:
        version = json.dumps(tokenizer_version)
        self._version = version
        # Keys in the alphabet's order, as a fingerprint is defined.
        self._input_end = f"}}, {json.dumps(drawing, sort_keys=True)}]"
        answering = {name: drawing[name] for name in ANSWERING}
        self._answers_end = f', "tokenizer_version": {version}}}, {json.dumps(answering, sort_keys=True)}]'

    def task(self, history: HistoryTexts, item: ItemTexts) -> TaskTexts:
        """The texts of the task to draw `item` for a user with that history."""
        shared = f'[{{"description": {item.description}, "history": {history.contents}, "reference": {item.content}'
        own = f', "synthetic": {item.synthetic}, "tokenizer_version": {self._version}, "year": {item.year}'
        prompt = (
            f'{{"history": {history.images}, "reference": {item.image}, "description": {item.description}, '
            f'"year": {item.year}, "synthetic": {item.synthetic}, "tokenizer_version": {self._version}, "snapshot": null}}'
        )
        return TaskTexts(
            prompt,
            hash_parts("input", shared + own + self._input_end)[:32],
            hash_parts("answers", shared + self._answers_end)[:32],
        )


def plan_fingerprint(*parts: Any) -> str:
    """Hash of values that a plan depends on, as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
