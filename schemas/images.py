"""What a picture is: one list of formats and one rule that decides and decodes.

For import and night alike.

Pillow and NumPy are imported inside functions, so that this module is light to import.
"""

from __future__ import annotations

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.image_colours import flat, scale_transparent_colour

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Pixels = npt.NDArray[np.uint8]

RULE_VERSION = 3
"""Number of the rule that turns bytes into pixels; part of the key of whatever is cached of a picture."""

MIN_SIDE = 8
"""Pixels of the shorter side below which a picture is refused."""

MAX_PIXELS = 64 * 10**6
"""Pixels above which a picture is refused."""

PIXELS_AT_ONCE = MAX_PIXELS
"""Pixels that the threads of a process decode at the same time; at most 30 bytes of memory each."""

MAX_SCANS = 100
"""Passes over its pixels that a JPEG may ask for; real ones have about ten, and each costs as much as a picture."""

BLANK_STDDEV = 1.0
"""Standard deviation of the pixels (0-255) up to which a picture is blank."""


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
        count = image.width * image.height
        if count > MAX_PIXELS or min(image.size) < MIN_SIDE:
            raise ImageProblem(
                f"{image.width}x{image.height} pixels is out of range (sides of {MIN_SIDE} or more, {MAX_PIXELS} pixels in all)"
            )
        if kind in {"JPEG", "MPO"}:
            _check_scans(data)
        with _room.taken(count):
            scale_transparent_colour(image)
            image.load()
            _turn_upright(image)
            pixels = np.ascontiguousarray(np.asarray(flat(image), dtype=np.uint8))
            return Decoded(pixels, kind, _is_blank(pixels))


class _Room:
    """A number of pixels that threads share while they decode."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until so many are free, and take them for the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._left >= pixels)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_room = _Room(PIXELS_AT_ONCE)

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)
"""What begins a part of a JPEG: inside coded pixels 0xFF is followed by 0 or by a restart's number."""


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG of a few bytes that would be decoded for hours."""
    scans, at = 0, 2
    while found := _MARKER.search(data, at):
        kind = found[1][0]
        if kind == 0xD9:  # the end; what follows are further frames
            return
        scans += kind == 0xDA
        if scans > MAX_SCANS:
            raise ImageProblem(f"has more than {MAX_SCANS} scans")
        at = found.end() + (int.from_bytes(data[found.end() : found.end() + 2]) if kind != 0x01 else 0)


def _hint(data: bytes) -> str:
    start = data[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return ": it is a web page"
    return ": it is SVG" if b"<svg" in start else ""


def _turn_upright(image: Image.Image) -> None:
    """Turn the picture as its EXIF orientation says; an EXIF block that cannot be read turns nothing."""
    from PIL import ImageOps

    # The pixels are fine when only the block beside them is not. In place: a copy of a large picture is 250 MB.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _is_blank(pixels: Pixels) -> bool:
    step = max(1, max(pixels.shape) // 512)
    return bool(pixels[::step, ::step].reshape(-1, 3).std(axis=0).max() <= BLANK_STDDEV)
