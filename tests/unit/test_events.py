"""Events: what is accepted, what is refused, and that the exported JSON Schemas are the models."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import export
from schemas.events import (
    CONSUMED,
    DLQ_SUFFIX,
    FEEDBACK,
    INTERACTIONS,
    MAX_ATTRIBUTE_DEPTH,
    TOPICS,
    CatalogItem,
    Event,
    Interaction,
    PosterFeedback,
    all_topics,
    key_of,
)

# A busy machine is no failure.
UNTIMED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
STORABLE = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), min_size=1, max_size=64)
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001
IDS = STORABLE.filter(lambda text: text == text.strip())
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | STORABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STORABLE, inner, max_size=3),
    max_leaves=8,
)
CLICK: dict[str, Any] = {
    "event_id": "00000000-0000-4000-8000-000000000001",
    "user_id": "u",
    "item_id": "i",
    "kind": "click",
    "occurred_at": "2026-11-01T00:00:00Z",
}


def read(**changes: Any) -> Interaction:
    return Interaction.model_validate_json(json.dumps({**CLICK, **changes}))


@UNTIMED
@given(st.uuids(), IDS, IDS, TIMES, st.dictionaries(STORABLE, JSON, max_size=3))
def test_what_one_side_sends_the_other_reads(event_id, user, item, time, context):
    sent = Interaction(event_id=event_id, user_id=user, item_id=item, kind="click", occurred_at=time, context=context)
    assert Interaction.model_validate_json(sent.model_dump_json()) == sent


def test_unknown_fields_are_ignored_and_unknown_versions_refused():
    assert read(newer_field=[1]).user_id == "u"
    with pytest.raises(ValidationError, match="schema_version"):
        read(schema_version=2)


@pytest.mark.parametrize(
    "changes",
    [
        {"user_id": ""},
        {"user_id": "u" * 257},
        {"user_id": "a\x00b"},
        {"user_id": "\ud800"},
        {"user_id": 7},
        {"user_id": None},
        {"event_id": "not-a-uuid"},
        {"occurred_at": "2026-11-01T00:00:00"},
        {"occurred_at": "1969-12-31T23:59:59Z"},
        {"occurred_at": "9999-01-01T00:00:00Z"},
        {"occurred_at": "yesterday"},
        {"kind": ""},
        {"context": []},
        {"context": {"a": "\x00"}},
        {"context": {"a\x00": 1}},
        {"context": {"a": float("nan")}},
        {"context": {"a": float("inf")}},
        {"context": {"a": ["\udfff"]}},
    ],
    ids=repr,
)
def test_what_postgres_or_people_cannot_use_is_refused(changes):
    with pytest.raises(ValidationError):
        read(**changes)


def test_nesting_is_bounded():
    def nested(levels: int) -> dict[str, Any]:
        return {"a": nested(levels - 1)} if levels > 1 else {}

    assert CatalogItem(item_id="i", title="t", attributes=nested(MAX_ATTRIBUTE_DEPTH))
    with pytest.raises(ValidationError, match="nest"):
        CatalogItem(item_id="i", title="t", attributes=nested(MAX_ATTRIBUTE_DEPTH + 1))


def test_a_propensity_of_zero_cannot_have_been_shown():
    shown = {**CLICK, "poster_id": "p", "action": "impression"}
    assert PosterFeedback.model_validate({**shown, "propensity": 0.25}).propensity == 0.25
    with pytest.raises(ValidationError, match="propensity"):
        PosterFeedback.model_validate({**shown, "propensity": 0.0})


def test_every_consumed_topic_has_a_dead_letter_topic():
    names = all_topics("test.")
    assert {f"test.{topic}{DLQ_SUFFIX}" for topic in CONSUMED} < set(names)
    assert len(names) == len(set(names)) == len(TOPICS) + len(CONSUMED)


def test_exported_schemas_are_the_models():
    assert export.drift() == [], "run `pigeon events export`"


def test_drift_is_seen_and_mended(tmp_path: Path):
    assert len(export.export(tmp_path)) == len(TOPICS)
    (tmp_path / f"{INTERACTIONS}.json").write_text("{}")
    (tmp_path / "gone.v1.json").write_text("{}")
    (tmp_path / f"{FEEDBACK}.json").unlink()
    wrong = sorted([f"{INTERACTIONS}.json", "gone.v1.json", f"{FEEDBACK}.json"])
    assert export.drift(tmp_path) == wrong
    assert export.export(tmp_path) == wrong
    assert export.drift(tmp_path) == []


@pytest.mark.parametrize("model", TOPICS.values())
def test_records_are_keyed_by_their_user_and_the_catalogues_by_their_item(model: type[Event]) -> None:
    event = model.model_construct(user_id="u", item_id="i")
    assert key_of(event) == (b"i" if model is CatalogItem else b"u")
