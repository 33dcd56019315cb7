"""The manifest's bytes, its pointer, and how a variant is chosen. The reader on a real store: tests/faults/test_manifest_reader.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from schemas.manifest import ITEM_SCHEMA, POSTER_SCHEMA, ManifestRef, Pointer, _pick, from_parquet, to_parquet

REF = ManifestRef("night-1", "2026-03-01", "m.parquet", "0" * 64, "i.parquet", "1" * 64, 2, "nano-1")
ROW = {
    "user_id": "ü",
    "item_id": "i",
    "variant": 0,
    "poster_id": "p",
    "image_key": "posters/a.webp",
    "image_sha256": "a",
    "width": 400,
    "height": 600,
    "propensity": 0.75,
    "score": 1 / 3,
    "cs": 20.0,
    "cis_reference": 30.0,
    "cis_history": 40.0,
    "alpha": 0.5,
    "seed": 2**53 - 1,
    "safety": "unchecked",
    "model_version": "nano-1",
    "synthetic": True,
    "drawn_by_run": "night-1",
    "renditions": [{"width": 100, "height": 150, "image_key": "posters/b.webp", "image_sha256": "b"}],
}


def test_the_same_rows_give_the_same_bytes_and_come_back() -> None:
    first = to_parquet([{**ROW, "not in the schema": object()}], POSTER_SCHEMA, run_id="night-1")
    assert first == to_parquet([dict(reversed(ROW.items()))], POSTER_SCHEMA, run_id="night-1")
    (row,) = from_parquet(first, POSTER_SCHEMA).to_pylist()
    assert row["seed"] == ROW["seed"]
    assert row["renditions"] == ROW["renditions"]
    assert from_parquet(to_parquet([], POSTER_SCHEMA), POSTER_SCHEMA).schema.equals(POSTER_SCHEMA)


def test_a_row_without_a_required_value_is_refused() -> None:
    with pytest.raises(KeyError, match="image_key"):
        to_parquet([{k: v for k, v in ROW.items() if k != "image_key"}], POSTER_SCHEMA)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not parquet", "not a Parquet file"),
        (to_parquet([], ITEM_SCHEMA), "columns .* are missing"),
        (
            to_parquet([], POSTER_SCHEMA.with_metadata({"manifest_version": "9"})),
            "manifest version 9, this reader knows 1",
        ),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_parquet(data, POSTER_SCHEMA)


def test_a_pointer_survives_json_and_newer_writers() -> None:
    pointer = Pointer(REF, REF, 7, "2026-03-01T02:00:00+00:00")
    assert Pointer.parse(pointer.to_json()) == pointer
    newer = {**json.loads(pointer.to_json()), "an unknown field": 1}
    assert Pointer.parse(json.dumps(newer).encode()) == pointer


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"null", b"{}", b'{"manifest_version": 1}', b'{"manifest_version": 2}']
)
def test_what_is_no_pointer_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="pointer"):
        Pointer.parse(data)


def test_variants_are_chosen_with_their_propensities_and_stay_chosen() -> None:
    rows = [{"variant": 0, "propensity": 0.75}, {"variant": 1, "propensity": 0.25}]
    chosen = [_pick(rows, f"user {n}")["variant"] for n in range(4000)]
    assert chosen == [_pick(rows, f"user {n}")["variant"] for n in range(4000)]
    assert 0.72 < Counter(chosen)[0] / 4000 < 0.78
    assert _pick([{"variant": 1, "propensity": 0.25}], "anybody")["variant"] == 1


def test_the_reader_is_light() -> None:
    code = (
        "import sys, schemas.manifest; "
        "print([m for m in ('torch', 'numpy.fft', 'sqlalchemy', 'kafka', 'PIL', 'pydantic', 'generator') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"[]", "['numpy.fft']"}  # pyarrow may bring numpy
