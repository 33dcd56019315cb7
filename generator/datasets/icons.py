"""Concepts that all six icon sets draw, and their pictures.

A concept ("rocket") is one emoji of emojibase; a style is one icon set. Only concepts that every style draws are
kept, so that style is a free choice for any picture: the axis on which taste shows.
"""

import io
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.datasets.errors import DatasetError
from generator.datasets.fetch import ICON_PACKAGES, Progress, fetch_icons, no_progress, versions_key

STYLES: tuple[str, ...] = tuple(ICON_PACKAGES)
"""Style ids; a style's index is its place here and in the second axis of `IconArt.pixels`."""

STYLE_NAMES: dict[str, str] = {
    "noto": "Noto",
    "noto-v1": "Noto classic",
    "twemoji": "Twemoji",
    "fluent-emoji": "Fluent 3D",
    "fluent-emoji-flat": "Fluent flat",
    "fluent-emoji-high-contrast": "Fluent high contrast",
}

STYLE_LICENCES: dict[str, str] = {
    "noto": "Apache-2.0",
    "noto-v1": "Apache-2.0",
    "twemoji": "CC-BY-4.0",
    "fluent-emoji": "MIT",
    "fluent-emoji-flat": "MIT",
    "fluent-emoji-high-contrast": "MIT",
}
"""SPDX identifiers; NOTICE.md names the authors."""

