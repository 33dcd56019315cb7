"""Other spellings of an event: null for "not given", integer ids, times as databases write them.

`read` takes what the model takes, at the model's own speed; only what it refuses is spelt otherwise and tried once more.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from schemas.events import Event

ID_FIELDS = frozenset({"user_id", "item_id", "poster_id"})
ID_LISTS = frozenset({"item_ids"})
TIME_FIELDS = frozenset({"occurred_at"})
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:[.,](\d{1,9}))? ?(Z|UTC|GMT|[+-]\d\d(?::?\d\d)?(?::\d\d)?)?",
    re.IGNORECASE,
)


def read(model: type[Event], value: bytes | str) -> Event:
    """The event that a JSON text says.

    Raises:
        ValidationError: pydantic's, of the text as it came.
    """
    validate = _validator(model)
    try:
        event: Event = validate(value)
    except ValidationError as error:
        spelt = _spelt_anew(value)
        if spelt is None:
            raise error from None
        event = validate(json.dumps(spelt))
    return event


def iso_time(text: str, zone: str = "") -> str | None:
    """ISO 8601 of a time as Postgres, BigQuery or a spreadsheet writes it; None when it is none of them.

    Args:
        text: such as `2026-11-01 10:00:00.123456+00` or `2026-11-01 10:00:00 UTC`.
        zone: offset that a time without one gets, such as `+02:00`; empty leaves it without.
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        return None
    day, clock, fraction, offset = match.groups()
    clock = clock if len(clock) > 5 else clock + ":00"
    return f"{day}T{clock}{'.' + fraction[:6] if fraction else ''}{_offset(offset) if offset else zone}"


def _offset(text: str) -> str:
    if text.upper() in ("Z", "UTC", "GMT"):
        return "+00:00"
    digits = text[1:].replace(":", "")
    return f"{text[0]}{digits[:2]}:{digits[2:4] or '00'}"


@cache
def _validator(model: type[Event]) -> Any:
    return TypeAdapter(model).validator.validate_json


def _spelt_anew(value: bytes | str) -> dict[str, Any] | None:
    """The fields in the model's spelling; None when nothing is spelt otherwise."""
    try:
        said = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict):
        return None
    spelt = {name: _field(name, value) for name, value in said.items() if value is not None}
    return None if spelt == said else spelt


def _field(name: str, value: Any) -> Any:
    if name in ID_FIELDS:
        return _id(value)
    if name in ID_LISTS and isinstance(value, list):
        return [_id(one) for one in value]
    if name in TIME_FIELDS and isinstance(value, str):
        return iso_time(value) or value
    return value


def _id(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
