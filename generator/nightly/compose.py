"""The poster around the model's image: art above, title below, one WebP file per configured size.

The same input gives the same bytes: no clock, no randomness, Pillow's basic text layout.
"""

from __future__ import annotations

import functools
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from schemas.errors import InputError

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont

_YEAR = re.compile(r"^(?P<title>.*\S)\s*\((?P<year>(?:18|19|20|21)\d\d)\)$")
MAX_LINES = 4
# Characters past which no title is legible on a poster; what is left is cut with an ellipsis.
MAX_TITLE = 240


class NotComposable(Exception):
    """There is no poster with this title.

    The text is the reason that is stored, such as `title_not_drawable`.
    """


@dataclass(frozen=True)
class Layout:
    """Where things are on a poster of `width` x `height` pixels."""

    width: int
    height: int
    art: tuple[int, int, int]
    """x, y, side of the square of art."""
    text: tuple[int, int, int, int]
    """left, top, right, bottom of the title's box."""


def layout(width: int, height: int) -> Layout:
    """The layout for a size: portrait puts the title below the art, landscape at its right."""
    margin = max(4, round(min(width, height) * 0.07))
    if height >= width * 1.2:
        side = min(width, round(height * 0.7))
        return Layout(width, height, ((width - side) // 2, 0, side), (margin, side, width - margin, height - margin))
    if width >= height * 1.2:
        side = height
        return Layout(width, height, (0, 0, side), (side + margin // 2, margin, width - margin, height - margin))
    side = round(height * 0.76)
    return Layout(width, height, ((width - side) // 2, 0, side), (margin, side, width - margin, height - margin))


def compose(
    art: npt.NDArray[np.uint8], title: str, *, year: str | None, size: tuple[int, int], quality: int, font: Path | None
) -> bytes:
    """A WebP poster.

    Args:
        art: (H, W, 3) RGB, as the model drew it.
        title: as in the catalogue; a trailing "(1994)" becomes a line of its own.
        year: shown below the title; taken from the title when None.
        size: (width, height) in pixels.
        font: a TrueType file; DejaVu Sans Bold when None.

    Raises:
        InputError: the font cannot be read.
        NotComposable: the title cannot be set.
    """
    width, height = size
    place = layout(width, height)
    paper = _edge_colour(art)
    image = enlarge(art, place.art[2])
    canvas = _ground(image, place, paper)
    _write(canvas, title, year, place, paper, _font_path(font))
    out = io.BytesIO()
    canvas.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def png(art: npt.NDArray[np.uint8]) -> bytes:
    """The model's image as PNG."""
    out = io.BytesIO()
    Image.fromarray(art).save(out, "PNG", compress_level=9)
    return out.getvalue()


def enlarge(art: npt.NDArray[np.uint8], side: int) -> Image.Image:
    """A square of `side` pixels with firm edges: doubled in steps, each of them sharpened."""
    image = Image.fromarray(art)
    if image.width != image.height:
        short = min(image.size)
        left, top = (image.width - short) // 2, (image.height - short) // 2
        image = image.crop((left, top, left + short, top + short))
    while image.width < side:
        step = min(2 * image.width, side)
        image = image.resize((step, step), Image.Resampling.BICUBIC)
        image = image.filter(ImageFilter.UnsharpMask(radius=2, percent=70, threshold=2))
    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return image


def _edge_colour(art: npt.NDArray[np.uint8]) -> Colour:
    """The median colour of the image's lower rim, where the title's ground continues it."""
    rim = max(1, art.shape[0] // 16)
    pixels = np.concatenate(
        [art[-rim:].reshape(-1, 3), art[-4 * rim :, :rim].reshape(-1, 3), art[-4 * rim :, -rim:].reshape(-1, 3)]
    )
    red, green, blue = (int(value) for value in np.median(pixels, axis=0))
    return red, green, blue


def _ground(image: Image.Image, place: Layout, paper: Colour) -> Image.Image:
    """The image on its own edge colour, which darkens away from it; the seam is feathered."""
    x, y, side = place.art
    rows = np.linspace(0, 1, place.height, dtype=np.float32)[:, None, None]
    start = side / place.height if place.art[0] or place.text[1] >= side else 0.0
    fade = np.clip((rows - start) / max(1e-6, 1 - start), 0, 1) * 0.35
    ground = np.asarray(paper, np.float32) * (1 - fade) * np.ones((1, place.width, 1), np.float32)
    canvas = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    mask = np.ones((side, side), np.float32)
    feather = max(1, side // 10)
    ramp = np.linspace(1, 0, feather, dtype=np.float32)
    if place.text[1] >= side:
        mask[-feather:, :] *= ramp[:, None]
    if x + side < place.width:
        mask[:, -feather:] *= ramp[None, :]
    if x > 0:
        mask[:, :feather] *= ramp[None, ::-1]
    canvas.paste(image, (x, y), Image.fromarray((mask * 255).astype(np.uint8)))
    return canvas


def _write(canvas: Image.Image, title: str, year: str | None, place: Layout, paper: Colour, font_path: str) -> None:
    left, top, right, bottom = place.text
    match = _YEAR.match(title)
    if match:
        title, year = match["title"], year or match["year"]
    width, height = right - left, bottom - top
    small = _font(font_path, max(7, round(min(place.width, place.height) * 0.038)))
    year_height = round(small.size * 2.4) if year else 0
    lines, font = _fit(
        title[:MAX_TITLE].strip() or "Untitled", font_path, width, height - year_height, round(place.height * 0.085)
    )
    ink: Colour = (255, 255, 255) if _luminance(paper) < 140 else (24, 22, 28)
    soft: Colour = tuple(round(0.72 * i + 0.28 * p) for i, p in zip(ink, paper, strict=True))  # type: ignore[assignment]
    draw = ImageDraw.Draw(canvas)
    pitch = round(font.size * 1.16)
    y = top + (height - year_height - pitch * len(lines)) / 2
    middle = (left + right) / 2
    for line in lines:
        draw.text((middle, y + pitch / 2), line, fill=ink, font=font, anchor="mm")
        y += pitch
    if year:
        rule, line_y = round(width * 0.08), y + small.size * 0.8
        draw.line((middle - rule, line_y, middle + rule, line_y), fill=soft, width=max(1, place.width // 200))
        draw.text((middle, y + small.size * 1.8), year, fill=soft, font=small, anchor="mm")


def _fit(title: str, font_path: str, width: int, height: int, largest: int) -> tuple[list[str], Font]:
    """The largest type in which the title fits its box; the smallest may end in an ellipsis."""
    smallest = max(7, largest // 4)
    low, high = smallest, max(largest, smallest)
    best: tuple[list[str], Font] | None = None
    while low <= high:
        points = (low + high) // 2
        font = _font(font_path, points)
        lines = _wrap(title, font, width, break_words=points == smallest)
        if lines and len(lines) <= MAX_LINES and round(points * 1.16) * len(lines) <= height:
            best = lines, font
            low = points + 1
        else:
            high = points - 1
    if best:
        return best
    font = _font(font_path, smallest)
    lines = _wrap(title, font, width, break_words=True) or [""]
    room = max(1, min(MAX_LINES, height // round(smallest * 1.16)))
    if len(lines) > room:
        last = lines[room - 1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines = [*lines[: room - 1], last.rstrip() + "…"]
    return lines, font


def _wrap(title: str, font: Font, width: int, *, break_words: bool) -> list[str]:
    """Lines of about equal length within `width`; empty when a word is too wide and may not be broken."""
    words: list[tuple[str, float]] = []
    for whole in title.split():
        word = whole
        while (length := font.getlength(word)) > width:
            if not break_words:
                return []
            guess = min(len(word) - 1, int(1.5 * len(word) * width / length) + 2)
            cut = next((n for n in range(guess, 1, -1) if font.getlength(word[:n]) <= width), 1)
            words.append((word[:cut], font.getlength(word[:cut])))
            word = word[cut:]
            if len(word) <= 1:
                length = font.getlength(word)
                break
        if word:
            words.append((word, length))
    space = font.getlength(" ")
    lines = _greedy(words, space, width)
    # Balance: the narrowest measure that needs no further line.
    narrow = width
    while len(lines) > 1 and narrow > width // 3:
        narrow -= max(1, width // 40)
        if narrow < max(length for _, length in words):
            break
        tighter = _greedy(words, space, narrow)
        if len(tighter) > len(lines):
            break
        lines = tighter
    return lines


def _greedy(words: list[tuple[str, float]], space: float, width: int) -> list[str]:
    lines: list[str] = []
    filled = 0.0
    for word, length in words:
        if lines and filled + space + length <= width:
            lines[-1] = f"{lines[-1]} {word}"
            filled += space + length
        else:
            lines.append(word)
            filled = length
    return lines


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


@functools.cache
def _font_path(font: Path | None) -> str:
    if font is not None:
        return str(font)
    import matplotlib as mpl  # ships DejaVu; its data folder is found without importing pyplot

    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf")


@functools.lru_cache(maxsize=256)
def _font(path: str, points: int) -> Font:
    try:
        return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise InputError(f"setting night.font: cannot read {path}: {error}") from error
