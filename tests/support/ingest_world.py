"""The consumer's write path without Kafka.

Staged, applied and committed as one batch, for tests of its SQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from consumers.postgres import postgres_connection
from consumers.write import staging, upsert
from consumers.write.decode import Limits, Row, decode
from consumers.write.upsert import Written
from schemas.events import CATALOG, CONSUMED, Event
from schemas.settings import DatabaseSettings

POSITIVE = ("click", "like")
LIMITS = Limits(2**18, timedelta(minutes=5))
TOPICS = {model: topic for topic, model in CONSUMED.items()}


class Tombstone(str):
    """The id of an item that the catalogue deletes."""


def connect(settings: DatabaseSettings) -> Any:
    return postgres_connection(settings, "pigeon-tests")


def _row(event: Event | Tombstone) -> tuple[str, Row]:
    at = int(datetime.now(UTC).timestamp() * 1000)
    if isinstance(event, Tombstone):
        topic, record = CATALOG, SimpleNamespace(key=event.encode(), value=None, timestamp=at)
    else:
        topic, record = (
            TOPICS[type(event)],
            SimpleNamespace(key=None, value=event.model_dump_json().encode(), timestamp=at),
        )
    decoded = decode(record, topic, LIMITS, datetime.now(UTC))
    assert decoded.row is not None, decoded.poison
    return topic, decoded.row


def stage(cursor: Any, events: Iterable[Event | Tombstone]) -> dict[str, int]:
    """COPY the events into the temporary tables; returns how many of each topic."""
    staging.create(cursor)
    staged: dict[str, list[str]] = {}
    for seq, event in enumerate(events):
        topic, row = _row(event)
        staged.setdefault(topic, []).append(staging.line(seq, row))
    for topic, lines in staged.items():
        staging.copy(cursor, topic, lines)
    return {topic: len(lines) for topic, lines in staged.items()}


def store(connection: Any, events: Iterable[Event | Tombstone], size: int = 50) -> Written:
    """One batch, one transaction."""
    with connection, connection.cursor() as cursor:
        return upsert.apply(cursor, stage(cursor, events), POSITIVE, size)
