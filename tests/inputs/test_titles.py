"""INPUTS 18 and 19: titles in every script, written as people read them, or withheld with the reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consumers.files import imports
from generator.datasets.fetch import FONT_PACKAGES, fetch_fonts
from generator.nightly.compose import NotComposable, compose, version_of
from generator.nightly.typography import font, words_of
from schemas import typefaces
from schemas.errors import InputError
from schemas.events import CATALOG
from schemas.settings import Settings
from schemas.titles import clean_title
from schemas.typefaces import Typefaces, problem

ART = np.full((64, 64, 3), 200, np.uint8)
SMALL = ("arabic", "hebrew", "thai", "devanagari")


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Typefaces:
    """Noto fonts of four scripts, from their packages."""
    return Typefaces(None, fetch_fonts(tmp_path_factory.mktemp("fonts"), SMALL))


def box(title: str, faces: Typefaces) -> np.ndarray:
    """The title's part of a poster as ink, (180, 400)."""
    data = compose(ART, title, year=None, size=(400, 600), quality=100, faces=faces)
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))[420:] < 90


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("Rock &amp; Roll &#39;n&#39;", "Rock & Roll 'n'"),
        ("&amp;amp;", "&amp;"),
        ("American President, The (1995)", "The American President (1995)"),
        ("Promesse, La", "La Promesse"),
        ("Avventura, L'", "L'Avventura"),
        ("Good, The Bad and The Ugly, The", "The Good, The Bad and The Ugly"),
        ("Me, Myself and I", "Me, Myself and I"),
        ("\u00adHid\u00adden\tand\nbroken \x07", "Hidden and broken"),
        ("Cafe\u0301", "Café"),
        ("\u200b\u200e ", ""),
        ("\u200d", ""),
        ("گربه\u200cها", "گربه\u200cها"),
    ],
)
def test_a_title_is_written_as_people_read_it(raw: str, written: str) -> None:
    """INPUTS 19."""
    assert clean_title(raw) == written


@pytest.mark.parametrize("title", ["العراب", "ואלס עם באשיר", "दिलवाले दुल्हनिया", "ต้มยำกุ้ง", "الفيلم Star Wars"])
def test_every_script_is_set_by_a_font_that_has_it(title: str, faces: Typefaces) -> None:
    """INPUTS 18."""
    assert typefaces.can_shape(), "install libfribidi0"
    assert problem(title, faces) is None
    assert box(title, faces).sum() > 300
    assert version_of(title, faces).startswith("shaped ")


def test_arabic_letters_join_and_run_from_the_right(faces: Typefaces) -> None:
    """INPUTS 18."""
    (file,) = set(faces.faces("بب").values())
    one, two = (font(file, 40, text).getlength(text) for text in ("ب", "بب"))
    assert two < 1.95 * one, "joined forms are narrower than two letters that stand alone"
    text = "ضضض ا"
    drawn = font(file, 40, text).getmask(text)
    ink = np.asarray(drawn, int).reshape(drawn.size[1], drawn.size[0]).sum(axis=0)
    assert ink.argmax() < len(ink) / 4, "the upright last letter stands at the left"


def test_chinese_and_japanese_break_between_characters_but_for_foreign_words_and_marks() -> None:
    words = [
        word.text
        for word in words_of(
            "風の谷「ナウシカ」、star wars", dict.fromkeys(["風の谷「ナウシカ」、star", "wars"], Path())
        )
    ]
    assert words == ["風", "の", "谷", "「ナウシカ」、", "star", "wars"]


def test_a_title_that_no_font_has_is_withheld_with_what_is_missing(faces: Typefaces) -> None:
    """INPUTS 18."""
    with pytest.raises(NotComposable, match="title_not_drawable"):
        compose(ART, "千と千尋", year=None, size=(400, 600), quality=88, faces=faces)
    assert (
        problem("千と千尋", faces)
        == "no font has と (U+3068), 千 (U+5343), 尋 (U+5C0B); night.fonts takes further ones"
    )
    assert problem("\u200b", faces) == "nothing of it can be seen"


def test_a_script_that_cannot_be_shaped_here_is_withheld(faces: Typefaces, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typefaces, "can_shape", lambda: False)
    assert problem("Heat", faces) is None
    reason = problem("العراب", faces)
    assert reason
    assert "libfribidi0" in reason


def test_the_catalogue_is_told_beforehand(tmp_path: Path) -> None:
    """INPUTS 18: `pigeon catalog check`."""
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    path = tmp_path / "items.csv"
    path.write_text("item_id,title,image_uri\ni1,Heat,a.png\ni2,千と千尋,a.png\n", encoding="utf-8")
    report = imports.run(Settings(), CATALOG, imports.look(CATALOG, path), dry_run=True)
    assert report.sent == 2
    assert [line for line, oddity in report.warnings if oddity.startswith("title ")] == [3]
    assert report.warned["title not drawable"] == 1


def test_what_was_composed_before_keeps_its_key_and_new_fonts_make_a_new_one(faces: Typefaces) -> None:
    assert version_of("Heat (1995)", faces) == ""
    assert version_of("American President, The", faces) == " as The American President"
    assert version_of("العراب", faces) != version_of("ต้มยำกุ้ง", faces)


def test_fonts_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"night\.fonts: .* holds no font"):
        Typefaces(None, (tmp_path,))
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(InputError, match=r"night\.fonts: cannot read .*bad\.ttf"):
        Typefaces(None, (tmp_path,))
    assert set(SMALL) <= set(FONT_PACKAGES)
