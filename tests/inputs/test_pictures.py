"""Pictures as catalogues have them (INPUTS 13, 16, 17): one rule for import and night.

Public reports: bing_image_downloader#30; wagtail#729, sd-scripts#1316, Pillow#2574, Pillow#3011.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumers.files.images import check
from generator.nightly.plan import Scope
from generator.storage.postgres import connect
from schemas.image_colours import DARK_GROUND
from schemas.images import MAX_PIXELS, MAX_SCANS, PIXELS_AT_ONCE, ImageProblem, decode, read
from schemas.settings import Settings
from schemas.tables import NightTask
from tests.support.damaged_pictures import DAMAGES, KINDS, bombs, file, many_scans, pictures, png
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import build, night, reader, set_item, set_user

SEED = 20_261_129
CASES = int(os.environ.get("PICTURE_CASES", "40"))
"""Pictures of a night; `make faults` takes 2,000."""

PEAK_MIB = 30 * MAX_PIXELS // 2**20 + 400
"""Memory of a process that decodes pictures in several threads: 30 bytes for each pixel at once, and its libraries."""


def outcome(data: bytes) -> str:
    """What becomes of a picture: "read", or why it is refused."""
    try:
        read(data)
    except ImageProblem as problem:
        return str(problem)
    return "read"


def imported(path: Path) -> str:
    """What an import makes of a file, in the same words."""
    try:
        check(path, 2**20)
    except ImageProblem as problem:
        return str(problem)
    return "read"


@pytest.mark.parametrize("kind", KINDS)
def test_import_and_night_agree_on_every_kind_of_picture(kind: str, tmp_path: Path) -> None:
    """INPUTS 16, 17: import refused what the night would read, and took what it refused."""
    art = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    for damage, make in DAMAGES.items():
        data = bytes(make(bytearray(KINDS[kind](art)), random.Random(f"{kind} {damage}")))
        (tmp_path / "picture").write_bytes(data)
        night_says = outcome(data)
        assert imported(tmp_path / "picture").endswith(night_says), damage
        if damage == "whole":
            assert (night_says == "read") == (kind != "a format that is not taken")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (9_400, 9_500)])
def test_both_refuse_the_same_sizes(width: int, height: int, tmp_path: Path) -> None:
    """INPUTS 17: 1x1, 7x300 and 89 megapixels."""
    (tmp_path / "picture").write_bytes(png((width, height), 1, 0, [bytes((width + 7) // 8)] * height))
    with pytest.raises(ImageProblem, match=f"{width}x{height} pixels is out of range"):
        check(tmp_path / "picture", 2**20)


def test_both_refuse_files_past_the_one_limit(tmp_path: Path) -> None:
    """INPUTS 17: 32 MiB, where the night takes 20."""
    (tmp_path / "picture").write_bytes(bytes(2**20 + 1))
    with pytest.raises(ImageProblem, match=r"larger than 1048576 bytes \(setting night.max_image_bytes\)"):
        check(tmp_path / "picture", 2**20)


TRANSPARENT = {
    "16 bits, grey": png((32, 32), 16, 0, [b"\x12\x34" * 16 + b"\xff\xff" * 16] * 32, (b"tRNS", b"\x12\x34")),
    "16 bits, colour": png((32, 32), 16, 2, [b"\x12\x34" * 48 + b"\xff\xff" * 48] * 32, (b"tRNS", b"\x12\x34" * 3)),
    "4 bits": png((32, 32), 4, 0, [b"\x33" * 8 + b"\xff" * 8] * 32, (b"tRNS", b"\x00\x03")),
    "2 bits": png((32, 32), 2, 0, [b"\x55" * 4 + b"\xff" * 4] * 32, (b"tRNS", b"\x00\x01")),
    "1 bit": png((32, 32), 1, 0, [b"\x00\x00\xff\xff"] * 32, (b"tRNS", b"\x00\x00")),
}
"""White art on a transparent colour."""


@pytest.mark.parametrize("depth", TRANSPARENT)
def test_a_transparent_colour_is_ground_at_every_depth(depth: str) -> None:
    """INPUTS 16: white art on transparency stays to be seen."""
    pixels = decode(TRANSPARENT[depth])
    assert tuple(pixels[4, 4]) == DARK_GROUND
    assert tuple(pixels[4, 28]) == (255, 255, 255)


def test_no_jpeg_is_decoded_for_hours() -> None:
    """INPUTS 13: 55 KB that ask for 5,000 passes; the markers of a thumbnail inside are no passes."""
    assert outcome(many_scans(20)) == "read"
    assert outcome(many_scans(5_000)) == f"has more than {MAX_SCANS} scans"
    plain = file(Image.new("L", (64, 64), 90), "JPEG")
    comment = b"\xff\xda" * 500
    assert outcome(plain[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + plain[2:]) == "read"


def test_bombs_are_refused_by_their_head_in_little_memory() -> None:
    """INPUTS 13, 17: in a process of its own, which could not hold one of them."""
    folder = Path(__file__).parents[2]
    script = """
