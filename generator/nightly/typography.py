"""Titles set in their box: the largest type that fits, even lines, each script by its font."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageDraw, ImageFont

from schemas.errors import InputError
from schemas.typefaces import is_shaped

Font = ImageFont.FreeTypeFont
Ink = tuple[int, int, int]
MAX_LINES = 4
LEADING = 1.16
"""Pitch of two lines over the size of the type."""
_NOT_FIRST = frozenset("、。，．！？：；」』）】〉》ー々ぁぃぅぇぉっゃゅょァィゥェォッャュョ・")
_NOT_LAST = frozenset("「『（【〈《")


@dataclass(frozen=True)
class Word:
    """What stays on one line, and the blank before it."""

    text: str
    face: Path
    spaced: bool = True


@dataclass(frozen=True)
class Line:
    """Words side by side, in the order of reading."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return "".join((" " if word.spaced and place else "") + word.text for place, word in enumerate(self.words))

    @property
    def face(self) -> Path | None:
        """The font of all words; None when they have several."""
        faces = {word.face for word in self.words}
        return faces.pop() if len(faces) == 1 else None


def words_of(title: str, faces: Mapping[str, Path]) -> list[Word]:
    """A clean title's words; Chinese and Japanese may be broken between any two characters."""
    words: list[Word] = []
    for whole in title.split():
        spaced = True
        for part in _breakable(whole):
            words.append(Word(part, faces[whole], spaced))
            spaced = False
    return words


