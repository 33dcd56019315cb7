"""Any bytes become a row or poison.

Nothing raises; times are clamped; what is staged survives COPY's text format.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from kafka.consumer.fetcher import ConsumerRecord

from consumers.write import staging
from consumers.write.decode import Decoded, Limits, decode
from schemas import event_forms
from schemas.events import CATALOG, CONSUMED, ERASURE, FEEDBACK, INTERACTIONS, RECOMMENDATIONS

CASES = int(os.environ.get("FUZZ_CASES", "300"))  # `make faults` sets it
pytestmark = pytest.mark.timeout(300 + CASES // 10)
# A busy machine is no failure.
UNTIMED = settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIMITS = Limits(max_event_bytes=4_096, max_future=timedelta(seconds=300))
CLICK: dict[str, Any] = {
    "event_id": "00000000-0000-4000-8000-000000000001",
    "user_id": "u",
    "item_id": "i",
    "kind": "click",
    "occurred_at": "2026-11-01T00:00:00Z",
}


def record(value: bytes | None, key: bytes | None = b"k", timestamp: int = 1_700_000_000_000) -> ConsumerRecord:
    return ConsumerRecord("t", 0, 0, 5, timestamp, 0, key, value, [], None, 0, 0, 0)


def read(topic: str, value: Any, **kw: Any) -> Decoded:
    encoded = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return decode(record(encoded, **kw), topic, LIMITS, NOW)


def reason(decoded: Decoded) -> str | None:
    assert (decoded.row is None) == (decoded.poison is not None), "either a row or poison"
    return decoded.poison.reason if decoded.poison else None


@seed(33)
@UNTIMED
@given(st.sampled_from(list(CONSUMED)), st.none() | st.binary(max_size=200), st.none() | st.binary(max_size=20))
def test_no_bytes_raise(topic, value, key):
    reason(decode(record(value, key), topic, LIMITS, NOW))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@seed(33)
@UNTIMED
@given(st.sampled_from(list(CONSUMED)), st.dictionaries(st.sampled_from([*CLICK, "context", "title"]), JSON))
def test_no_json_raises_and_every_row_can_be_staged(topic, changes):
    decoded = read(topic, json.dumps({**CLICK, "title": "t", **changes}).encode(), key=None)
    reason(decoded)
    if decoded.row is not None:
        fields = [staging.encode(value) for value in decoded.row]
        assert all("\t" not in text and "\n" not in text and "\r" not in text for text in fields)
        assert len(fields) + 1 == staging.TABLES[topic][1].count(",") + 1


@pytest.mark.parametrize(
    ("topic", "value", "expected"),
    [
        (INTERACTIONS, None, "null_value"),
        (INTERACTIONS, b"", "bad_json"),
        (INTERACTIONS, b"\xff\xfe", "bad_json"),
        (INTERACTIONS, b"[" * 2_000, "bad_json"),
        (INTERACTIONS, b"[]", "invalid"),
        (INTERACTIONS, b"null", "invalid"),
        (INTERACTIONS, b" " * 5_000, "too_large"),
        (INTERACTIONS, {**CLICK, "schema_version": 9}, "invalid"),
        (INTERACTIONS, {**CLICK, "user_id": "a\x00"}, "invalid"),
        (INTERACTIONS, b'{"user_id": "\\ud800"}', "bad_json"),
        (RECOMMENDATIONS, {"user_id": "u", "item_ids": [], "occurred_at": CLICK["occurred_at"]}, "invalid"),
        (FEEDBACK, {**CLICK, "poster_id": "p", "action": "stare"}, "invalid"),
        (ERASURE, {"user_id": "u"}, "invalid"),
        (CATALOG, {"item_id": "other", "title": "t"}, "key_mismatch"),
    ],
)
def test_poison_has_its_reason(topic, value, expected):
    decoded = read(topic, value)
    assert reason(decoded) == expected
    assert decoded.poison is not None
    assert decoded.poison.detail


@pytest.mark.parametrize("depth", [100, 250, 100_000])
@pytest.mark.parametrize("brackets", [(b"[", b"]"), (b'{"[":', b"}")])
def test_nesting_is_bounded_before_parsing_wherever_it_is(depth, brackets, monkeypatch):
    deep = brackets[0] * depth + b"1" + brackets[1] * depth
    large = Limits(max_event_bytes=2**20, max_future=timedelta(seconds=300))
    parsed = []
    read_event = event_forms.read
    monkeypatch.setattr(event_forms, "read", lambda model, value: parsed.append(value) or read_event(model, value))
    for place in (b'"unknown"', b'"context"'):
        value = b"{" + place + b": " + deep + b", " + json.dumps(CLICK).encode()[1:]
        decoded = decode(record(value), INTERACTIONS, large, NOW)
        stored = place == b'"unknown"' and depth == 100
        assert reason(decoded) == (None if stored else "invalid" if depth == 100 else "bad_json")
        if depth > 100:
            assert decoded.poison is not None
            assert decoded.poison.detail == "nests deeper than 200 levels"
            assert not parsed


@pytest.mark.parametrize(
    "text", ["[" * 900, '"[' * 300, "\\[" * 300, "\\" * 299 + "[" * 300], ids=["plain", "quotes", "escapes", "slashes"]
)
def test_brackets_in_text_and_side_by_side_are_not_deep(text):
    wide = {**CLICK, "context": {"text": text, "more": [[]] * 300}}
    assert reason(read(INTERACTIONS, wide)) is None


@pytest.mark.parametrize("value", [b'"' + b'\\"' * 100_000 + b"[" * 300, b"[" * 300 + b'"\\', b"]" * 300 + b"[" * 250])
def test_brackets_in_broken_json_are_poison_like_any(value):
    assert reason(decode(record(value), INTERACTIONS, Limits(2**20, timedelta(seconds=300)), NOW)) == "bad_json"


def test_the_reason_names_the_field_and_keeps_the_value_to_itself():
    poison = read(INTERACTIONS, {**CLICK, "occurred_at": "secret words"}).poison
    assert poison is not None
    assert poison.detail.startswith("occurred_at: ")
    assert "secret words" not in poison.detail


def test_a_tombstone_deletes_and_its_time_is_the_record_s():
    row = read(CATALOG, None, key=b"item-7").row
    assert row is not None
    assert (row[0], row[-1], row[-2]) == ("item-7", True, datetime.fromtimestamp(1_700_000_000, UTC))
    assert reason(read(CATALOG, None, key=None)) == "bad_key"
    assert reason(read(CATALOG, None, key=b"\xff")) == "bad_key"


@seed(33)
@UNTIMED
@given(st.integers(-(10**9), 10**9))
def test_the_future_is_clamped_and_kept(seconds):
    time = NOW + timedelta(seconds=seconds)
    decoded = read(INTERACTIONS, {**CLICK, "occurred_at": time.isoformat()})
    assert decoded.row is not None
    stored, claimed = decoded.row[1], decoded.row[2]
    assert decoded.clamped == (seconds > 300)
    assert (stored, claimed) == ((NOW, time) if seconds > 300 else (time, None))


def test_recommended_items_are_named_once_in_their_order():
    value = {"user_id": "u", "item_ids": ["b", "a", "b"], "occurred_at": CLICK["occurred_at"]}
    row = read(RECOMMENDATIONS, value).row
    assert row is not None
    assert row[1] == '["b","a"]'
