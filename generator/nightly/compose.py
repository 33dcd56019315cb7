"""The poster around the model's image: art above, title below, one WebP file per configured size.

The same input gives the same bytes: no clock, no randomness; Pillow's basic text layout, but for scripts that need shaping.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from generator.nightly.typography import LEADING, draw_line, fit, font, words_of
from schemas.titles import clean_title
from schemas.typefaces import NotWritable, Typefaces

Colour = tuple[int, int, int]

_YEAR = re.compile(r"^(?P<title>.*\S)\s*\((?P<year>(?:18|19|20|21)\d\d)\)$")
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
    art: npt.NDArray[np.uint8], title: str, *, year: str | None, size: tuple[int, int], quality: int, faces: Typefaces
) -> bytes:
    """A WebP poster.

    Args:
        art: (H, W, 3) RGB, as the model drew it.
        title: as in the catalogue; a trailing "(1994)" becomes a line of its own.
        year: shown below the title; taken from the title when None.
        size: (width, height) in pixels.
        faces: the fonts of the title.

    Raises:
        InputError: a font cannot be read.
        NotComposable: nothing of the title can be seen, or no font can set it.
    """
    text, year = written(title, year)
    version_of(title, faces)
    width, height = size
    place = layout(width, height)
    paper = _edge_colour(art)
    image = enlarge(art, place.art[2])
    canvas = _ground(image, place, paper)
    _write(canvas, text, year, place, paper, faces)
    out = io.BytesIO()
    canvas.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def written(title: str, year: str | None) -> tuple[str, str | None]:
    """The title as it is written, and the year below it: a trailing "(1994)" unless another is given."""
    cleaned = clean_title(title)
    match = _YEAR.match(cleaned)
    return (match["title"], year or match["year"]) if match else (cleaned, year)


def version_of(title: str, faces: Typefaces) -> str:
    """How a title is written and with which fonts, as part of a composition's key.

    Empty when the title is written as it stands, with the first font.

    Raises:
        NotComposable: as `compose`.
    """
    cleaned = clean_title(title)
    if not cleaned:
        raise NotComposable("title_not_drawable")
    try:
        return faces.version(cleaned) + ("" if cleaned == " ".join(title.split()) else f" as {cleaned}")
    except NotWritable:
        raise NotComposable("title_not_drawable") from None


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


def _write(canvas: Image.Image, title: str, year: str | None, place: Layout, paper: Colour, faces: Typefaces) -> None:
    left, top, right, bottom = place.text
    width, height = right - left, bottom - top
    points = max(7, round(min(place.width, place.height) * 0.038))
    year_height = round(points * 2.4) if year else 0
    title = title[:MAX_TITLE].strip()
    words = words_of(title, faces.faces(title))
    lines, size = fit(words, width, height - year_height, round(place.height * 0.085))
    ink: Colour = (255, 255, 255) if _luminance(paper) < 140 else (24, 22, 28)
    soft: Colour = tuple(round(0.72 * i + 0.28 * p) for i, p in zip(ink, paper, strict=True))  # type: ignore[assignment]
    draw = ImageDraw.Draw(canvas)
    pitch = round(size * LEADING)
    y = top + (height - year_height - pitch * len(lines)) / 2
    middle = (left + right) / 2
    for line in lines:
        draw_line(draw, (middle, y + pitch / 2), line, size, ink)
        y += pitch
    if year:
        rule, line_y = round(width * 0.08), y + points * 0.8
        draw.line((middle - rule, line_y, middle + rule, line_y), fill=soft, width=max(1, place.width // 200))
        small = font(faces.files[0], points)
        draw.text((middle, y + points * 1.8), year, fill=soft, font=small, anchor="mm")


def _luminance(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
