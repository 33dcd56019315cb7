"""One record of a dead-letter topic, and its row in the index of dead letters (table `dead_letters`).

The index says where each dead letter is and which users it names; the record itself stays in its topic, which decides: a row may be
written twice, by the consumer that sent the record and by who reads the topic, and is the same both times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from psycopg2.extras import execute_values

from schemas.events import CATALOG, DLQ_SUFFIX

PREFIX = "pigeon-"
"""Beginning of the names of the headers that the consumer adds."""
UNKNOWN_TIME = -1
"""Milliseconds of a record without a timestamp, as Kafka has them."""
LONGEST_ID = 256
LONGEST_DETAIL = 1_000
LONGEST_SOURCE = 300
"""Characters: what an index of Postgres takes for certain."""
MOST_USERS = 16
"""Users that one record is attributed to at most."""
# Also in values that are no JSON, that are too large, or that another tool has wrapped.
_USER_ID = re.compile(rb'"user_?[iI]d"\s*:\s*(?:"((?:[^"\\]|\\.){1,1600})"|(-?[0-9]{1,40}))', re.DOTALL)
_PLACE = re.compile(r"^.+/[0-9]+/[0-9]+$")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of a dead-letter topic."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp: int = UNKNOWN_TIME

    def note(self, name: str) -> str:
        """One of the headers that the consumer added, as text."""
        wanted = PREFIX + name
        return next((value.decode("utf-8", "replace") for key, value in reversed(self.headers) if key == wanted), "")

    @property
    def source(self) -> tuple[str, str, str]:
        """Where the record was read: (topic, partition, offset)."""
        return self.note("source-topic"), self.note("source-partition"), self.note("source-offset")

    @property
    def place(self) -> str:
        """How `pigeon dlq show` names it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A row of `dead_letters`, as far as the record tells it.

    All copies of a record, which a crash may write, have `source` and `source_timestamp` in common; a recreated source topic repeats
    offsets, not times.
    """

    topic: str
    topic_id: str
    partition: int
    offset: int
    source: str
    source_timestamp: int
    reason: str
    detail: str
    user_ids: tuple[str, ...]
    written_at: datetime

    @classmethod
    def of(cls, letter: DeadLetter) -> IndexRow:
        """The row of a record, whoever wrote it."""
        source = "/".join(letter.source)
        known = len(source) <= LONGEST_SOURCE and _PLACE.match(source)
        return cls(
            *(letter.topic, letter.topic_id, letter.partition, letter.offset),
            source=storable(source if known else letter.place, LONGEST_SOURCE),
            source_timestamp=_whole(letter.note("source-timestamp")),
            reason=storable(letter.note("reason"), 64),
            detail=storable(letter.note("detail"), LONGEST_DETAIL),
            user_ids=users_of(letter),
            written_at=_written_at(letter),
        )


def storable(text: str, characters: int) -> str:
    """A text that a column takes: without NUL and lone surrogates, cut."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()[:characters]


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else UNKNOWN_TIME


def _written_at(letter: DeadLetter) -> datetime:
    try:
        told = datetime.fromisoformat(letter.note("time"))
        return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromtimestamp(max(0, letter.timestamp) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def users_of(letter: DeadLetter) -> tuple[str, ...]:
    """The users in a record's value, as `user_id`, and in its key where the topic is keyed by user."""
    found = dict.fromkeys(_id(*match.groups()) for match in _USER_ID.finditer(letter.value or b""))
    if not letter.topic.endswith(CATALOG + DLQ_SUFFIX) and letter.key:
        found[letter.key.decode("utf-8", "replace")] = None
    return tuple(user for user in found if _can_be_an_id(user))[:MOST_USERS]


def _id(quoted: bytes | None, number: bytes | None) -> str:
    if quoted is None:
        return (number or b"").decode()
    text = quoted.decode("utf-8", "replace")
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def _can_be_an_id(user: str) -> bool:
    return 0 < len(user) <= LONGEST_ID and user == storable(user, LONGEST_ID)


# What was dealt with stays so when the index is made again, and so do copies that come later.
_INSERT = """
INSERT INTO dead_letters
  (topic, topic_id, partition, "offset", source, source_timestamp, reason, detail, user_ids, written_at, closed_at)
SELECT v.*, coalesce(
    (SELECT a.at FROM dead_letter_actions a
     WHERE a.topic = v.topic AND a.topic_id = v.topic_id AND a.partition = v.partition AND a."offset" = v."offset"),
    (SELECT min(c.closed_at) FROM dead_letters c
     WHERE c.source = v.source AND c.source_timestamp = v.source_timestamp))
FROM (VALUES %s) AS v
  (topic, topic_id, partition, "offset", source, source_timestamp, reason, detail, user_ids, written_at)
ON CONFLICT DO NOTHING
"""
_TYPES = "(%s, %s, %s::bigint, %s::bigint, %s, %s::bigint, %s, %s, %s::text[], %s::timestamptz)"


def insert(cursor: Any, rows: Sequence[IndexRow]) -> int:
    """Add rows that are not there yet, in the caller's transaction; returns how many."""
    if not rows:
        return 0
    ordered = sorted(rows, key=lambda row: (row.topic, row.topic_id, row.partition, row.offset))  # so none deadlock
    written = execute_values(
        cursor,
        _INSERT + 'RETURNING "offset"',
        [
            (
                *(row.topic, row.topic_id, row.partition, row.offset, row.source, row.source_timestamp),
                *(row.reason, row.detail, list(row.user_ids), row.written_at),
            )
            for row in ordered
        ],
        template=_TYPES,
        fetch=True,
    )
    return len(written)
