"""Posters: size, determinism, titles that fit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generator.nightly.compose import NotComposable, compose, enlarge, layout
from generator.nightly.typography import font, words_of, wrap
from schemas.errors import InputError
from schemas.typefaces import Typefaces

ART = np.asarray(Image.radial_gradient("L").resize((64, 64)).convert("RGB"))


FACES = Typefaces()


def poster(title: str, size: tuple[int, int] = (400, 600)) -> Image.Image:
    data = compose(ART, title, year=None, size=size, quality=88, faces=FACES)
    assert data == compose(ART, title, year=None, size=size, quality=88, faces=FACES)
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(400, 600), (64, 64), (640, 360), (300, 1200), (1000, 1000)])
@pytest.mark.parametrize("title", ["Heat", "A" * 300, "word " * 200, "Amélie — Straße (2001)", "Матрица"])
def test_any_title_on_any_size(title: str, size: tuple[int, int]) -> None:
    image = poster(title, size)
    assert (image.size, image.format) == (size, "WEBP")


def test_the_title_is_there_and_inside_its_box() -> None:
    with_title, without = (np.asarray(poster(t).convert("L"), int) for t in ("Some Title", "."))
    changed = np.abs(with_title - without) > 40
    left, top, right, bottom = layout(400, 600).text
    assert changed[top:bottom, left:right].sum() > 500
    changed[top:bottom, left:right] = False
    assert changed.sum() == 0


def lines_of(title: str, points: int, width: int, *, break_words: bool) -> list[str]:
    words = words_of(title, FACES.faces(title))
    return [line.text for line in wrap(words, points, width, break_words=break_words)]


def test_lines_are_no_wider_than_asked_and_lose_no_word() -> None:
    title = "The Assassination of Jesse James by the Coward Robert Ford"
    lines = lines_of(title, 30, 300, break_words=False)
    assert " ".join(lines) == title
    assert all(font(FACES.files[0], 30).getlength(line) <= 300 for line in lines)
    assert lines_of("Incomprehensibilities", 30, 60, break_words=False) == []
    assert "".join(lines_of("Incomprehensibilities", 30, 60, break_words=True)) == "Incomprehensibilities"


@pytest.mark.parametrize("title", ["", "\u200b", "日本"])
def test_a_title_that_cannot_be_written_makes_no_poster(title: str) -> None:
    with pytest.raises(NotComposable, match="title_not_drawable"):
        poster(title)


def test_art_of_any_shape_becomes_a_square_of_the_side() -> None:
    for shape in ((64, 64, 3), (48, 64, 3), (512, 300, 3)):
        assert enlarge(np.zeros(shape, np.uint8), 400).size == (400, 400)


def test_a_missing_font_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"setting night\.font: cannot read .*none\.ttf"):
        Typefaces(tmp_path / "none.ttf")
