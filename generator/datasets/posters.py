"""The demo's poster art: an icon large on a background, a deterministic function of the film.

What is drawn comes from the title, how it is drawn from the genre, the colours from genre and release period, so that
a taste for kinds of films is a taste for kinds of pictures. All of it is synthetic and says so in its attributes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from generator.datasets.errors import DatasetError
from generator.datasets.icons import STYLE_LICENCES, STYLE_NAMES, IconArt
from generator.datasets.movies import Movie
from generator.datasets.palettes import background, palette_named
from generator.datasets.titles import ConceptFinder, main_genre

ICON_SHARE = 0.78
"""Side of the icon over side of the poster."""

LINE_ART_STYLE = "fluent-emoji-high-contrast"

STYLE_OF_GENRE: dict[str, str] = {
    genre: style
    for style, genres in {
        "noto": ("Comedy",),
        "noto-v1": ("Romance",),
        "twemoji": ("Action", "Adventure", "Western", "War", "Sci-Fi"),
        "fluent-emoji": ("Animation", "Children's", "Fantasy", "Musical"),
        "fluent-emoji-flat": ("Drama", "Documentary", "none"),
        "fluent-emoji-high-contrast": ("Horror", "Film-Noir", "Mystery", "Thriller", "Crime"),
    }.items()
    for genre in genres
}
"""Six groups of genres, six drawing styles."""

PERIODS: tuple[tuple[int, str], ...] = ((1969, "classic"), (1993, "vintage"), (1995, "recent"), (9999, "new"))
"""(last year, name): release periods, of about equal weight in MovieLens-100k except the classics."""

# Genre -> palettes of the films of (classic, vintage, recent, new) periods.
PALETTES_OF_GENRE: dict[str, tuple[str, str, str, str]] = {
    "Western": ("noir", "desert", "desert", "sunset"),
    "Sci-Fi": ("noir", "midnight", "midnight", "ocean"),
    "Film-Noir": ("noir", "noir", "noir", "midnight"),
    "Horror": ("noir", "crimson", "crimson", "midnight"),
    "Musical": ("candy", "lemon", "candy", "sunset"),
    "War": ("noir", "desert", "crimson", "desert"),
    "Fantasy": ("meadow", "midnight", "candy", "midnight"),
    "Animation": ("meadow", "meadow", "lemon", "ocean"),
    "Documentary": ("noir", "desert", "meadow", "ocean"),
    "Mystery": ("noir", "midnight", "noir", "crimson"),
    "Children's": ("meadow", "lemon", "meadow", "candy"),
    "Crime": ("noir", "crimson", "noir", "noir"),
    "Romance": ("candy", "sunset", "candy", "candy"),
    "Adventure": ("desert", "sunset", "ocean", "meadow"),
    "Thriller": ("noir", "crimson", "noir", "crimson"),
    "Action": ("desert", "sunset", "crimson", "sunset"),
    "Comedy": ("lemon", "sunset", "lemon", "lemon"),
    "Drama": ("noir", "desert", "ocean", "meadow"),
    "none": ("noir", "desert", "noir", "midnight"),
}


@dataclass(frozen=True)
class PosterSpec:
    """All that a poster is drawn from: slug of a concept, a style of STYLES, a palette of PALETTES."""

    concept: str
    style: str
    palette: str


def period_of(year: int | None) -> int:
    """Place of the release period in PERIODS; an unknown year counts as new."""
    return next(
        (place for place, (last, _) in enumerate(PERIODS) if year is not None and year <= last), len(PERIODS) - 1
    )


def spec_for(movie: Movie, finder: ConceptFinder) -> PosterSpec:
    """The film's official poster: the same on every machine."""
    genre = main_genre(movie)
    concept, _ = finder.for_movie(movie)
    return PosterSpec(concept, STYLE_OF_GENRE[genre], PALETTES_OF_GENRE[genre][period_of(movie.year)])


def sticker_spec(concept: str, style: str) -> PosterSpec:
    """The same picture on plain white."""
    return PosterSpec(concept, style, "plain")


def draw(
    spec: PosterSpec, size: int, art: IconArt, instead: npt.NDArray[np.uint8] | None = None
) -> npt.NDArray[np.uint8]:
    """Draw a poster's art, RGB uint8 [size, size, 3].

    Below a millisecond at 64, so that training draws what it needs; from 65 on the icon is rendered from vectors.
    `instead`: RGBA uint8 [s, s, 4], straight alpha, shown in the place of the icon.

    Raises:
        DatasetError: unknown concept, style or palette, or a size below 16.
    """
    if size < 16:
        raise DatasetError(f"poster size {size} is too small to draw on; use 16 or more")
    palette = palette_named(spec.palette)
    inner = round(size * ICON_SHARE)
    if instead is None:
        instead = art.icon(spec.concept, spec.style) if size <= 64 else art.icon(spec.concept, spec.style, inner)
    icon = Image.fromarray(instead)
    if icon.size != (inner, inner):
        icon = icon.resize((inner, inner), Image.Resampling.LANCZOS)
    halo = palette.halo
    if spec.style == LINE_ART_STYLE:
        icon = _inked(icon, palette.ink)
        halo = palette.halo if palette.ink != palette.halo else palette.top
    offset = (size - inner) // 2
    alpha = Image.new("L", (size, size))
    alpha.paste(icon.getchannel("A"), (offset, offset))
    canvas = background(spec.palette, size).copy()
    if palette.motif != "none":
        glow = np.asarray(alpha.filter(ImageFilter.BoxBlur(size / 32)), np.float32)[..., None]
        canvas += (np.asarray(halo, np.float32) - canvas) * np.minimum(glow * (1.6 / 255), 0.85)
    region = slice(offset, offset + inner)
    layer = np.asarray(icon, np.float32)
    canvas[region, region] += (layer[..., :3] - canvas[region, region]) * (layer[..., 3:] / 255)
    return canvas.round().astype(np.uint8)


def attributes(spec: PosterSpec) -> dict[str, Any]:
    """Attributes of the art for the catalogue: that it is synthetic, whose it is, how it was made."""
    return {
        "synthetic": True,
        "art": STYLE_NAMES[spec.style],
        "licence": STYLE_LICENCES[spec.style],
        "concept": spec.concept,
        "style": spec.style,
        "palette": spec.palette,
    }


def _inked(icon: Image.Image, ink: tuple[int, int, int]) -> Image.Image:
    """Monochrome line art in the palette's ink: black lines would vanish on a dark palette."""
    coloured = Image.new("RGBA", icon.size, (*ink, 255))
    coloured.putalpha(icon.getchannel("A"))
    return coloured
