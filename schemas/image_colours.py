"""A decoded picture's colours: any depth, profile and transparency made 8-bit sRGB on a ground.

A part of the rule of schemas/images.py; a change here is a new `RULE_VERSION`. Pillow and NumPy are imported inside functions.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

VISIBLE_STEP = 16
"""Difference (0-255) from the ground that an eye sees."""

VISIBLE_SHARE = 0.005
"""Share of the pixels that must differ from the ground for the art on it to be seen."""

DARK_GROUND = (38, 38, 38)
"""RGB of the ground for transparent art that is white itself."""


def scale_transparent_colour(image: Image.Image) -> None:
    """Give a PNG's transparent colour the depth of its pixels; called before they are loaded.

    Pillow leaves it as the file has it, so that art of 2, 4 or 16 bits would lie on the colour that nobody should see.
    """
    colour = image.info.get("transparency")
    tiles = getattr(image, "tile", None)  # of images that were opened and not yet loaded
    raw = str(tiles[0].args) if tiles else ""
    if isinstance(colour, int) and raw in {"L;2", "L;4"}:
        image.info["transparency"] = colour * (85 if raw == "L;2" else 17)
    elif isinstance(colour, tuple) and raw.startswith("RGB;16"):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def flat(image: Image.Image) -> Image.Image:
    """An RGB picture: depth scaled, colours in sRGB, transparency laid on a ground."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    see_through = image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info
    if see_through:
        image = image.convert("LA" if image.mode in {"LA", "La"} else "RGBA")
    elif image.mode in {"P", "1", "HSV"}:
        image = image.convert("RGB")
    if image.mode == "LAB":
        return _converted(image, _lab_profile()) or image.convert("L").convert("RGB")
    if not see_through:
        return _to_srgb(image, profile) or image.convert("RGB")
    alpha = image.getchannel("A")
    colours = image.convert("L" if image.mode == "LA" else "RGB")
    colours = _to_srgb(colours, profile) or colours.convert("RGB")
    return _on_ground(colours, alpha)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of any depth scaled to 8 bits; with alpha where one value is transparent."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    clear = image.info.get("transparency")
    grey = (values >> 8).astype(np.uint8) if image.mode.startswith("I;16") else _scaled(values, image.mode)
    if not isinstance(clear, int):
        return Image.fromarray(grey)
    alpha = np.where(values == clear, 0, 255).astype(np.uint8)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))


def _scaled(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    """Values without a word about their scale.

    0..1 and 0..255 for floats, 0..65535 for integers; what goes beyond is stretched to fit.
    """
    import numpy as np

    deep = values.astype(np.float32)  # a copy: what follows needs no further one
    np.nan_to_num(deep, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(deep.min()), float(deep.max())
    scales = (1.0, 255.0) if mode == "F" else (65535.0,)
    top = next((scale for scale in scales if low >= 0 and high <= scale), None)
    bottom, top = (0.0, top) if top is not None else (low, max(high, low + 1e-6))
    deep -= bottom
    deep *= 255.0 / (top - bottom)
    np.rint(deep, out=deep)
    np.clip(deep, 0, 255, out=deep)
    return deep.astype(np.uint8)


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image | None:
    """Convert by the colour profile in the file.

    None when there is none, it is sRGB, or it does not fit the picture.
    """
    from PIL import ImageCms

    if not isinstance(profile, bytes) or image.mode not in {"RGB", "L", "CMYK"}:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(source).lower():
            return None
    except (OSError, ImageCms.PyCMSError):  # a broken profile leaves the picture as every viewer shows it
        return None
    return _converted(image, source)


def _lab_profile() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("LAB")


def _converted(image: Image.Image, source: Any) -> Image.Image | None:
    from PIL import ImageCms

    try:
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a profile for another kind of picture
        return None


def _on_ground(colours: Image.Image, alpha: Image.Image) -> Image.Image:
    """Lay the art on white, or on a dark ground where it could not be seen on white."""
    from PIL import Image

    white = (255, 255, 255)
    ground = white
    if not _is_seen(colours, alpha, white) and _is_seen(colours, alpha, DARK_GROUND):
        ground = DARK_GROUND
    return Image.composite(colours, Image.new("RGB", colours.size, ground), alpha)


def _is_seen(colours: Image.Image, alpha: Image.Image, ground: tuple[int, int, int]) -> bool:
    """Whether enough of the art differs from the ground; judged on at most 512 x 512 samples."""
    import numpy as np

    step = max(1, max(colours.size) // 512)
    art = np.asarray(colours)[::step, ::step].astype(np.int32)
    cover = np.asarray(alpha)[::step, ::step].astype(np.int32)
    difference = np.abs(art - np.array(ground, np.int32)).max(axis=2) * cover // 255
    return float((difference > VISIBLE_STEP).mean()) >= VISIBLE_SHARE
