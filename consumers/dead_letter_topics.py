"""Dead-letter topics, read: what their index lacks, and the records that it names.

The index (`dead_letters`) is made of the topics and nothing else: it may be emptied, and is whole again after `catch_up`.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from kafka import TopicPartition

from consumers import postgres
from consumers.kafka import clients, quirks
from consumers.write import letter_index
from consumers.write.letter_index import UNKNOWN_TIME, DeadLetter, IndexRow
from schemas.errors import ServerUnavailable
from schemas.events import CONSUMED, DLQ_SUFFIX
from schemas.faultpoints import reach
from schemas.settings import Settings

log = structlog.get_logger("pigeon.dlq")
READ_TIMEOUT_SECONDS = 30.0
FAR_OFFSETS = 1_000
"""Offsets between two wanted records past which the reader jumps instead of reading on."""


class Place(Protocol):
    """Where a dead letter is."""

    @property
    def topic(self) -> str: ...
    @property
    def topic_id(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


@dataclass(frozen=True)
class CaughtUp:
    """What reading the topics changed in the index."""

    added: int
    removed: int


@dataclass(frozen=True)
class _Topics:
    """The dead-letter topics that there are."""

    ids: Mapping[str, str]
    beginnings: Mapping[TopicPartition, int]


def all_topics(settings: Settings) -> list[str]:
    """Every dead-letter topic, with the installation's prefix."""
    return [settings.kafka.topic_prefix + name + DLQ_SUFFIX for name in CONSUMED]


def catch_up(settings: Settings) -> CaughtUp:
    """Add what the index lacks, and remove rows whose records have left their topic.

    What was added is kept page by page with the place to go on at, so that a reader who dies, or a second one beside it, changes
    nothing.

    Raises:
        InputError, ServerUnavailable: as the settings and servers make them.
    """
    with postgres.connected(settings.database, "pigeon-dlq") as connection, _reader(settings) as (consumer, topics):
        index = _Index(connection, topics)
        index.forget_what_left()
        starts = index.starts()
        for tp, start in starts.items():
            consumer.seek(tp, start)
        for tp, letters, following in _pages(consumer, topics, set(starts)):
            if following < starts[tp]:  # brokers without topic ids: it ends before what we read of it
                index.begin_again(tp)
                starts[tp] = topics.beginnings[tp]
                consumer.seek(tp, starts[tp])
                continue
            index.add(tp, [letter for letter in letters if letter.offset >= starts[tp]], following)
    return CaughtUp(index.added, index.removed)


def fetch(settings: Settings, places: Iterable[Place]) -> list[DeadLetter]:
    """The records at these places, in their order; those that have left their topic are left out.

    Raises:
        InputError, ServerUnavailable: as the settings and servers make them.
    """
    wanted = {(place.topic, place.partition, place.offset): place for place in places}
    if not wanted:
        return []
    found: dict[tuple[str, int, int], DeadLetter] = {}
    with _reader(settings, {topic for topic, _, _ in wanted}) as (consumer, topics):
        left: dict[TopicPartition, set[int]] = {}
        for topic, partition, offset in wanted:
            tp = TopicPartition(topic, partition)
            if offset >= topics.beginnings.get(tp, offset + 1):
                left.setdefault(tp, set()).add(offset)
        for tp, offsets in left.items():
            consumer.seek(tp, min(offsets))
        if idle := set(consumer.assignment()) - left.keys():
            consumer.pause(*idle)
        for tp, letters, following in _pages(consumer, topics, set(left), left):
            found.update({(tp.topic, tp.partition, one.offset): one for one in letters if one.offset in left[tp]})
            left[tp] = {offset for offset in left[tp] if offset >= following}
            if left[tp] and min(left[tp]) > following + FAR_OFFSETS:
                consumer.seek(tp, min(left[tp]))
    return [found[at] for at, place in wanted.items() if at in found and place.topic_id in ("", found[at].topic_id)]


@contextmanager
def _reader(settings: Settings, only: Collection[str] | None = None) -> Iterator[tuple[Any, _Topics]]:
    """A consumer that has the topics' partitions and no position yet, and what the topics are."""
    with clients.asked(settings.kafka) as admin:
        names = sorted(only) if only is not None else all_topics(settings)
        told = [topic for topic in admin.describe_topics(names) if topic["error_code"] == 0]
        partitions = [
            TopicPartition(one["name"], part["partition_index"]) for one in told for part in one["partitions"]
        ]
        ids = {name: identity or "" for name, identity in clients.topic_ids(admin, names).items()} if told else {}
        topics = _Topics(ids, clients.beginnings(admin, partitions) if partitions else {})
    consumer = clients.consumer(settings.kafka, settings.consumer, group=False)
    try:
        consumer.assign(partitions)
        yield consumer, topics
    except clients.KafkaError as error:
        raise ServerUnavailable(f"kafka: dead-letter topics: {type(error).__name__}: {error}") from error
    finally:
        consumer.close(autocommit=False)