def fit(words: list[Word], width: int, height: int, largest: int) -> tuple[list[Line], int]:
    """(lines, points) of the largest type that fits; the smallest may end in an ellipsis."""
    smallest = max(7, largest // 4)
    low, high = smallest, max(largest, smallest)
    best: tuple[list[Line], int] | None = None
    while low <= high:
        points = (low + high) // 2
        lines = wrap(words, points, width, break_words=points == smallest)
        if lines and len(lines) <= MAX_LINES and round(points * LEADING) * len(lines) <= height:
            best = lines, points
            low = points + 1
        else:
            high = points - 1
    if best:
        return best
    lines = wrap(words, smallest, width, break_words=True)
    room = max(1, min(MAX_LINES, height // round(smallest * LEADING)))
    if len(lines) > room:
        lines = [*lines[: room - 1], _cut(lines[room - 1], smallest, width)]
    return lines, smallest


def wrap(words: list[Word], points: int, width: int, *, break_words: bool) -> list[Line]:
    """Lines of about equal length within `width`; empty when a word is too wide and may not be broken."""
    measured: list[tuple[Word, float]] = []
    for word in words:
        pieces = _pieces(word, points, width, break_words=break_words)
        if pieces is None:
            return []
        measured += pieces
    space = max((font(word.face, points, word.text).getlength(" ") for word in words), default=0.0)
    lines = _greedy(measured, space, width)
    # Balance: the narrowest measure that needs no further line.
    narrow = width
    while len(lines) > 1 and narrow > width // 3:
        narrow -= max(1, width // 40)
        if narrow < max(length for _, length in measured):
            break
        tighter = _greedy(measured, space, narrow)
        if len(tighter) > len(lines):
            break
        lines = tighter
    return lines


def draw_line(draw: ImageDraw.ImageDraw, middle: tuple[float, float], line: Line, points: int, ink: Ink) -> None:
    """Write a line around its middle, from right to left if its first word is; one baseline for all fonts."""
    if line.face is not None:
        draw.text(middle, line.text, fill=ink, font=font(line.face, points, line.text), anchor="mm")
        return
    fonts = [font(word.face, points, word.text) for word in line.words]
    space = max(one.getlength(" ") for one in fonts)
    lengths = [one.getlength(word.text) for one, word in zip(fonts, line.words, strict=True)]
    gaps = [space if word.spaced and place else 0.0 for place, word in enumerate(line.words)]
    total = sum(lengths) + sum(gaps)
    from_right = _is_from_right(line.words[0].text)
    x = middle[0] + (total if from_right else -total) / 2
    for word, one, length, gap in zip(line.words, fonts, lengths, gaps, strict=True):
        x += -(gap + length) if from_right else gap
        draw.text((x, middle[1] + points * 0.35), word.text, fill=ink, font=one, anchor="ls")
        x += 0 if from_right else length


def font(file: Path, points: int, text: str = "") -> Font:
    """A font for a text: shaped where its script needs it, else the same on every machine.

    Raises:
        InputError: the file cannot be read.
    """
    return _font(file, points, ImageFont.Layout.RAQM if is_shaped(text) else ImageFont.Layout.BASIC)


@functools.lru_cache(maxsize=256)
def _font(file: Path, points: int, engine: ImageFont.Layout) -> Font:
    try:
        return ImageFont.truetype(str(file), points, layout_engine=engine)
    except OSError as error:
        raise InputError(f"setting night.font: cannot read {file}: {error}") from error


def _pieces(word: Word, points: int, width: int, *, break_words: bool) -> list[tuple[Word, float]] | None:
    """A word with its length, cut into as many pieces as the measure asks for; None when it may not be."""
    one = font(word.face, points, word.text)
    text, spaced = word.text, word.spaced
    pieces: list[tuple[Word, float]] = []
    while (length := one.getlength(text)) > width and len(text) > 1:
        if not break_words:
            return None
        guess = min(len(text) - 1, int(1.5 * len(text) * width / length) + 2)
        cut = next((n for n in range(guess, 1, -1) if one.getlength(text[:n]) <= width), 1)
        pieces.append((Word(text[:cut], word.face, spaced), one.getlength(text[:cut])))
        text, spaced = text[cut:], True
    if length > width and not break_words:
        return None
    return [*pieces, (Word(text, word.face, spaced), length)]


def _greedy(words: list[tuple[Word, float]], space: float, width: int) -> list[Line]:
    lines: list[list[Word]] = []
    filled = 0.0
    for word, length in words:
        gap = space if word.spaced else 0.0
        if lines and filled + gap + length <= width:
            lines[-1].append(word)
            filled += gap + length
        else:
            lines.append([word])
            filled = length
    return [Line(tuple(line)) for line in lines]


def _cut(line: Line, points: int, width: int) -> Line:
    """A line that ends in an ellipsis, or in dots where its font has none."""
    words = list(line.words)
    while words:
        last = words.pop()
        dots = "…" if font(last.face, points).getmask("…").getbbox() else "..."
        text = last.text
        while text:
            cut = Line((*words, Word(text.rstrip() + dots, last.face, last.spaced)))
            if sum(font(word.face, points, word.text).getlength(word.text) for word in cut.words) <= width:
                return cut
            text = text[:-1]
    return line


def _breakable(word: str) -> list[str]:
    """A word cut where a line may end: between two ideographs, but not before closing marks."""
    parts: list[str] = []
    for character in word:
        katakana = bool(parts) and _is_katakana(character) and _is_katakana(parts[-1][-1])  # a foreign word, kept whole
        joins = katakana or (bool(parts) and not (_is_ideograph(character) or _is_ideograph(parts[-1][-1])))
        if parts and (joins or character in _NOT_FIRST or parts[-1][-1] in _NOT_LAST):
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def _is_ideograph(character: str) -> bool:
    code = ord(character)
    return (
        0x2E80 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0xFF00 <= code <= 0xFFEF or 0x20000 <= code <= 0x3FFFF
    )


def _is_katakana(character: str) -> bool:
    return 0x30A1 <= ord(character) <= 0x30FA or character == "ー"


def _is_from_right(text: str) -> bool:
    return any(0x0590 <= ord(one) <= 0x08FF or 0xFB1D <= ord(one) <= 0xFEFC for one in text)
