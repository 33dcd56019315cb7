"""Icon art from six tiny sets made here: matching, drawing, caching."""

import io
import json
import stat
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from generator.datasets import STYLES, DatasetError, load_icons
from generator.datasets.fetch import fetch_icons, versions_key
from generator.datasets.icons import match_concepts, render_icon, slug_of

SQUARE = '<rect width="32" height="32" fill="#ff0000"/>'
CODELESS = ("noto-v1", "fluent-emoji")  # these two sets publish no code points


def write_art(folder: Path) -> None:
    """Three emoji: a cat drawn by all sets, a rocket that one set lacks.

    And an eye with a variation selector.
    """
    for style in STYLES:
        icons = {"cat-face": {"body": SQUARE}, "rocket": {"body": SQUARE}, "eye": {"body": SQUARE}}
        if style == "twemoji":
            del icons["rocket"]
        chars = {"1f431": "cat-face", "1f680": "rocket", "1f441-fe0f": "eye"}
        write(folder / style / "icons.json", {"width": 32, "height": 32, "icons": icons})
        write(
            folder / style / "chars.json", {} if style in CODELESS else {k: v for k, v in chars.items() if v in icons}
        )
    rows = [
        {"label": "eye", "hexcode": "1F441", "emoji": "👁", "order": 3, "group": 0, "subgroup": 0},
        {"label": "rocket", "hexcode": "1F680", "emoji": "🚀", "order": 2, "group": 0, "subgroup": 0},
        {
            "label": "cat face",
            "hexcode": "1F431",
            "emoji": "🐱",
            "order": 1,
            "group": 1,
            "subgroup": 0,
            "tags": ["pet"],
        },
        {"label": "regional indicator A", "hexcode": "1F1E6", "emoji": "🇦"},
    ]
    write(folder / "labels/en/data.json", rows)
    groups = {"groups": {"0": "objects", "1": "symbols"}, "subgroups": {"0": "things"}}
    write(folder / "labels/meta/groups.json", groups)


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def test_a_concept_is_what_all_styles_draw(tmp_path: Path) -> None:
    write_art(tmp_path)
    concepts = match_concepts(tmp_path)
    assert [concept.slug for concept in concepts] == ["cat-face", "eye"]
    assert concepts[0].tags == ("pet",)
    assert [concept.group for concept in concepts] == ["symbols", "objects"]


def test_icons_are_drawn_once_and_read_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_art(tmp_path / f"art-{versions_key()}")
    first = load_icons(tmp_path)
    monkeypatch.setattr("generator.datasets.icons.render_icon", None)  # drawing again would now fail
    again = load_icons(tmp_path)
    assert again.pixels.shape == (2, 6, 64, 64, 4)
    assert np.array_equal(first.pixels, again.pixels)
    assert again.concepts == first.concepts
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"half"), lambda path: path.unlink()])
def test_damaged_pixels_say_what_to_delete(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_art(tmp_path / f"art-{versions_key()}")
    load_icons(tmp_path)
    (pixels,) = tmp_path.glob("icons-*.npy")
    damage(pixels)
    with pytest.raises(DatasetError, match=r"cannot read .*npy: .*; delete .*json and try again"):
        load_icons(tmp_path)


def test_larger_icons_come_from_the_vectors(tmp_path: Path) -> None:
    write_art(tmp_path / f"art-{versions_key()}")
    art = load_icons(tmp_path)
    assert art.icon("eye", "noto", 100).shape == (100, 100, 4)
    with pytest.raises(DatasetError, match="no concept 'rocket' among the 2"):
        art.icon("rocket", "noto")
    with pytest.raises(DatasetError, match="no style 'cubism'; one of noto"):
        art.icon("eye", "cubism")


def test_a_wide_icon_is_padded_and_a_mirrored_alias_is_mirrored() -> None:
    wide = {"body": '<rect width="18" height="18" fill="#00ff00"/>', "width": 36, "height": 18}
    icon_set = {"icons": {"left": wide}, "aliases": {"right": {"parent": "left", "hFlip": True}}}
    left, right = render_icon(icon_set, "left", 64), render_icon(icon_set, "right", 64)
    assert left[32, 16].tolist() == [0, 255, 0, 255]
    assert left[4, 16, 3] == 0, "above the picture is padding"
    assert left[32, 48, 3] == 0
    assert np.array_equal(right, left[:, ::-1])


def test_an_unreadable_icon_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot draw icon 'bad'"):
        render_icon({"width": 32, "height": 32, "icons": {"bad": {"body": "<rect"}}}, "bad", 64)


@pytest.mark.parametrize(
    ("label", "slug"), [("cat face", "cat-face"), ("woman’s hat", "womans-hat"), ("piñata", "pinata")]
)
def test_slugs_are_those_of_the_icon_sets(label: str, slug: str) -> None:
    assert slug_of(label) == slug


def fake_npm(folder: Path, files: list[str], exit_code: int = 0) -> str:
    """A program that packs `files`, or complains and fails, as `npm pack` does; it counts its calls."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in files:
            member = tarfile.TarInfo(f"package/{name}")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"{}"))
    (folder / "package.tgz").write_bytes(buffer.getvalue())
    program = folder / "npm"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        f"folder = pathlib.Path({str(folder)!r})\n"
        "with (folder / 'calls').open('a') as log: log.write(sys.argv[-1] + '\\n')\n"
        f"if {exit_code}: sys.exit('npm error code E404\\nnpm error 404 Not Found')\n"
        "target = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
        "shutil.copy(folder / 'package.tgz', target)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


ALL_FILES = ["icons.json", "chars.json", "en/data.json", "meta/groups.json"]


def test_a_finished_download_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = fake_npm(tmp_path / "bin", ALL_FILES)
    monkeypatch.setattr("shutil.which", lambda _: npm)
    target = fetch_icons(tmp_path / "cache")
    assert fetch_icons(tmp_path / "cache") == target
    assert sorted(path.name for path in target.iterdir()) == sorted([*STYLES, "labels"])
    assert len((tmp_path / "bin/calls").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("files", "exit_code", "message"),
    [
        (ALL_FILES, 1, r"npm could not download @iconify-json/noto@1.2.9 \(exit 1\): npm error 404 Not Found"),
        (["icons.json"], 0, "package @iconify-json/noto@1.2.9 has no file chars.json"),
    ],
)
def test_a_failed_download_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], exit_code: int, message: str
) -> None:
    npm = fake_npm(tmp_path / "bin", files, exit_code)
    monkeypatch.setattr("shutil.which", lambda _: npm)
    with pytest.raises(DatasetError, match=message):
        fetch_icons(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
