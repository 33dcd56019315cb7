"""Dead letters for people: read them, send them to their source topic again, or set them aside.

A dead-letter topic is only ever appended to; what was dealt with is a row in `dead_letter_actions`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kafka import TopicPartition
from psycopg2.extras import execute_values

from consumers import postgres
from consumers.kafka import clients, quirks
from consumers.write.dead_letter_sender import PREFIX
from schemas.errors import InputError, ServerUnavailable
from schemas.events import CATALOG, CONSUMED, DLQ_SUFFIX
from schemas.settings import Settings

READ_TIMEOUT_SECONDS = 30.0


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

    def note(self, name: str) -> str:
        """One of the headers that the consumer added, as text."""
        wanted = PREFIX + name
        return next((value.decode("utf-8", "replace") for key, value in reversed(self.headers) if key == wanted), "")

    @property
    def source(self) -> tuple[str, str, str]:
        """Where the record was read: (topic, partition, offset)."""
        return self.note("source-topic"), self.note("source-partition"), self.note("source-offset")

    @property
    def identity(self) -> tuple[str, ...]:
        """What all copies of a record have in common: a crash may write several.

        A recreated topic repeats offsets, not times.
        """
        return *self.source, self.note("source-timestamp")

    @property
    def place(self) -> str:
        """How `pigeon dlq show` names it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


def topics(settings: Settings, topic: str | None) -> list[str]:
    """The dead-letter topics to look at: of one source topic, or of all.

    Raises:
        InputError: we do not consume such a topic.
    """
    prefix = settings.kafka.topic_prefix
    if topic is None:
        return [prefix + name + DLQ_SUFFIX for name in CONSUMED]
    name = topic.removeprefix(prefix).removesuffix(DLQ_SUFFIX)
    if name not in CONSUMED:
        raise InputError(f"--topic {topic}: no such topic; there are {', '.join(CONSUMED)}")
    return [prefix + name + DLQ_SUFFIX]


def _records(settings: Settings, names: list[str]) -> Iterator[DeadLetter]:
    admin = clients.admin(settings.kafka)
    try:
        ids = clients.topic_ids(admin, names)
        partitions = [
            TopicPartition(found["name"], part["partition_index"])
            for found in admin.describe_topics(names)
            for part in found["partitions"]
        ]
    finally:
        admin.close()
    if not partitions:
        return
    consumer = clients.consumer(settings.kafka, settings.consumer, group=False)
    try:
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        deadline = time.monotonic() + READ_TIMEOUT_SECONDS
        open_ = set(partitions)
        while open_:
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"dead-letter topics did not answer within {READ_TIMEOUT_SECONDS:.0f} s")
            for tp, records in consumer.poll(timeout_ms=200).items():
                deadline = time.monotonic() + READ_TIMEOUT_SECONDS
                for record in records:
                    headers = tuple((name, value or b"") for name, value in record.headers)
                    identity = ids.get(tp.topic) or ""
                    yield DeadLetter(
                        *(tp.topic, identity, tp.partition, record.offset, record.key, record.value),
                        headers=headers,
                    )
            for tp in list(open_):
                end = quirks.known_end(consumer, tp)
                if end is not None and consumer.position(tp) >= end:
                    open_.discard(tp)
    finally:
        consumer.close(autocommit=False)


def _handled(settings: Settings) -> set[tuple[str, str, int, int]]:
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        cursor.execute('SELECT topic, topic_id, partition, "offset" FROM dead_letter_actions')
        return set(cursor.fetchall())


def read(
    settings: Settings, topic: str | None = None, reason: str | None = None, limit: int | None = None
) -> list[DeadLetter]:
    """The open dead letters, oldest first, once per source record.

    Args:
        topic: only those of this source topic.
        reason: only those with this reason code.
        limit: at most this many.

    Raises:
        InputError, ServerUnavailable: as the settings and servers make them.
    """
    postgres.require_tables(settings.database)
    names = topics(settings, topic)
    handled = _handled(settings)
    found: dict[tuple[str, ...], DeadLetter] = {}
    closed: set[tuple[str, ...]] = set()
    for letter in _records(settings, names):
        if (letter.topic, letter.topic_id, letter.partition, letter.offset) in handled:
            closed.add(letter.identity)  # and so are its copies
        elif reason is None or letter.note("reason") == reason:
            found.setdefault(letter.identity, letter)
    letters = [letter for identity, letter in found.items() if identity not in closed]
    letters.sort(key=lambda letter: (letter.note("time"), letter.topic, letter.partition, letter.offset))
    return letters[:limit]


def find(settings: Settings, place: str) -> DeadLetter:
    """The dead letter at TOPIC/PARTITION/OFFSET, open or not.

    Raises:
        InputError: there is none.
    """
    try:
        name, partition_text, offset_text = place.rsplit("/", 2)
        partition, offset = int(partition_text), int(offset_text)
    except ValueError:
        raise InputError(f"{place}: must be TOPIC/PARTITION/OFFSET, as `pigeon dlq list` prints it") from None
    for letter in _records(settings, topics(settings, name)):
        if (letter.partition, letter.offset) == (partition, offset):
            return letter
    raise InputError(f"{place}: no such dead letter")


def _mark(settings: Settings, letters: list[DeadLetter], action: Literal["replayed", "dropped"]) -> None:
    with (
        postgres.connected(settings.database, "pigeon-dlq") as connection,
        connection,
        connection.cursor() as cursor,
    ):
        execute_values(
            cursor,
            """INSERT INTO dead_letter_actions (topic, topic_id, partition, "offset", action) VALUES %s
               ON CONFLICT DO NOTHING""",
            [(letter.topic, letter.topic_id, letter.partition, letter.offset, action) for letter in letters],
        )


def drop(settings: Settings, letters: list[DeadLetter]) -> int:
    """Set letters aside for good; their records stay in the topic until its retention takes them."""
    if letters:
        _mark(settings, letters, "dropped")
    return len(letters)


def _replay_time(settings: Settings, letter: DeadLetter) -> int | None:
    """The timestamp to replay a record with: its own where it orders catalogue items, else now (None).

    With its own time retention could take it before we read it.
    """
    time_ms = letter.note("source-timestamp")
    ordered = letter.topic == settings.kafka.topic_prefix + CATALOG + DLQ_SUFFIX
    return int(time_ms) if ordered and time_ms.isdigit() else None


def replay(settings: Settings, letters: list[DeadLetter]) -> int:
    """Send letters to their source topics again: same key, value and own headers; returns how many.

    They are marked only after the broker has them all: a crash in between sends them twice, and event ids make that one.

    Raises:
        ServerUnavailable: the broker did not take them; nothing was marked.
    """
    if not letters:
        return 0
    producer: Any = clients.producer(settings.kafka, max_request_bytes=32 * 2**20)
    try:
        sent = [
            producer.send(
                letter.topic.removesuffix(DLQ_SUFFIX),
                key=letter.key,
                value=letter.value,
                headers=[(name, value) for name, value in letter.headers if not name.startswith(PREFIX)],
                timestamp_ms=_replay_time(settings, letter),
            )
            for letter in letters
        ]
        for future in sent:
            future.get(timeout=settings.kafka.request_timeout_ms / 1000)
    except clients.KafkaError as error:
        raise ServerUnavailable(f"replay: {type(error).__name__}: {error}; nothing was marked, run it again") from error
    finally:
        producer.close(timeout=5)
    _mark(settings, letters, "replayed")
    return len(letters)
