"""What a picture is: one rule for import and night."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from schemas.image_colours import DARK_GROUND
from schemas.images import FORMATS, MAX_PIXELS, ImageProblem, decode, read


def art(height: int = 40, width: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **options)
    return made.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_of_the_list_is_read(kind: str) -> None:
    more = {"save_all": True, "append_images": [art().rotate(90)]} if kind == "MPO" else {}
    decoded = read(file(art(), kind, **more))
    assert (decoded.format, decoded.pixels.shape, decoded.pixels.dtype) == (kind, (40, 30, 3), np.uint8)
    assert not decoded.blank


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "EPS"])
def test_other_formats_are_refused_whatever_pillow_can_do(kind: str) -> None:
    with pytest.raises(ImageProblem, match="not a picture of a format"):
        decode(file(art(32, 32), kind))


def test_a_web_page_and_svg_are_named() -> None:
    for data, words in ((b"\n<!DOCTYPE HTML><p>", "web page"), (b"<svg xmlns='x'/>", "SVG"), (b"", "empty")):
        with pytest.raises(ImageProblem, match=words):
            decode(data)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (300, 7), (8001, 8000)])
def test_pictures_out_of_range_are_refused(width: int, height: int) -> None:
    with pytest.raises(ImageProblem, match=f"{width}x{height} pixels is out of range"):
        decode(file(Image.new("1", (width, height))))
    assert MAX_PIXELS < 8001 * 8000


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    for side in (10_000, 60_000):  # Pillow warns of the first and refuses the second
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b""))]
        bomb = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        with pytest.raises(ImageProblem, match="pixels"):
            decode(b"\x89PNG\r\n\x1a\n" + bomb)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_pictures_are_turned_as_their_camera_says(kind: str) -> None:
    half = Image.new("RGB", (32, 16), "black")
    half.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(file(half, kind, exif=exif))
    assert pixels.shape == (32, 16, 3)
    assert pixels[4, 8, 0] > 200
    assert pixels[28, 8, 0] < 50


def test_a_broken_exif_block_turns_nothing() -> None:
    assert decode(file(art(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\xff\x00\x01")).shape == (40, 30, 3)


@pytest.mark.parametrize(
    "deep",
    [
        np.linspace(0, 65535, 4096).astype(np.uint16),
        np.linspace(0, 1, 4096).astype(np.float32),
        np.linspace(0, 255, 4096).astype(np.float32),
        np.linspace(-7, 9000, 4096).astype(np.float32),
        np.linspace(0, 2**31 - 1, 4096).astype(np.int32),
    ],
)
def test_depth_is_scaled_to_eight_bits(deep: Any) -> None:
    pixels = decode(file(Image.fromarray(deep.reshape(64, 64)), "TIFF"))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert abs(pixels.mean() - 127.5) < 1
    if deep.dtype == np.uint16:
        assert np.array_equal(decode(file(Image.fromarray(deep.reshape(64, 64)), "PNG")), pixels)


def test_nothing_but_not_a_number_is_black() -> None:
    assert not decode(file(Image.fromarray(np.full((16, 16), np.nan, np.float32)), "TIFF")).any()


@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        ((255, 255, 255, 255), DARK_GROUND),
        ((250, 250, 250, 255), DARK_GROUND),
        ((0, 0, 0, 255), (255, 255, 255)),
        ((200, 30, 30, 255), (255, 255, 255)),
        ((38, 38, 38, 255), (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_transparent_art_lies_on_white_unless_it_would_vanish(
    ink: tuple[int, ...], ground: tuple[int, int, int], mode: str
) -> None:
    image = Image.new("RGBA", (64, 64), (*ink[:3], 0))
    image.paste(ink, (20, 20, 40, 40))
    if mode == "P":
        palette = Image.new("P", (64, 64), 0)
        palette.putpalette([1, 2, 3, *ink[:3]])
        palette.paste(1, (20, 20, 40, 40))
        data = file(palette, transparency=0)
    else:
        data = file(image.convert("LA") if mode == "LA" else image, "TIFF" if mode == "PA" else "PNG")
    decoded = read(data)
    assert tuple(decoded.pixels[2, 2]) == ground
    assert not decoded.blank


@pytest.mark.parametrize("image", [Image.new("RGB", (9, 9), "red"), Image.new("RGBA", (9, 9), (1, 2, 3, 0))])
def test_blank_pictures_are_told(image: Image.Image) -> None:
    assert read(file(image)).blank


def test_colour_profiles_are_converted_to_srgb() -> None:
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.createProfile("sRGB")
    shown = decode(file(ImageCms.profileToProfile(art(), srgb, lab, outputMode="LAB"), "TIFF"))
    assert np.abs(shown.astype(int) - np.asarray(art()).astype(int)).mean() < 3
    # An sRGB profile changes nothing, a broken one or one of another kind neither.
    for profile in (ImageCms.ImageCmsProfile(srgb).tobytes(), b"no profile", ImageCms.ImageCmsProfile(lab).tobytes()):
        assert np.array_equal(decode(file(art(), icc_profile=profile)), np.asarray(art()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_are_read(mode: str) -> None:
    kind = "JPEG" if mode in {"CMYK", "YCbCr"} else "PNG"
    assert decode(file(art().convert(mode), kind)).shape == (40, 30, 3)


def test_whatever_the_bytes_only_a_problem_of_the_picture_comes_out() -> None:
    """Damaged files: bytes flipped, cut out, doubled, cut off; a seed makes each failure come again."""
    rng = random.Random(20_260_301)
    exif = Image.Exif()
    exif[0x0112] = 3
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    whole = [file(art(), kind) for kind in FORMATS if kind != "MPO"]
    whole += [file(art(), kind, exif=exif, icc_profile=profile) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")]
    whole += [file(art().convert("P"), "GIF", save_all=True, append_images=[art()]), file(art(), "MPO", save_all=True)]
    whole += [file(art().convert("RGBA"), "TIFF", compression=way) for way in ("tiff_lzw", "tiff_deflate", "jpeg")[:2]]
    outcomes = {"read": 0, "refused": 0}
    for number in range(600):
        data = bytearray(whole[number % len(whole)])
        for _ in range(rng.choice([1, 1, 3, 20])):
            at = rng.randrange(len(data))
            way = rng.randrange(4)
            if way == 0:
                data[at] = rng.randrange(256)
            elif way == 1:
                del data[at : at + rng.randrange(1, 9)]
            elif way == 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            elif len(data) > 64:
                del data[max(32, at) :]
        words = ""
        try:
            assert decode(bytes(data)).ndim == 3
        except ImageProblem as problem:
            words = str(problem)
        outcomes["refused" if words else "read"] += 1
        assert not words or words.isprintable()
    assert min(outcomes.values()) > 50, outcomes


def test_the_rules_are_light_to_import() -> None:
    code = (
        "import sys, schemas.fetch, schemas.images; "
        "print(sorted({'PIL', 'numpy', 'boto3', 'urllib3', 'botocore'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
