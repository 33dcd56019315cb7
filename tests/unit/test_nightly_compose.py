"""Posters: size, determinism, titles that fit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generator.nightly.compose import _font, _font_path, _wrap, compose, enlarge, layout
from schemas.errors import InputError

ART = np.asarray(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))


def poster(title: str, size: tuple[int, int] = (400, 600)) -> Image.Image:
    data = compose(ART, title, year=None, size=size, quality=88, font=None)
    assert data == compose(ART, title, year=None, size=size, quality=88, font=None)
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(400, 600), (64, 64), (640, 360), (300, 1200), (1000, 1000)])
@pytest.mark.parametrize("title", ["Heat", "", "A" * 300, "word " * 200, "Amélie — Straße (2001)", "\u200b", "日本"])
def test_any_title_on_any_size(title: str, size: tuple[int, int]) -> None:
    image = poster(title, size)
    assert (image.size, image.format) == (size, "WEBP")


def test_the_title_is_there_and_inside_its_box() -> None:
    with_title, without = (np.asarray(poster(t).convert("L"), int) for t in ("Some Title", "\u200b"))
    changed = np.abs(with_title - without) > 40
    left, top, right, bottom = layout(400, 600).text
    assert changed[top:bottom, left:right].sum() > 500
    changed[top:bottom, left:right] = False
    assert changed.sum() == 0


def test_lines_are_no_wider_than_asked_and_lose_no_word() -> None:
    font = _font(_font_path(None), 30)
    title = "The Assassination of Jesse James by the Coward Robert Ford"
    lines = _wrap(title, font, 300, break_words=False)
    assert " ".join(lines) == title
    assert all(font.getlength(line) <= 300 for line in lines)
    assert _wrap("Incomprehensibilities", font, 60, break_words=False) == []
    assert "".join(_wrap("Incomprehensibilities", font, 60, break_words=True)) == "Incomprehensibilities"


def test_art_of_any_shape_becomes_a_square_of_the_side() -> None:
    for shape in ((64, 64, 3), (48, 64, 3), (512, 300, 3)):
        assert enlarge(np.zeros(shape, np.uint8), 400).size == (400, 400)


def test_a_missing_font_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"setting night\.font: cannot read .*none\.ttf"):
        compose(ART, "x", year=None, size=(400, 600), quality=88, font=tmp_path / "none.ttf")
