"""Rows of the night's tables, and which of them are withheld from the manifest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generator.nightly.manifest_rows import withhold_copies
from generator.nightly.rows import CandidateRow, Drawing, ManifestRow, Outcome, PosterRow, Rendition
from generator.nightly.select import ImageHash
from schemas.settings import NightSettings
from schemas.tables import Poster

RED, BLUE = (str(ImageHash(shapes, bytes([colour] * 48))) for shapes, colour in ((0, 10), (2**64 - 1, 240)))
ROW = PosterRow(
    poster_id="p",
    run_id="r",
    user_id="u",
    item_id="i",
    variant=0,
    input_fingerprint="f",
    model_version="m",
    alpha=0.5,
    seed=7,
    tokens=(1, 2),
    art_key="a",
    art_sha256="b",
    sizes=(Rendition(400, 600, "k", "s"), Rendition(200, 300, "k2", "s2")),
    look=RED,
    cs=1.0,
    cis_reference=2.0,
    cis_history=3.0,
    score=4.0,
    propensity=0.75,
    safety="unchecked",
    synthetic=True,
)


def current(user: str, look: str, *, tonight: bool = True, variant: int = 0, propensity: float = 1.0) -> ManifestRow:
    name = f"{user}-{variant}"
    poster = replace(ROW, poster_id=name, user_id=user, look=look, variant=variant, propensity=propensity)
    return ManifestRow(poster, tonight, None)


def test_a_poster_row_has_the_tables_columns_and_comes_back_from_them() -> None:
    columns = ROW.columns()
    assert set(columns) < set(Poster.__table__.columns.keys())
    assert columns["renditions"] == [{"width": 200, "height": 300, "image_key": "k2", "image_sha256": "s2"}]
    assert (columns["width"], columns["height"], columns["image_key"]) == (400, 600, "k")
    assert PosterRow.parse({**columns, "created_at": None}) == ROW


def test_a_task_that_failed_keeps_what_an_earlier_drawing_left() -> None:
    candidate = CandidateRow(0, 0.12345678, 1.00001, 2.0, 3.0, 4.0, None)
    assert CandidateRow.parse(candidate.json()) == replace(candidate, alpha=0.123457, cs=1.0)
    done = Outcome("done", 1, drawing=Drawing((candidate,), {"p": 1}, 2.5)).columns()
    assert done == {
        "status": "done",
        "attempts": 1,
        "reason": None,
        "candidates": [candidate.json()],
        "prompt": {"p": 1},
        "seconds": 2.5,
    }
    assert Outcome("failed", 3, "why").columns() == {"status": "failed", "attempts": 3, "reason": "why"}


def test_the_first_user_keeps_an_image_and_a_carried_poster_comes_before_all() -> None:
    rows = [current("ann", RED), current("bob", RED), current("cid", BLUE)]
    settings = NightSettings()
    assert [bool(row.withheld) for row in withhold_copies(rows, settings)] == [False, True, False]
    rows = [*rows, current("eve", RED, tonight=False)]
    assert [bool(row.withheld) for row in withhold_copies(rows, settings)] == [True, True, False, False]
    assert withhold_copies(withhold_copies(rows, settings), settings) == withhold_copies(rows, settings)


def test_what_is_left_of_a_task_shares_the_whole_probability() -> None:
    rows = [
        current("ann", RED),
        current("bob", RED, variant=0, propensity=0.75),
        current("bob", BLUE, variant=1, propensity=0.25),
    ]
    left = [row for row in withhold_copies(rows, NightSettings()) if row.withheld is None]
    assert [(row.poster.user_id, row.poster.propensity) for row in left] == [("ann", 1.0), ("bob", pytest.approx(1.0))]
