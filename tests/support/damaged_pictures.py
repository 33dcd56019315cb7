"""Pictures as catalogues have them, by a seed: every format, whole and damaged; bombs."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


def png(size: tuple[int, int], depth: int, colour_type: int, rows: list[bytes], *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of raw rows; `more` are chunks before its pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [(b"IHDR", header), *more, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def many_scans(scans: int, side: int = 64) -> bytes:
    """A progressive JPEG of a few bytes that asks for `scans` passes over its pixels."""
    data = file(Image.new("L", (side, side), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + b"\xff\xd9"


def bombs() -> dict[str, bytes]:
    """Files of a few kilobytes that would be gigabytes, or hours."""
    gif = bytearray(file(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", 60_000, 60_000)
    bmp = bytearray(file(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", 50_000, 50_000)
    jpeg = bytearray(file(Image.new("RGB", (8, 8)), "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", 65_000, 65_000)
    return {
        "png": png((60_000, 60_000), 8, 2, []),
        "png that is true": png((30_000, 30_000), 1, 0, [bytes(3_750)] * 30_000),
        "gif": bytes(gif),
        "bmp": bytes(bmp),
        "jpeg": bytes(jpeg),
        "jpeg of many scans": many_scans(5_000),
        "webp": file(Image.new("L", (9_000, 8_000)), "WEBP", lossless=True, method=0),
        "tiff": file(Image.new("1", (9_000, 8_000)), "TIFF", compression="tiff_deflate"),
    }


@dataclass(frozen=True)
class Case:
    """One generated file."""

    name: str
    data: bytes


def _art(rng: np.random.Generator) -> Image.Image:
    """A picture of a film's size in small: a ground, a gradient and some boxes."""
    width, height = (int(side) for side in rng.integers(24, 97, 2))
    ramp = np.linspace(0, 1, height)[:, None, None]
    low, high = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    pixels = np.broadcast_to(low * (1 - ramp) + high * ramp, (height, width, 3)).astype(np.uint8).copy()
    for _ in range(4):
        x, y = rng.integers(0, width), rng.integers(0, height)
        pixels[y : y + 20, x : x + 20] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def _alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def _deep(image: Image.Image, kind: type[np.generic], top: float) -> Image.Image:
    return Image.fromarray((np.asarray(image.convert("L")).astype(np.float64) / 255 * top).astype(kind))


def _exif(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


Whole = Callable[[Image.Image], bytes]

KINDS: dict[str, Whole] = {
    "png": file,
    "png with alpha": lambda art: file(_alpha(art)),
    "png, grey with alpha": lambda art: file(_alpha(art).convert("LA")),
    "png with a palette": lambda art: file(art.convert("P"), transparency=3),
    "png of one bit": lambda art: file(art.convert("1")),
    "png of 16 bits": lambda art: file(_deep(art, np.uint16, 65_535)),
    "png, upside down": lambda art: file(art, exif=_exif(3)),
    "png, interlaced": lambda art: file(art, interlace=1),
    "jpeg": lambda art: file(art, "JPEG"),
    "jpeg, progressive": lambda art: file(art, "JPEG", progressive=True),
    "jpeg, CMYK": lambda art: file(art.convert("CMYK"), "JPEG"),
    "jpeg, grey": lambda art: file(art.convert("L"), "JPEG"),
    "jpeg, lying": lambda art: file(art, "JPEG", exif=_exif(6), icc_profile=_profile()),
    "jpeg of a phone": lambda art: file(art, "MPO", save_all=True, append_images=[art.rotate(90)]),
    "webp": lambda art: file(art, "WEBP"),
    "webp with alpha": lambda art: file(_alpha(art), "WEBP", lossless=True),
    "webp, moving": lambda art: file(art, "WEBP", save_all=True, append_images=[art.rotate(180)]),
    "gif": lambda art: file(art, "GIF"),
    "gif, moving": lambda art: file(art, "GIF", save_all=True, append_images=[art.rotate(180)], transparency=1),
    "bmp": lambda art: file(art, "BMP"),
    "tiff": lambda art: file(art, "TIFF"),
    "tiff, packed": lambda art: file(art, "TIFF", compression="tiff_lzw"),
    "tiff, jpeg": lambda art: file(art, "TIFF", compression="jpeg"),
    "tiff, CMYK": lambda art: file(art.convert("CMYK"), "TIFF"),
    "tiff, LAB": lambda art: file(art.convert("LAB"), "TIFF"),
    "tiff of 16 bits": lambda art: file(_deep(art, np.uint16, 65_535), "TIFF"),
    "tiff of floats": lambda art: file(_deep(art, np.float32, 1.0), "TIFF"),
    "avif": lambda art: file(art, "AVIF", speed=10),
    "avif with alpha": lambda art: file(_alpha(art), "AVIF", speed=10),
    "a format that is not taken": lambda art: file(art, "PPM"),
}


def _flipped(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return data


def _shortened(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 9)]
    return data


def _lengthened(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randrange(1, 9))
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    del data[rng.randrange(1, len(data)) :]
    return data


def _zeroed(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.randrange(1, 400))
    data[at:end] = bytes(end - at)
    return data


def _damaged_head(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(min(64, len(data)))] = rng.choice([0, 255, rng.randrange(256)])
    return data


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "whole": lambda data, rng: data,
    "bytes flipped": _flipped,
    "bytes lost": _shortened,
    "bytes added": _lengthened,
    "cut off": _cut,
    "a hole of zeros": _zeroed,
    "damaged head": _damaged_head,
    "text before it": lambda data, rng: bytearray(b"\r\n<!-- cached -->") + data,
}


def pictures(count: int, seed: int) -> Iterator[Case]:
    """`count` files, each kind with each damage in turn; the same ones for a seed."""
    rng = random.Random(seed)
    art = np.random.default_rng(seed)
    both = [(kind, damage) for damage in DAMAGES for kind in KINDS]
    rng.shuffle(both)
    for number in range(count):
        kind, damage = both[number % len(both)]
        data = DAMAGES[damage](bytearray(KINDS[kind](_art(art))), rng)
        yield Case(f"{number}: {kind}, {damage}", bytes(data))
