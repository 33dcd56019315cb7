"""Poster backgrounds: nine coloured palettes with one simple motif each, and plain white."""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from generator.datasets.errors import DatasetError

Colour = tuple[int, int, int]

_OVERSAMPLING = 4


@dataclass(frozen=True)
class Palette:
    """A background's colours and motif.

    `words` describe it in captions; `ink` is the colour of line art on it, `halo` the glow that lifts an icon off it.
    """

    top: Colour
    bottom: Colour
    motif: str
    accent: Colour
    ink: Colour
    halo: Colour
    words: tuple[str, ...]


_DARK: Colour = (24, 20, 28)
_LIGHT: Colour = (255, 252, 240)

PALETTES: dict[str, Palette] = {
    "sunset": Palette((255, 111, 72), (255, 190, 92), "disc", (255, 236, 170), _DARK, _LIGHT, ("orange", "sun")),
    "ocean": Palette((38, 160, 218), (10, 92, 176), "waves", (120, 214, 236), _LIGHT, _LIGHT, ("blue", "waves")),
    "midnight": Palette(
        (24, 20, 74), (82, 52, 148), "stars", (255, 240, 170), _LIGHT, _LIGHT, ("indigo night", "stars")
    ),
    "meadow": Palette((190, 234, 255), (234, 250, 236), "hills", (92, 186, 84), _DARK, _LIGHT, ("green", "hills")),
    "candy": Palette((255, 176, 212), (255, 214, 232), "dots", (255, 246, 250), _DARK, _LIGHT, ("pink", "polka dots")),
    "noir": Palette((36, 38, 46), (78, 82, 92), "spotlight", (226, 226, 214), _DARK, _LIGHT, ("grey", "spotlight")),
    "desert": Palette((240, 212, 158), (224, 170, 104), "stripes", (206, 140, 76), _DARK, _LIGHT, ("sand", "stripes")),
    "crimson": Palette((112, 8, 26), (176, 20, 38), "rays", (214, 48, 52), _LIGHT, _LIGHT, ("red", "rays")),
    "lemon": Palette((255, 226, 74), (255, 206, 40), "rays", (255, 243, 160), _DARK, _LIGHT, ("yellow", "rays")),
    "plain": Palette((255, 255, 255), (255, 255, 255), "none", (255, 255, 255), _DARK, _LIGHT, ("white", "plain")),
}

POSTER_PALETTES: tuple[str, ...] = tuple(name for name in PALETTES if name != "plain")
"""The palettes of posters; "plain" is the one of stickers."""


def palette_named(name: str) -> Palette:
    """The palette of this name.

    Raises:
        DatasetError: no such palette.
    """
    try:
        return PALETTES[name]
    except KeyError:
        raise DatasetError(f"no palette {name!r}; one of {', '.join(PALETTES)}") from None


@lru_cache(maxsize=64)
def background(name: str, size: int) -> npt.NDArray[np.float32]:
    """A poster without its icon: read-only RGB float32 [size, size, 3] in 0..255."""
    palette = palette_named(name)
    side = size * _OVERSAMPLING
    ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    blend = np.asarray(palette.top, np.float32) * (1 - ramp) + np.asarray(palette.bottom, np.float32) * ramp
    canvas = Image.fromarray(np.broadcast_to(blend, (side, side, 3)).round().astype(np.uint8))
    _draw_motif(ImageDraw.Draw(canvas), palette, side)
    pixels = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    pixels.setflags(write=False)
    return pixels


def _draw_motif(draw: ImageDraw.ImageDraw, palette: Palette, side: int) -> None:
    accent, middle = palette.accent, side / 2
    match palette.motif:
        case "disc":
            _disc(draw, middle, middle, side * 0.42, accent)
        case "spotlight":
            cone = [(middle * 0.6, 0), (middle * 1.4, 0), (side * 0.99, side * 0.84), (side * 0.01, side * 0.84)]
            draw.polygon(cone, accent)
            draw.ellipse((side * 0.01, side * 0.7, side * 0.99, side * 0.98), accent)
        case "waves":
            for level, shade in ((0.62, 0.45), (0.74, 0.7), (0.86, 1.0)):
                crest = [
                    (x, side * (level + 0.035 * sin(x / side * 6 * pi + level * 20)))
                    for x in range(0, side + 1, side // 64)
                ]
                draw.polygon([*crest, (side, side), (0, side)], _mix(palette.bottom, accent, shade))
        case "stars":
            for x, y, radius in _STARS:
                _star(draw, x * side, y * side, radius * side, accent)
        case "hills":
            draw.ellipse((-side * 0.4, side * 0.62, side * 0.75, side * 1.5), _mix(palette.bottom, accent, 0.7))
            draw.ellipse((side * 0.2, side * 0.7, side * 1.5, side * 1.6), accent)
        case "dots":
            step = side / 5
            for row in range(6):
                for column in range(6):
                    _disc(draw, (column + (row % 2) / 2) * step, row * step + step / 2, step * 0.27, accent)
        case "stripes":
            step = side / 6
            for number in range(-6, 7, 2):
                x = number * step
                draw.polygon([(x, side), (x + step, side), (x + step + side, 0), (x + side, 0)], accent)
        case "rays":
            for number in range(0, 24, 2):
                turn = [2 * pi * (number + offset) / 24 for offset in (0.0, 1.0)]
                draw.polygon(
                    [(middle, middle), *((middle + side * cos(a), middle + side * sin(a)) for a in turn)], accent
                )


_STARS = (
    (0.1, 0.12, 0.05), (0.32, 0.05, 0.025), (0.88, 0.1, 0.06), (0.66, 0.07, 0.03), (0.05, 0.45, 0.03), (0.94, 0.4, 0.03),
    (0.08, 0.84, 0.055), (0.93, 0.72, 0.04), (0.86, 0.92, 0.05), (0.36, 0.95, 0.03), (0.6, 0.95, 0.025),
)  # fmt: skip


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)


def _star(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    reach = [radius if corner % 2 == 0 else radius * 0.4 for corner in range(8)]
    draw.polygon([(x + r * sin(i * pi / 4), y - r * cos(i * pi / 4)) for i, r in enumerate(reach)], colour)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
