"""A Kafka record's bytes to the row of its topic, or to poison with its reason; it never raises."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from consumers.write import wrapped
from schemas import event_forms
from schemas.events import (
    CATALOG,
    CONSUMED,
    ERASURE,
    FEEDBACK,
    INTERACTIONS,
    OBJECTION,
    RECOMMENDATIONS,
    CatalogItem,
    Erasure,
    Interaction,
    Objection,
    PosterFeedback,
    Recommendations,
)

Row = tuple[Any, ...]
STACK_CHARACTERS = 4_000
MAX_JSON_DEPTH = 200
"""Levels of arrays and objects in each other; a little less than the parser would still take."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # possessive: linear in any bytes
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


REASONS = ("null_value", "too_large", "bad_json", "invalid", "key_mismatch", "bad_key", "refused_by_database")
"""Every short code that poison can have."""


class Poison(NamedTuple):
    """Why a record can never be stored."""

    reason: str  # one of REASONS
    detail: str
    error_type: str
    stack: str


class Decoded(NamedTuple):
    """One record with what became of it: a row, or poison."""

    record: Any
    topic: str  # without the installation's prefix
    row: Row | None
    poison: Poison | None
    clamped: bool


@dataclass(frozen=True, slots=True)
class Limits:
    """What decoding needs of the settings."""

    max_event_bytes: int
    max_future: timedelta


class _Clock:
    """Clamp for times that lie further ahead than allowed; `clamped` is whether one did."""

    __slots__ = ("clamped", "latest", "now")

    def __init__(self, now: datetime, max_future: timedelta) -> None:
        self.now = now
        self.latest = now + max_future
        self.clamped = False

    def clamp(self, time: datetime) -> tuple[datetime, datetime | None]:
        """The time to order by, and what the event claimed if that is another."""
        if time > self.latest:
            self.clamped = True
            return self.now, time
        return time, None


_JSON = TypeAdapter(Any)  # several times quicker than the json module's dumps


def _json(value: Any) -> str:
    return _JSON.dump_json(value).decode() if value else ("[]" if value == [] else "{}")


def _record_time(record: Any, clock: _Clock) -> datetime:
    if record.timestamp is None or record.timestamp < 0:
        return clock.now
    try:
        return clock.clamp(datetime.fromtimestamp(record.timestamp / 1000, UTC))[0]
    except (OverflowError, OSError, ValueError):
        clock.clamped = True
        return clock.now


def _item(event: CatalogItem, record: Any, clock: _Clock) -> Row:
    time = clock.clamp(event.occurred_at)[0] if event.occurred_at else _record_time(record, clock)
    return (
        event.item_id,
        event.title,
        event.description,
        _json(event.genres),
        event.image_uri,
        _json(event.attributes),
        time,
        False,
    )


def _tombstone(item_id: str, record: Any, clock: _Clock) -> Row:
    return (item_id, "", "", "[]", None, "{}", _record_time(record, clock), True)


def _interaction(event: Interaction, record: Any, clock: _Clock) -> Row:
    time, claimed = clock.clamp(event.occurred_at)
    return (event.event_id, time, claimed, event.user_id, event.item_id, event.kind.lower(), _json(event.context))


def _recommendations(event: Recommendations, record: Any, clock: _Clock) -> Row:
    return (event.user_id, _json(list(dict.fromkeys(event.item_ids))), clock.clamp(event.occurred_at)[0])


def _feedback(event: PosterFeedback, record: Any, clock: _Clock) -> Row:
    time, claimed = clock.clamp(event.occurred_at)
    return (
        event.event_id,
        event.poster_id,
        event.user_id,
        event.item_id,
        event.action,
        event.position,
        event.surface,
        event.propensity,
        event.request_id,
        time,
        claimed,
    )


def _erasure(event: Erasure, record: Any, clock: _Clock) -> Row:
    return (event.user_id, clock.clamp(event.occurred_at)[0])