import resource, sys
from tests.support.damaged_pictures import bombs
from schemas.images import ImageProblem, read
made = bombs()
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
for name, data in made.items():
    try:
        read(data)
        print(name, "was read")
    except ImageProblem as problem:
        assert "MemoryError" not in str(problem), (name, problem)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - limit)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64, done.stdout
    assert len(bombs()) == 8


def test_threads_share_one_bound_of_pixels() -> None:
    """INPUTS 13: three threads with pictures of 45 megapixels, of which one is decoded at a time."""
    script = """
import resource
from concurrent.futures import ThreadPoolExecutor
from schemas.images import read
from tests.support.damaged_pictures import png
data = png((7_000, 6_500), 8, 6, [bytes(28_000)] * 6_500)
with ThreadPoolExecutor(3) as pool:
    print(*{one.pixels.shape for one in pool.map(read, [data] * 3)})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True
    )
    shape, peak = done.stdout.splitlines()
    assert shape == "(6500, 7000, 3)"
    assert PIXELS_AT_ONCE < 2 * 7_000 * 6_500
    assert int(peak) < PEAK_MIB


def test_whatever_the_bytes_only_a_problem_of_the_picture_comes_out() -> None:
    """INPUTS 13: every kind of picture with every damage, in several threads."""
    cases = list(pictures(max(CASES, len(KINDS) * len(DAMAGES)), SEED))
    with ThreadPoolExecutor(4) as pool:
        outcomes = dict(zip(cases, pool.map(lambda case: outcome(case.data), cases), strict=True))
    assert all(words.isprintable() and len(words) <= 200 for words in outcomes.values())
    read_ones = sum(words == "read" for words in outcomes.values())
    assert len(cases) // 5 < read_ones < len(cases)


@pytest.mark.integration
def test_a_picture_changes_no_night_but_its_own_task(settings: Settings, tmp_path: Path) -> None:
    """INPUTS 13: of each user's two targets one is generated; the other one is drawn whatever it is."""
    cases = list(pictures(CASES, SEED))
    build(settings, tmp_path / "art", users=0)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        for number, case in enumerate(cases):
            path = tmp_path / f"case{number}"
            path.write_bytes(case.data)
            set_item(session, f"case{number}", tmp_path, image_uri=f"file://{path}")
            liked = [f"item{(number + step) % 8}" for step in range(4)]
            set_user(session, f"u{number}", liked, [f"case{number}", f"item{8 + number % 4}"])
    night(settings, FakePigeon()).run(Scope())
    with Session(engine) as session:
        tasks = {(task.user_id, task.item_id): task.status for task in session.scalars(select(NightTask))}
    engine.dispose()
    wanted = {(f"u{number}", f"item{8 + number % 4}"): "done" for number in range(len(cases))}
    wanted |= {
        (f"u{number}", f"case{number}"): "done" for number, case in enumerate(cases) if outcome(case.data) == "read"
    }
    assert tasks == wanted
    assert {(row["user_id"], row["item_id"]) for row in reader(settings).rows().to_pylist()} == set(wanted)
