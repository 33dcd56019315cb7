"""What the API's bodies take is what the OpenAPI document says, and no more."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from generator.web.bodies import Feedback, UrlId

EVENT = {"showing": "token", "action": "click"}
UUID = "f10cc4f3-ae39-489a-81cf-e9d7627bffe1"


def pattern(schema: dict[str, Any], name: str) -> str:
    kinds = schema["$defs"]["FeedbackEvent"]["properties"][name]["anyOf"]
    return str(next(kind["pattern"] for kind in kinds if "pattern" in kind))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position", "3"),
        ("position", True),
        ("position", -1),
        ("position", 1.5),
        ("event_id", UUID.replace("-", "")),
        ("event_id", f"{{{UUID}}}"),
        ("event_id", f"urn:uuid:{UUID}"),
        ("occurred_at", 1_790_000_000),
        ("occurred_at", "1790000000"),
        ("occurred_at", "-1790000000.5"),
        ("occurred_at", "2026-11-29T20:15:00"),
        ("occurred_at", "0751-02-10T03:07:55+00:42"),
        ("surface", "a\x00b"),
        ("other", 1),
    ],
)
def test_what_the_document_does_not_allow_is_refused_by_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        Feedback.model_validate({"events": [{**EVENT, field: value}]})
    assert refused.value.errors()[0]["loc"][:3] == ("events", 0, field)


def test_what_the_document_allows_is_taken() -> None:
    more = {"position": 612.0, "event_id": UUID.upper(), "occurred_at": "2026-11-29T20:15:00+01:00", "surface": ""}
    none = dict.fromkeys(more)
    assert len(Feedback.model_validate({"events": [EVENT, {**EVENT, **more}, {**EVENT, **none}]}).events) == 3
    position = Feedback.model_json_schema()["$defs"]["FeedbackEvent"]["properties"]["position"]["anyOf"][0]
    assert (position["minimum"], position["maximum"]) == (0, 1_000_000)


@pytest.mark.parametrize("user", ["u1", "ü", "a b", " a", "a ", "\t", "a\x00b", "\x00", "a\n"])
def test_the_documents_pattern_of_ids_is_what_validation_asks_for(user: str) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(UrlId)
    allowed = re.search(adapter.json_schema()["pattern"].replace("$", r"\Z"), user) is not None
    try:
        adapter.validate_python(user)
    except ValidationError:
        assert not allowed
    else:
        assert allowed


def test_the_documents_pattern_of_times_is_the_range_of_years() -> None:
    years = pattern(Feedback.model_json_schema(), "occurred_at")
    assert [year for year in range(1, 3_000) if re.search(years, f"{year:04}-01-01T00:00:00Z")] == list(
        range(1970, 2200)
    )