ICON_SIZE = 64
"""Side in pixels of the cached icons."""

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn. `icons[i]` is its name in the icon set `STYLES[i]`."""

    slug: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    emoji: str
    icons: tuple[str, ...]


class IconArt:
    """The drawn concepts.

    `pixels` is uint8 [concepts, styles, 64, 64, 4], straight-alpha RGBA, memory-mapped.
    """

    def __init__(self, concepts: Sequence[Concept], pixels: Pixels, source: Path) -> None:
        self.concepts = tuple(concepts)
        self.pixels = pixels
        self._source = source
        self._sets: dict[str, dict[str, Any]] = {}

    @cached_property
    def index(self) -> dict[str, int]:
        """Slug -> place in `concepts` and in the first axis of `pixels`."""
        return {concept.slug: place for place, concept in enumerate(self.concepts)}

    def concept(self, slug: str) -> Concept:
        """The concept of this slug.

        Raises:
            DatasetError: no such concept is drawn in all styles.
        """
        try:
            return self.concepts[self.index[slug]]
        except KeyError:
            raise DatasetError(f"no concept {slug!r} among the {len(self.concepts)} that all styles draw") from None

    def icon(self, slug: str, style: str, size: int = ICON_SIZE) -> Pixels:
        """RGBA uint8 [size, size, 4]: from the cache at 64, rendered from the vector art at other sizes."""
        concept = self.concept(slug)
        if style not in STYLES:
            raise DatasetError(f"no style {style!r}; one of {', '.join(STYLES)}")
        number = STYLES.index(style)
        if size == ICON_SIZE:
            cached: Pixels = self.pixels[self.index[slug], number]
            return cached
        if style not in self._sets:
            self._sets[style] = read_json(self._source / style / "icons.json")
        return render_icon(self._sets[style], concept.icons[number], size)


def load_icons(cache_dir: Path, progress: Progress = no_progress) -> IconArt:
    """Icons from the cache.

    The first call downloads the sets and renders some 7,000 icons (half a minute).

    Raises:
        DatasetError: the art cannot be downloaded or drawn.
    """
    source = fetch_icons(cache_dir, progress)
    index_path = cache_dir / f"icons-{versions_key()}-{ICON_SIZE}.json"
    pixels_path = index_path.with_suffix(".npy")
    if not index_path.exists():
        concepts = match_concepts(source)
        _render_all(source, concepts, pixels_path, progress)
        # The index is written last: where it exists, the pixels are whole.
        replace_file(index_path, json.dumps([asdict(concept) for concept in concepts], ensure_ascii=False).encode())
    rows = read_json(index_path)
    concepts = [Concept(**{**row, "tags": tuple(row["tags"]), "icons": tuple(row["icons"])}) for row in rows]
    try:
        pixels: Pixels = np.load(pixels_path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {pixels_path}: {error}; delete {index_path} and try again") from error
    expected = (len(concepts), len(STYLES), ICON_SIZE, ICON_SIZE, 4)
    if pixels.shape != expected:
        raise DatasetError(
            f"{pixels_path} has shape {pixels.shape}, expected {expected}; delete {index_path} and try again"
        )
    return IconArt(concepts, pixels, source)


def match_concepts(source: Path) -> list[Concept]:
    """The emoji of emojibase that all styles draw, in emojibase's order.

    An icon is found by code point, or by the slug of emojibase's label: two of the sets publish no code points.
    """
    lookups = []
    for style in STYLES:
        icons = read_json(source / style / "icons.json")
        names = set(icons["icons"]) | set(icons.get("aliases", {}))
        by_code = {_bare(code): name for code, name in read_json(source / style / "chars.json").items()}
        lookups.append((names, by_code))
    groups = read_json(source / "labels/meta/groups.json")
    rows = [row for row in read_json(source / "labels/en/data.json") if "group" in row]
    concepts = []
    for row in sorted(rows, key=lambda row: int(row["order"])):
        slug, code = slug_of(row["label"]), _bare(row["hexcode"])
        found = [by_code.get(code, slug if slug in names else None) for names, by_code in lookups]
        icons = tuple(name for name in found if name is not None)
        if len(icons) == len(STYLES):
            concepts.append(
                Concept(
                    slug=slug,
                    label=row["label"],
                    tags=tuple(row.get("tags", ())),
                    group=groups["groups"][str(row["group"])],
                    subgroup=groups["subgroups"][str(row["subgroup"])],
                    emoji=row["emoji"],
                    icons=icons,
                )
            )
    return concepts


def render_icon(icon_set: dict[str, Any], name: str, size: int) -> Pixels:
    """Draw one icon of an Iconify JSON set to RGBA uint8 [size, size, 4].

    One that is not square is padded to a square.

    Raises:
        DatasetError: resvg-py is not installed, or cannot draw this icon.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise DatasetError(
            "drawing icons needs resvg-py; install the extra: pip install 'pigeon-posters[demo]'"
        ) from error
    alias = icon_set.get("aliases", {}).get(name, {})
    icon = {**icon_set["icons"][alias.get("parent", name)], **alias}
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icon_set.get("width", 16))
    height = icon.get("height", icon_set.get("height", 16))
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{side}" height="{side}" viewBox="{box}">{icon["body"]}</svg>'
    )
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    except ValueError as error:
        raise DatasetError(f"cannot draw icon {name!r}: {error}") from error
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if alias.get("hFlip"):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def slug_of(label: str) -> str:
    """The name that Iconify gives an emoji with this emojibase label."""
    plain = unicodedata.normalize("NFKD", label.replace("&", "and")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")


def _render_all(source: Path, concepts: Sequence[Concept], target: Path, progress: Progress) -> None:
    shape = (len(concepts), len(STYLES), ICON_SIZE, ICON_SIZE, 4)
    pixels: Pixels = np.zeros(shape, np.uint8)
    total = len(concepts) * len(STYLES)
    for number, style in enumerate(STYLES):
        icon_set = read_json(source / style / "icons.json")
        for place, concept in enumerate(concepts):
            if place % 100 == 0:
                progress("Draw icons", number * len(concepts) + place, total)
            pixels[place, number] = render_icon(icon_set, concept.icons[number], ICON_SIZE)
    buffer = io.BytesIO()
    np.save(buffer, pixels)
    replace_file(target, buffer.getvalue())
    progress("Draw icons", total, total)


def _bare(code: str) -> str:
    """A code point sequence without variation selectors and joiners, which the sets write differently."""
    return "-".join(part for part in code.lower().split("-") if part not in ("fe0f", "200d"))


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DatasetError(f"cannot read {path}: {error}; delete {path.parent} and try again") from error


def replace_file(target: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    partial = Path(name)
    partial.chmod(0o644)
    partial.replace(target)
