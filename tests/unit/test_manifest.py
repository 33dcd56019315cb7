"""The manifest's files, its pointer, and how a variant is chosen.

The reader on a real store: tests/faults/test_manifest_reader.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

from schemas.manifest import POSTER_SCHEMA, ManifestRef, Pointer, PosterManifest, ShardRef, from_parquet, to_parquet
from schemas.manifest_choice import pick
from schemas.manifest_files import ITEM_SCHEMA_V1, POSTER_SCHEMA_V1
from schemas.manifest_withdrawn import Withdrawn
from tests.support.manifest_rows import ROW

OLD = ManifestRef("night-1", "2026-03-01", "m.parquet", "0" * 64, "i.parquet", "1" * 64, 2, "nano-1")
NEW, NEW_BODY = ManifestRef.of_set(
    run_id="night-2",
    logical_date="2026-03-02",
    model_version="nano-1",
    shards=(ShardRef("a", "2" * 64, 5, 1000), ShardRef("b", "3" * 64, 6, 1200)),
    items=ShardRef("i", "4" * 64, 3, 300),
)


def test_files_of_version_1_give_the_same_bytes_and_come_back() -> None:
    first = to_parquet([{**ROW, "not in the schema": object()}], POSTER_SCHEMA_V1, run_id="night-1")
    assert first == to_parquet([dict(reversed(ROW.items()))], POSTER_SCHEMA_V1, run_id="night-1")
    (row,) = from_parquet(first, POSTER_SCHEMA_V1).to_pylist()
    assert row["seed"] == ROW["seed"]
    assert row["renditions"] == ROW["renditions"]
    assert from_parquet(to_parquet([], POSTER_SCHEMA_V1), POSTER_SCHEMA_V1).schema.equals(POSTER_SCHEMA_V1)


def test_a_row_without_a_required_value_is_refused() -> None:
    with pytest.raises(KeyError, match="image_key"):
        to_parquet([{k: v for k, v in ROW.items() if k != "image_key"}], POSTER_SCHEMA_V1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not parquet", "not a Parquet file"),
        (to_parquet([], ITEM_SCHEMA_V1), "columns .* are missing"),
        (to_parquet([], POSTER_SCHEMA), "manifest version 2, this reader knows 1"),
        (
            to_parquet([], POSTER_SCHEMA_V1.with_metadata({"manifest_version": "9"})),
            "manifest version 9, this reader knows 1",
        ),
    ],
)
def test_other_files_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        from_parquet(data, POSTER_SCHEMA_V1)


@pytest.mark.parametrize(("current", "previous"), [(OLD, None), (OLD, OLD), (NEW, OLD), (NEW, NEW), (OLD, NEW)])
def test_a_pointer_survives_json_and_newer_writers(current: ManifestRef, previous: ManifestRef | None) -> None:
    pointer = Pointer(current, previous, 7, "2026-03-01T02:00:00+00:00")
    assert Pointer.parse(pointer.to_json()) == pointer
    newer = {**json.loads(pointer.to_json()), "an unknown field": 1}
    assert Pointer.parse(json.dumps(newer).encode()) == pointer


def parse_as_version_1_did(data: bytes) -> dict[str, Any]:
    """What the reader of the release before did with a pointer, word for word."""
    value = json.loads(data)
    if value["manifest_version"] != 1:
        raise ValueError(f"pointer version {value['manifest_version']}, this reader knows 1")
    names = ("run_id", "logical_date", "manifest_key", "manifest_sha256", "items_key", "items_sha256", "posters")
    return {name: value[name] for name in (*names, "model_version")}


def test_a_reader_of_version_1_fails_with_a_clear_word_and_only_where_it_must() -> None:
    with pytest.raises(ValueError, match="pointer version 2, this reader knows 1"):
        parse_as_version_1_did(Pointer(NEW, OLD, 7, "").to_json())
    assert parse_as_version_1_did(Pointer(OLD, OLD, 7, "").to_json())["manifest_key"] == "m.parquet"
    with pytest.raises(ValueError, match="pointer version 3, this reader knows 2"):
        Pointer.parse(b'{"manifest_version": 3}')


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"[]", b"null", b"{}", b'{"manifest_version": 1}', b'{"manifest_version": 2}']
)
def test_what_is_no_pointer_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="pointer"):
        Pointer.parse(data)


def test_a_sets_own_file_tells_what_the_pointer_tells() -> None:
    assert ManifestRef.parse_set(NEW.manifest_key, NEW_BODY) == NEW
    assert NEW.posters == 11
    assert NEW.keys == (NEW.manifest_key, "i", "a", "b")
    for body in (b"", b"{}", b'{"manifest_version": 1}', NEW_BODY[:-10]):
        with pytest.raises(ValueError, match="set"):
            ManifestRef.parse_set("key", body)
    three = {**json.loads(NEW_BODY), "shards": json.loads(NEW_BODY)["shards"] * 2}
    three["shards"].pop()
    with pytest.raises(ValueError, match="3 shards are no power of two"):
        ManifestRef.parse_set("key", json.dumps(three).encode())


def test_variants_are_chosen_with_their_propensities_and_stay_chosen() -> None:
    shares = [0.75, 0.25]
    chosen = [pick(shares, f"user {n}") for n in range(4000)]
    assert chosen == [pick(shares, f"user {n}") for n in range(4000)]
    assert 0.72 < Counter(chosen)[0] / 4000 < 0.78
    assert pick([0.25], "anybody") == 0
    # What version 1 chose, too: a day's choice does not change with the release.
    assert [pick(shares, f"u\x1fi\x1f2026-03-{n:02}") for n in range(1, 9)] == [0, 0, 0, 0, 0, 0, 1, 0]


def test_the_list_of_what_is_withdrawn_survives_json() -> None:
    some = Withdrawn(poster=frozenset({"p", "q"}), user=frozenset({"ü"}))
    assert Withdrawn.parse(some.to_json()) == some
    assert some.has_posters
    assert not Withdrawn(item=frozenset({"i"})).has_posters
    assert Withdrawn(item=frozenset({"i"}))
    assert not Withdrawn.parse(b"{}")
    for data in (b"", b"[]", b"{", b'{"poster": 3}'):
        with pytest.raises(ValueError, match="withdrawn"):
            Withdrawn.parse(data)


def test_the_reader_is_light() -> None:
    code = (
        "import sys, schemas.manifest; "
        "print([m for m in ('torch', 'sqlalchemy', 'kafka', 'PIL', 'pydantic', 'generator', 'boto3', 'redis') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert PosterManifest.__doc__
