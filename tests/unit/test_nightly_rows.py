"""Rows of the night's tables."""

from __future__ import annotations

from dataclasses import replace

from generator.nightly.rows import CandidateRow, Drawing, Outcome, PosterRow, Rendition
from generator.nightly.select import ImageHash
from schemas.tables import Poster

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
    look=str(ImageHash(0, bytes([10] * 48))),
    cs=1.0,
    cis_reference=2.0,
    cis_history=3.0,
    score=4.0,
    propensity=0.75,
    safety="unchecked",
    synthetic=True,
)


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
