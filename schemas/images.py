"""What a picture is: one list of formats and one rule that decides and decodes.

For import and night alike.

Pillow and NumPy are imported inside functions, so that this module is light to import.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Pixels = npt.NDArray[np.uint8]

RULE_VERSION = 2
"""Number of the rule that turns bytes into pixels; part of the key of whatever is cached of a picture."""

MIN_SIDE = 8
"""Pixels of the shorter side below which a picture is refused."""

MAX_PIXELS = 64 * 10**6
"""Pixels above which a picture is refused."""

BLANK_STDDEV = 1.0
"""Standard deviation of the pixels (0-255) up to which a picture is blank."""

VISIBLE_STEP = 16
"""Difference (0-255) from the ground that an eye sees."""

VISIBLE_SHARE = 0.005
"""Share of the pixels that must differ from the ground for the art on it to be seen."""

DARK_GROUND = (38, 38, 38)
"""RGB of the ground for transparent art that is white itself."""


def features_version(tokenizer_version: str) -> str:
    """Key of what a tokenizer makes of pictures: another rule of decoding makes other pixels.

    A key stays as it is, also one of an earlier rule.
    """
    return tokenizer_version if "/pictures-" in tokenizer_version else f"{tokenizer_version}/pictures-{RULE_VERSION}"


@dataclass(frozen=True)
class FileKind:
    """File name's ending and media type of a format."""

    extension: str
    media_type: str


FORMATS = {
    "PNG": FileKind("png", "image/png"),
    "JPEG": FileKind("jpg", "image/jpeg"),
    "MPO": FileKind("jpg", "image/jpeg"),
    "WEBP": FileKind("webp", "image/webp"),
    "GIF": FileKind("gif", "image/gif"),
    "BMP": FileKind("bmp", "image/bmp"),
    "TIFF": FileKind("tif", "image/tiff"),
    "AVIF": FileKind("avif", "image/avif"),
}
"""Pillow's names of the formats that are taken. MPO is a JPEG with further frames, as phones write it."""


class ImageProblem(Exception):
    """A property of the picture or of its address makes it unusable; the text says which."""


@dataclass(frozen=True)
class Decoded:
    """A picture's pixels, (H, W, 3) RGB, with the format of its file."""

    pixels: Pixels
    format: str
    blank: bool
    """All of it has one colour: usable, but counted by whoever reads it."""


def decode(data: bytes) -> Pixels:
    """Return (H, W, 3) sRGB pixels of the first frame, upright, 8 bits deep, laid on a ground.

    Raises:
        ImageProblem: not a picture, damaged, of another format, too large or too small.
    """
    return read(data).pixels


def read(data: bytes) -> Decoded:
    """Decode a picture and tell its format and whether it is blank.

    Raises:
        ImageProblem: as `decode`.
    """
    try:
        return _read(data)
    except ImageProblem:
        raise
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets
        words = " ".join(str(error).split()) or type(error).__name__
        shown = "".join(c if c.isprintable() else "?" for c in words)
        raise ImageProblem(f"damaged picture: {shown}"[:200]) from error


def _read(data: bytes) -> Decoded:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    # What Pillow warns about is decided by the rule below; a filter of our own for each call would not be safe between threads.
    warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
    if not data:
        raise ImageProblem("is empty")
    Image.init()  # some formats are registered by this only
    try:
        # MPO has no entry of its own: Pillow opens it as JPEG and then says what it is.
        image: Image.Image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError:
        raise ImageProblem(f"not a picture of a format that is taken ({', '.join(FORMATS)}){_hint(data)}") from None
    except Image.DecompressionBombError:
        raise ImageProblem(f"the number of its pixels is out of range ({MAX_PIXELS} at most)") from None
    with image:
        kind = image.format or ""
        if kind not in FORMATS:
            raise ImageProblem(f"format {kind or 'unknown'} is not taken ({', '.join(FORMATS)})")
        if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE:
            raise ImageProblem(
                f"{image.width}x{image.height} pixels is out of range (sides of {MIN_SIDE} or more, {MAX_PIXELS} pixels in all)"
            )
        image.load()
        pixels = np.ascontiguousarray(np.asarray(_flat(_upright(image)), dtype=np.uint8))
    return Decoded(pixels, kind, _is_blank(pixels))


def _hint(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return ": it is a web page"
    return ": it is SVG" if b"<svg" in start else ""


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; an EXIF block that cannot be read turns nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - the pixels are fine, only the block beside them is not
        return image


def _flat(image: Image.Image) -> Image.Image:
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
    """Grey of 16 or 32 bits, or of floating point, scaled to 8 bits."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray((values >> 8).astype(np.uint8))
    deep = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(deep.min()), float(deep.max())
    # Without a word about its scale: 0..1 and 0..255 for floats, 0..65535 for integers; what goes beyond is stretched to fit.
    scales = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    top = next((scale for scale in scales if low >= 0 and high <= scale), None)
    bottom, top = (0.0, top) if top is not None else (low, max(high, low + 1e-6))
    return Image.fromarray(np.rint((deep - bottom) * (255.0 / (top - bottom))).clip(0, 255).astype(np.uint8))


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
    except Exception:  # noqa: BLE001 - a broken profile leaves the picture as every viewer shows it
        return None
    return _converted(image, source)


def _lab_profile() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("LAB")


def _converted(image: Image.Image, source: Any) -> Image.Image | None:
    from PIL import ImageCms

    try:
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # noqa: BLE001 - a profile for another kind of picture
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


def _is_blank(pixels: Pixels) -> bool:
    step = max(1, max(pixels.shape) // 512)
    return bool(pixels[::step, ::step].reshape(-1, 3).std(axis=0).max() <= BLANK_STDDEV)
