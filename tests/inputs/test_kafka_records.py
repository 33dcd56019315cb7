"""INPUTS 3, 4, 10 and 11: records as other people's producers write them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka.consumer.fetcher import ConsumerRecord

from consumers.write.decode import Decoded, Limits, decode
from schemas.events import CATALOG, ERASURE, INTERACTIONS, RECOMMENDATIONS, PosterPublished

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
CLICK: dict[str, Any] = {
    "event_id": "00000000-0000-4000-8000-000000000001",
    "user_id": "u",
    "item_id": "i",
    "kind": "click",
    "occurred_at": "2026-11-01T00:00:00Z",
}
ITEM: dict[str, Any] = {"item_id": "i", "title": "T", "image_uri": "https://x/a.png"}


def read(topic: str, value: Any, key: bytes | None = None) -> Decoded:
    encoded = value if isinstance(value, bytes) else json.dumps(value).encode()
    record = ConsumerRecord("t", 0, 0, 5, 1_700_000_000_000, 0, key, encoded, [], None, 0, 0, 0)
    return decode(record, topic, Limits(65_536, timedelta(seconds=300)), NOW)


WRAPPED = [
    (b"\x00\x00\x00\x00\x07" + json.dumps(CLICK).encode(), "five bytes of a schema registry"),
    (b"\x00\x00\x00\x00\x07\x02u\x02i", "Avro or Protobuf"),
    ({"schema": {"type": "struct"}, "payload": CLICK}, "value.converter.schemas.enable=false"),
    ({"before": None, "after": CLICK, "op": "c"}, "ExtractNewRecordState"),
    ({"schema": {}, "payload": {"before": None, "after": CLICK, "op": "c"}}, "ExtractNewRecordState"),
    (json.dumps(CLICK), "encoded twice"),
]


@pytest.mark.parametrize(("value", "fix"), WRAPPED, ids=[fix for _, fix in WRAPPED[:-2]] + ["both", "twice"])
def test_an_envelope_is_named_with_what_ends_it(value: Any, fix: str) -> None:
    """INPUTS 3."""
    poison = read(INTERACTIONS, value).poison
    assert poison
    assert fix in poison.detail


@pytest.mark.parametrize(
    ("key", "fix"),
    [(b'"i"', "JSON's quotes"), (b"\x00\x00\x00\x00\x07i", "schema registry"), (b"j", "is not its item_id")],
)
def test_a_key_that_is_not_the_items_id_says_why(key: bytes, fix: str) -> None:
    """INPUTS 3."""
    poison = read(CATALOG, ITEM, key).poison
    assert poison
    assert poison.reason == "key_mismatch"
    assert fix in poison.detail


def test_null_means_not_given_and_integers_are_ids_in_decimals() -> None:
    """INPUTS 4."""
    item = read(CATALOG, {**ITEM, "item_id": 7, "genres": None, "description": None, "attributes": None}, b"7")
    assert item.row
    assert item.row[:5] == ("7", "T", "", "[]", "https://x/a.png")
    click = read(INTERACTIONS, {**CLICK, "user_id": 10**20, "item_id": 0, "context": None})
    assert click.row
    assert click.row[3:5] == (str(10**20), "0")
    ranked = read(RECOMMENDATIONS, {"user_id": "u", "item_ids": [3, "x"], "occurred_at": CLICK["occurred_at"]})
    assert ranked.row
    assert ranked.row[1] == '["3","x"]'


@pytest.mark.parametrize("value", [True, 1.5, [], {}])
def test_what_is_no_id_is_still_none(value: Any) -> None:
    poison = read(INTERACTIONS, {**CLICK, "user_id": value}).poison
    assert poison
    assert poison.detail.startswith("user_id: ")
    missing = read(INTERACTIONS, {**CLICK, "user_id": None}).poison
    assert missing
    assert missing.detail == "user_id: Field required"


@pytest.mark.parametrize(
    "text",
    ["2026-11-01 10:00:00+00", "2026-11-01 10:00:00 UTC", "2026-11-01 10:00:00.000000+00", "2026-11-01T12:00:00+0200"],
)
def test_times_as_databases_write_them_are_taken(text: str) -> None:
    """INPUTS 10."""
    click = read(INTERACTIONS, {**CLICK, "occurred_at": text})
    assert click.row
    assert click.row[1] == datetime(2026, 11, 1, 10, tzinfo=UTC)


def test_a_new_event_has_no_blanks_around_its_ids_and_an_erasure_takes_any() -> None:
    """INPUTS 11."""
    for name, value in (("user_id", " u"), ("item_id", "i\n")):
        poison = read(INTERACTIONS, {**CLICK, name: value}).poison
        assert poison
        assert poison.detail.startswith(f"{name}: Value error, must not have blanks")
    erasure = read(ERASURE, {"user_id": " u\n", "occurred_at": CLICK["occurred_at"]})
    assert erasure.row
    assert erasure.row[0] == " u\n"
    assert PosterPublished.model_fields["user_id"].annotation is str


def test_kinds_are_stored_in_small_letters() -> None:
    """INPUTS 8."""
    click = read(INTERACTIONS, {**CLICK, "kind": "Click"})
    assert click.row
    assert click.row[5] == "click"
