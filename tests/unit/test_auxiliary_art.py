"""The two icon sets that are no style: which of their icons shows which thing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from generator.datasets.errors import DatasetError
from generator.datasets.fetch import AUXILIARY_PACKAGES
from generator.datasets.icons import Concept
from generator.training.nano.imputation import auxiliary_art
from generator.training.nano.imputation.auxiliary_art import FXEMOJI_NAMES, load_auxiliary, match_names


def concept(slug: str, label: str, emoji: str, *icons: str) -> Concept:
    return Concept(slug, label, (), "", "", emoji, icons)


def test_a_thing_is_found_by_any_of_its_names() -> None:
    concepts = [
        concept("monkey", "monkey", "🐒", "monkey"),
        concept("high-voltage", "high voltage", "⚡", "high-voltage"),
        concept("horse-racing", "horse racing", "🏇", "horse-racing"),
        concept("camping", "camping", "🏕️", "tent-in-woods"),
        concept("hourglass-not-done", "hourglass not done", "⏳", "hourglass-not-done"),
        concept("gear", "gear", "⚙️", "gear"),
    ]
    names = ["Monkey", "high-voltage-sign", "horseracing", "tentinwoods", "hourglassflowingsand", "geared"]
    assert match_names(names, concepts) == {
        "monkey": "Monkey",
        "high-voltage": "high-voltage-sign",  # Unicode's name
        "horse-racing": "horseracing",
        "camping": "tentinwoods",  # as another set calls it
        "hourglass-not-done": "hourglassflowingsand",  # named in the table
    }
    assert FXEMOJI_NAMES["hourglass-not-done"] == "hourglassflowingsand"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sets as if npm had brought them: a square each, one of them under an alias.

    -> how often they were asked for.
    """
    asked = [0]

    def fetch(cache_dir: Path, progress: object) -> Path:
        asked[0] += 1
        for number, name in enumerate(AUXILIARY_PACKAGES):
            body = f'<rect width="16" height="8" fill="#{number}0ff00"/>'
            icons: dict[str, object] = {"icons": {"square": {"body": body}}}
            if number:
                icons["aliases"] = {"box": {"parent": "square"}}
            (tmp_path / "sets" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "sets" / name / "icons.json").write_text(json.dumps(icons))
        return tmp_path / "sets"

    monkeypatch.setattr(auxiliary_art, "fetch_auxiliary", fetch)
    return asked


def test_the_sets_are_drawn_once_and_what_one_lacks_is_empty(packages: list[int], tmp_path: Path) -> None:
    concepts = [concept("square", "square", "▪", "square"), concept("box", "box", "📦", "box"), concept("x", "x", "x")]
    pixels = load_auxiliary(tmp_path, concepts)
    assert pixels.shape == (3, 2, 64, 64, 4)
    assert pixels[..., 3].any(axis=(2, 3)).tolist() == [[True, True], [False, True], [False, False]]
    assert pixels[0, 1, 5, 5].tolist() == [16, 255, 0, 255]
    np.testing.assert_array_equal(pixels[0, 1], pixels[1, 1])
    np.testing.assert_array_equal(load_auxiliary(tmp_path, concepts), pixels)
    assert packages == [1]
    with pytest.raises(DatasetError, match=r"auxiliary-.*has 3 things, expected 2; delete it"):
        load_auxiliary(tmp_path, concepts[:2])
