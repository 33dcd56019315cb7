"""Fonts of the titles: which has which characters, and whether a script can be shaped here.

Asked by import, to name items that no poster can be made of, and by the night, to write them.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from schemas.errors import InputError
from schemas.titles import JOINERS, clean_title

SUFFIXES = (".ttf", ".otf", ".ttc")
_SELECTORS = frozenset("\ufe0e\ufe0f")
# Scripts whose letters change by their neighbours, or stand in another order than they are written in.
_SHAPED = ((0x0590, 0x08FF), (0x0900, 0x0DFF), (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0xFB1D, 0xFEFC))


class NotWritable(Exception):
    """No font at hand can set a title; the text says which characters, or what is missing."""


class Typefaces:
    """The font of titles, and those that stand in for it where it has no character."""

    def __init__(self, font: Path | None = None, others: Sequence[Path] = ()) -> None:
        """Take `night.font` and `night.fonts`, whose folders are read in the order of their files' names.

        Raises:
            InputError: one of them cannot be read; the message names the setting.
        """
        first = font or default_font()
        if first is None:
            raise InputError(
                "setting night.font: must name a font file where matplotlib, which ships one, is not installed"
            )
        self.files = [first]
        for path in others:
            found = (
                sorted(one for one in path.rglob("*") if one.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
            )
            if not found:
                raise InputError(f"setting night.fonts: {path} holds no font (.ttf, .otf, .ttc)")
            self.files += found
        self._characters = [_characters(file, "fonts" if place else "font") for place, file in enumerate(self.files)]

    def faces(self, title: str) -> dict[str, Path]:
        """Word -> font file, of a clean title; one file for all where there is one.

        Raises:
            NotWritable: a character is in no font, or its script cannot be shaped here.
        """
        words = title.split()
        if is_shaped(title) and not can_shape():
            raise NotWritable(
                "its script needs shaping, for which the system's FriBiDi library (libfribidi0) is missing"
            )
        for file, characters in zip(self.files, self._characters, strict=True):
            if characters.issuperset(_drawn(title)):
                return dict.fromkeys(words, file)
        return {word: self._face(word) for word in words}

    def _face(self, word: str) -> Path:
        wanted = _drawn(word)
        for file, characters in zip(self.files, self._characters, strict=True):
            if characters.issuperset(wanted):
                return file
        missing = wanted.difference(*self._characters) or wanted
        named = ", ".join(f"{one} (U+{ord(one):04X})" for one in sorted(missing)[:3])
        raise NotWritable(f"no font has {named}; night.fonts takes further ones")

    def version(self, title: str) -> str:
        """What of the fonts a written title depends on; empty for the first font without shaping.

        Raises: as `faces`.
        """
        files = sorted(set(self.faces(title).values()))
        shaped = is_shaped(title)
        if files in ([], [self.files[0]]) and not shaped:
            return ""
        return f"{'shaped ' if shaped else ''}{' '.join(_hash(file) for file in files)}"


def problem(title: str, typefaces: Typefaces) -> str | None:
    """Why no poster can bear a catalogue's title; None when one can."""
    cleaned = clean_title(title)
    if not cleaned:
        return "nothing of it can be seen"
    try:
        typefaces.faces(cleaned)
    except NotWritable as error:
        return str(error)
    return None


def is_shaped(text: str) -> bool:
    """Whether letters of a text must be shaped or turned round, which needs Raqm."""
    return any(low <= ord(one) <= high for one in text if not one.isascii() for low, high in _SHAPED) or any(
        unicodedata.combining(one) for one in text
    )


@cache
def can_shape() -> bool:
    """Whether Pillow can shape text on this machine."""
    from PIL import features

    return bool(features.check("raqm"))


def _drawn(text: str) -> set[str]:
    return {one for one in text if not one.isspace() and one not in _SELECTORS and one not in JOINERS}


@cache
def default_font() -> Path | None:
    """DejaVu Sans Bold as matplotlib ships it; None where matplotlib is not installed."""
    found = find_spec("matplotlib")
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf" if folders else None


@cache
def _characters(file: Path, setting: str) -> frozenset[str]:
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with file.open("rb") as content, TTFont(content, fontNumber=0, lazy=True) as font:
            return frozenset(map(chr, font.getBestCmap() or ()))
    except (OSError, TTLibError) as error:
        raise InputError(f"setting night.{setting}: cannot read {file}: {error}") from None


@cache
def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