def _objection(event: Objection, record: Any, clock: _Clock) -> Row:
    return (event.user_id, event.objects, clock.clamp(event.occurred_at)[0], event.reason)


# Columns of each row: consumers/write/staging.py.
_ROWS: dict[str, Callable[[Any, Any, _Clock], Row]] = {
    CATALOG: _item,
    INTERACTIONS: _interaction,
    RECOMMENDATIONS: _recommendations,
    FEEDBACK: _feedback,
    ERASURE: _erasure,
    OBJECTION: _objection,
}


def _poison(reason: str, detail: str, error: BaseException | None = None) -> Poison:
    stack = "".join(traceback.format_exception(error))[-STACK_CHARACTERS:] if error else ""
    return Poison(reason, detail[:1_000], type(error).__name__ if error else "", stack)


def refused_by_database(error: BaseException) -> Poison:
    """Poison that validation let through and Postgres did not."""
    return _poison("refused_by_database", str(error).strip(), error)


def _explain(error: ValidationError) -> tuple[str, str]:
    """(reason, detail) of pydantic's first error, with the field's name, never the event's own text."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return "bad_json", first["msg"]
    field = ".".join(str(part) for part in first["loc"]) or "event"
    return "invalid", f"{field}: {first['msg']}"


def _is_too_deep(value: bytes) -> bool:
    """Whether JSON nests deeper than MAX_JSON_DEPTH.

    Found without parsing; almost always at once, from the number of brackets.
    """
    if value.count(b"[") + value.count(b"{") <= MAX_JSON_DEPTH:
        return False
    brackets = _STRING.sub(b"", value).translate(None, _NO_BRACKETS)
    return max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0) > MAX_JSON_DEPTH


def _key_text(record: Any) -> str | None:
    """The record's key as an item id, or None when it cannot be one."""
    try:
        key = record.key.decode("utf-8") if record.key else ""
    except UnicodeDecodeError:
        return None
    return key if 0 < len(key) <= 256 and "\x00" not in key else None


def decode(record: Any, topic: str, limits: Limits, now: datetime) -> Decoded:
    """Turn one record of `topic` (name without prefix) into a row or into poison.

    Args:
        record: a kafka-python ConsumerRecord with undecoded key and value.
        now: the time that future-dated events are clamped to, with a time zone.
    """
    clock = _Clock(now, limits.max_future)
    value = record.value
    if value is None:
        if topic != CATALOG:
            return Decoded(record, topic, None, _poison("null_value", "the record has no value"), False)
        item_id = _key_text(record)
        if item_id is None:
            return Decoded(record, topic, None, _poison("bad_key", "a tombstone's key must be an item id"), False)
        return Decoded(record, topic, _tombstone(item_id, record, clock), None, clock.clamped)
    if len(value) > limits.max_event_bytes:
        detail = f"{len(value)} bytes; consumer.max_event_bytes allows {limits.max_event_bytes}"
        return Decoded(record, topic, None, _poison("too_large", detail), False)
    if _is_too_deep(value):
        detail = f"nests deeper than {MAX_JSON_DEPTH} levels"
        return Decoded(record, topic, None, _poison("bad_json", detail), False)
    try:
        event = event_forms.read(CONSUMED[topic], value)
        if isinstance(event, CatalogItem) and record.key and record.key != event.item_id.encode():
            return Decoded(record, topic, None, _poison("key_mismatch", wrapped.key_detail(record.key)), False)
        row = _ROWS[topic](event, record, clock)
    except ValidationError as error:
        reason, detail = _explain(error)
        detail = wrapped.cause(value) or detail
        return Decoded(record, topic, None, _poison(reason, detail, error), False)
    except (ValueError, OverflowError, RecursionError) as error:
        return Decoded(record, topic, None, _poison("invalid", str(error), error), False)
    return Decoded(record, topic, row, None, clock.clamped)