def _pages(
    consumer: Any, topics: _Topics, open_: set[TopicPartition], wanted: Mapping[TopicPartition, set[int]] | None = None
) -> Iterator[tuple[TopicPartition, list[DeadLetter], int]]:
    """What each poll brings of each partition, and where it goes on, up to the logs' ends.

    A partition's last page may be empty. Who takes the pages may seek; with `wanted`, a partition is done when nothing of it is
    wanted any more.

    Raises:
        ServerUnavailable: nothing came for a long time.
    """
    deadline = time.monotonic() + READ_TIMEOUT_SECONDS
    open_ = set(open_)
    while open_:
        if time.monotonic() > deadline:
            raise ServerUnavailable(f"dead-letter topics did not answer within {READ_TIMEOUT_SECONDS:.0f} s")
        polled = consumer.poll(timeout_ms=200)
        for tp, records in polled.items():
            deadline = time.monotonic() + READ_TIMEOUT_SECONDS
            identity = topics.ids.get(tp.topic, "")
            yield tp, [_letter(record, identity) for record in records], records[-1].offset + 1
        for tp in list(open_):
            end = quirks.known_end(consumer, tp)
            if wanted is not None and not wanted[tp]:
                open_.discard(tp)
            elif end is not None and consumer.position(tp) >= end:
                yield tp, [], end
                if consumer.position(tp) >= end:  # nobody went back
                    open_.discard(tp)


def _letter(record: Any, topic_id: str) -> DeadLetter:
    headers = tuple((name, value or b"") for name, value in record.headers)
    stamp = UNKNOWN_TIME if record.timestamp is None else record.timestamp
    return DeadLetter(
        *(record.topic, topic_id, record.partition, record.offset, record.key, record.value), headers, stamp
    )


class _Index:
    """The tables, as one reader of the topics writes them; each method is one transaction."""

    def __init__(self, connection: Any, topics: _Topics) -> None:
        self._connection = connection
        self._topics = topics
        self.added = self.removed = 0

    def forget_what_left(self) -> None:
        """Delete rows of records that retention has taken, and of topics that were deleted or recreated."""
        with self._connection, self._connection.cursor() as cursor:
            for topic, identity in self._topics.ids.items():
                for table in ("dead_letters", "dead_letter_marks", "dead_letter_actions"):
                    cursor.execute(
                        f"DELETE FROM {table} WHERE topic = %s AND topic_id <> %s",  # noqa: S608 - our own names
                        (topic, identity),
                    )
                    self._count(cursor, table)
            for tp, beginning in self._topics.beginnings.items():
                for table in ("dead_letters", "dead_letter_actions"):
                    cursor.execute(
                        f"""DELETE FROM {table} WHERE topic = %s AND topic_id = %s
                            AND partition = %s AND "offset" < %s""",  # noqa: S608 - our own names
                        (tp.topic, self._topics.ids[tp.topic], tp.partition, beginning),
                    )
                    self._count(cursor, table)

    def _count(self, cursor: Any, table: str) -> None:
        self.removed += cursor.rowcount if table == "dead_letters" else 0

    def starts(self) -> dict[TopicPartition, int]:
        """Where each partition goes on."""
        with self._connection, self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT topic, topic_id, partition, next_offset FROM dead_letter_marks WHERE topic = ANY(%s)",
                (list(self._topics.ids),),
            )
            marks = {(topic, identity, partition): following for topic, identity, partition, following in cursor}
        return {
            tp: max(beginning, marks.get((tp.topic, self._topics.ids[tp.topic], tp.partition), 0))
            for tp, beginning in self._topics.beginnings.items()
        }

    def add(self, tp: TopicPartition, letters: list[DeadLetter], following: int) -> None:
        """Add rows, and with them the place to go on at."""
        identity = self._topics.ids[tp.topic]
        with self._connection, self._connection.cursor() as cursor:
            self.added += letter_index.insert(cursor, [IndexRow.of(letter) for letter in letters])
            reach("letters indexed")
            cursor.execute(
                """INSERT INTO dead_letter_marks AS m (topic, topic_id, partition, next_offset)
                   VALUES (%s, %s, %s, %s) ON CONFLICT (topic, topic_id, partition) DO UPDATE
                   SET next_offset = greatest(m.next_offset, EXCLUDED.next_offset), checked_at = now()""",
                (tp.topic, identity, tp.partition, following),
            )

    def begin_again(self, tp: TopicPartition) -> None:
        """Delete what is known of a partition that is not the one that was read before."""
        log.warning("dead-letter topic recreated", topic=tp.topic, partition=tp.partition, policy="indexed again")
        with self._connection, self._connection.cursor() as cursor:
            for table in ("dead_letters", "dead_letter_marks"):
                cursor.execute(
                    f"DELETE FROM {table} WHERE topic = %s AND topic_id = %s AND partition = %s",  # noqa: S608 - our own names
                    (tp.topic, self._topics.ids[tp.topic], tp.partition),
                )
                self._count(cursor, table)
