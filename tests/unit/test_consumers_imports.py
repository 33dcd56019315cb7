"""Files of events: every bad row is named by line and field, and none of the good ones is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from consumers.files import images, imports
from schemas.errors import InputError
from schemas.events import CATALOG, INTERACTIONS
from schemas.settings import Settings

CLICKS = """\
{"user_id": "u1", "item_id": "i1", "kind": "click", "occurred_at": "2026-11-01T00:00:00Z"}

{"user_id": "u1", "item_id": "i1", "kind": "click"}
[1]
{bad
{"user_id": "u1", "item_id": "i1", "kind": "click", "occurred_at": "2026-11-01T00:00:00Z"}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    path = tmp_path / "catalog.csv"
    path.write_text(
        "item_id,title,genres,image_uri,attributes\n"
        'i2,Two,Drama | Comedy,good.png,"{""year"": 1990}"\n'
        "i3,,x,good.png,\n"
        "i4,Four,x,bad.png,\n"
        "i5,Five,x,missing.png,\n"
        "i6,Six,x,,\n"
        "i7,Seven,,https://example.org/x.png,\n"
        "i8,Eight,x,ftp://example.org/x.png,\n"
        "i9,Nine,x,good.png,{bad\n"
        "i10,Ten,x,good.png,,more\n"
    )
    return path


def test_each_bad_row_of_a_catalogue_is_named(catalog: Path):
    report = imports.run(Settings(), CATALOG, imports.look(CATALOG, catalog), dry_run=True)
    assert report.sent == 2
    problems = dict(report.first)
    assert sorted(problems) == [3, 4, 5, 6, 8, 9, 10]
    assert problems[3] == "title: is missing: add it"
    assert "bad.png" in problems[4]
    assert "No such file" in problems[5]
    assert problems[6].startswith("image_uri: is missing")
    assert "ftp://" in problems[8]
    assert problems[9].startswith("attributes: ")
    assert "6 values for 5 columns" in problems[10]


def test_strict_refuses_the_file_and_names_the_first_bad_row(catalog: Path):
    with pytest.raises(InputError, match=r"7 bad rows, nothing was sent \(--strict\); line 3: title"):
        imports.run(Settings(), CATALOG, imports.look(CATALOG, catalog), dry_run=True, strict=True)


def test_rows_without_an_event_id_get_the_same_one_each_time(tmp_path: Path):
    path = tmp_path / "clicks.jsonl"
    path.write_text(CLICKS)
    ids = []
    for _ in range(2):
        report = imports.Report()
        source = imports._source(Settings(), INTERACTIONS, imports.look(INTERACTIONS, path), None, report)
        ids += [event.event_id for _, event in source]
    assert len(ids) == 4
    assert len(set(ids)) == 1, "a row that says the same is the same event"
    assert sorted(line for line, _ in report.first) == [3, 4, 5]


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path):
    with pytest.raises(InputError, match=r"absent.csv: No such file"):
        imports.look(CATALOG, tmp_path / "absent.csv")


def test_uris_are_paths_relative_to_the_file_unless_they_say_otherwise(tmp_path: Path):
    assert images.local_path("a/b.png", tmp_path) == tmp_path / "a/b.png"
    assert images.local_path("/a/b.png", tmp_path) == Path("/a/b.png")
    assert images.local_path("file:///a/b%20c.png", tmp_path) == Path("/a/b c.png")
    assert images.local_path("s3://bucket/key", tmp_path) is None
