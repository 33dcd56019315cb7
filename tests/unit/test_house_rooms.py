"""Every module in a room, every room on its map, and no circles between rooms."""

from __future__ import annotations

import pytest

from tests.support import random_lines, rooms

PACKAGES = sorted(rooms.packages())
MOST_CHILDREN = {"generator.training": 9, "consumers": 12}
"""Modules and packages that a package may hold directly."""
NO_MAP = {"migrations.versions"}
"""A revision names itself."""

EVERYWHERE = {"commands"}
"""What a part adds to the command line is always there."""


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_map_names_exists(package: str) -> None:
    gone = rooms.unknown(package)
    assert not gone, f"{package}/__init__.py names {gone}, which do not exist"


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in NO_MAP])
def test_a_map_names_every_module(package: str) -> None:
    missing = sorted(rooms.children(package) - rooms.named(package) - EVERYWHERE)
    assert not missing, f"{package}/__init__.py does not name {missing}; a map's line is '    name   what it is'"


@pytest.mark.parametrize(("package", "most"), MOST_CHILDREN.items())
def test_a_room_is_not_crowded(package: str, most: int) -> None:
    assert len(rooms.children(package)) <= most, sorted(rooms.children(package))


def test_no_module_imports_itself_by_way_of_others() -> None:
    assert not rooms.circle(rooms.imports_at_import_time())


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_do_not_import_each_other(package: str) -> None:
    found = rooms.circle(rooms.between_rooms(package))
    assert not found, " -> ".join(found)


def test_a_circle_is_found() -> None:
    assert set(rooms.circle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})) == {"a", "b", "c"}


def test_a_maps_line_is_read() -> None:
    line = rooms.MAP_LINE.match
    assert line("    loop/summary, progress   a run in numbers")
    assert line("    postgres, tansu, triton (triton_env, triton_control)   one module per server")
    assert not line("    art = load_icons(cache_dir)       # IconArt")
    assert not line("    pairs -> split -> snapshot")


def test_lines_at_random_are_code_and_the_same_for_a_seed() -> None:
    lines = random_lines.drawn(12, seed=3)
    assert lines == random_lines.drawn(12, seed=3)
    for path, number, line in lines:
        assert (rooms.ROOT / path).read_text(encoding="utf-8").splitlines()[number - 1].strip() == line
        assert not line.startswith(("#", "import ", '"""'))
