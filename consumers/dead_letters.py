"""Dead letters for people: list them, send them to their source topic again, or set them aside.

Lists come from the index (table `dead_letters`), the records themselves from their topics, which are only ever appended to; what
was dealt with is a row in `dead_letter_actions`. Hidden are those that name a user who has asked to be erased since.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from psycopg2.extras import execute_values

from consumers import postgres
from consumers.dead_letter_topics import CaughtUp, Place, all_topics, catch_up, fetch
from consumers.kafka import clients
from consumers.write.letter_index import PREFIX, DeadLetter, IndexRow
from schemas.errors import InputError, Refused, ServerUnavailable
from schemas.events import CATALOG, CONSUMED, DLQ_SUFFIX
from schemas.settings import Settings

__all__ = ["CaughtUp", "DeadLetter", "catch_up", "drop", "find", "listed", "open_letters", "read", "replay", "stats"]

COUNTED = 10_000
"""Dead letters that a page counts; for more it says "more than"."""
STALE = timedelta(minutes=10)
"""Time after which a page has the index compared with the topics: what a consumer sent is in it at once, unless it died."""


@dataclass(frozen=True, slots=True)
class OpenLetter:
    """An open dead letter, as the index knows it."""

    topic: str
    topic_id: str
    partition: int
    offset: int
    source: str
    """TOPIC/PARTITION/OFFSET that it was read at."""
    source_timestamp: int
    reason: str
    detail: str
    written_at: datetime

    @property
    def place(self) -> str:
        """How `pigeon dlq show` names it."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True)
class LettersPage:
    """A page of open dead letters."""

    letters: list[OpenLetter]
    count: int
    """Number of those open, on all pages; at most COUNTED + 1."""
    behind: str
    """Why the index may lack some; empty when it does not."""


@dataclass(frozen=True)
class ReasonCount:
    """Open dead letters of a topic with a reason."""

    topic: str
    reason: str
    count: int
    oldest: datetime


def topics(settings: Settings, topic: str | None) -> list[str]:
    """The dead-letter topics to look at: of one source topic, or of all.

    Raises:
        InputError: we do not consume such a topic.
    """
    if topic is None:
        return all_topics(settings)
    prefix = settings.kafka.topic_prefix
    name = topic.removeprefix(prefix).removesuffix(DLQ_SUFFIX)
    if name not in CONSUMED:
        raise InputError(f"--topic {topic}: no such topic; there are {', '.join(CONSUMED)}")
    return [prefix + name + DLQ_SUFFIX]


# The first copy of each record, unless one of them was dealt with or a user that it names has asked to be erased since.
# Erased is what happened before the request by the record's own time or by ours, whichever is earlier, as with rows.
_HIDDEN = """EXISTS (
    SELECT FROM erasures e WHERE e.user_id = ANY(d.user_ids) AND e.requested_at >= CASE WHEN d.source_timestamp >= 0
      AND d.source_timestamp < 1000 * extract(epoch FROM d.written_at)
      THEN to_timestamp(d.source_timestamp / 1000.0) ELSE d.written_at END)"""
_OPEN = f"""
FROM dead_letters d
WHERE d.closed_at IS NULL AND d.topic = ANY(%(topics)s)
  AND (%(reason)s::text IS NULL OR d.reason = %(reason)s)
  AND (%(partition)s::bigint IS NULL OR (d.partition = %(partition)s AND d."offset" = %(offset)s))
  AND NOT EXISTS (
    SELECT FROM dead_letters c WHERE c.source = d.source AND c.source_timestamp = d.source_timestamp
      AND (c.closed_at IS NOT NULL
        OR (c.written_at, c.topic, c.partition, c."offset") < (d.written_at, d.topic, d.partition, d."offset")))
  AND NOT EXISTS (
    SELECT FROM dead_letter_actions a WHERE a.topic = d.topic AND a.topic_id = d.topic_id
      AND a.partition = d.partition AND a."offset" = d."offset")
  AND NOT {_HIDDEN}
"""  # noqa: S608 - our own text
_AFTER = ' AND (d.written_at, d.topic, d.partition, d."offset") > (%(at)s, %(after_topic)s, %(after_partition)s, %(after_offset)s)'
_COLUMNS = (
    'd.topic, d.topic_id, d.partition, d."offset", d.source, d.source_timestamp, d.reason, d.detail, d.written_at'
)
_ORDER = ' ORDER BY d.written_at, d.topic, d.partition, d."offset" LIMIT %(limit)s'


def _select(cursor: Any, after: str | None, **values: Any) -> list[OpenLetter]:
    query = f"SELECT {_COLUMNS} {_OPEN}"
    if key := _key(cursor, after):
        query, values = query + _AFTER, values | key
    cursor.execute(query + _ORDER, values)
    return [OpenLetter(*row) for row in cursor]


def _key(cursor: Any, place: str | None) -> dict[str, Any]:
    """A letter's place in the list's order; nothing, so that the list begins again, where it has gone."""
    if place is None:
        return {}
    topic, partition, offset = parse_place(place)
    cursor.execute(
        """SELECT max(written_at) FROM dead_letters WHERE topic = %s AND partition = %s AND "offset" = %s""",
        (topic, partition, offset),
    )
    ((at,),) = cursor.fetchall()
    return {} if at is None else {"at": at, "after_topic": topic, "after_partition": partition, "after_offset": offset}


def open_letters(
    settings: Settings,
    topic: str | None = None,
    reason: str | None = None,
    limit: int | None = None,
    place: str | None = None,
) -> list[OpenLetter]:
    """The open dead letters, none left out, oldest first, once per source record.

    Args:
        topic: only those of this source topic.
        reason: only those with this reason code.
        limit: at most this many.
        place: only the one there, TOPIC/PARTITION/OFFSET.

    Raises:
        InputError, ServerUnavailable: as the settings and servers make them.
    """
    postgres.require_tables(settings.database)
    wanted = _wanted(settings, topic, reason, place)
    catch_up(settings)
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        return _select(cursor, None, **wanted, limit=limit)


def _wanted(settings: Settings, topic: str | None, reason: str | None, place: str | None = None) -> dict[str, Any]:
    """Values of `_OPEN`."""
    partition, offset = None, None
    if place is not None:
        topic, partition, offset = parse_place(place)
    return {"topics": topics(settings, topic), "reason": reason or None, "partition": partition, "offset": offset}


def listed(
    settings: Settings, topic: str | None = None, reason: str | None = None, after: str | None = None, limit: int = 50
) -> LettersPage:
    """A page of the list for people, without Kafka while the index was compared with the topics lately.

    Raises:
        InputError: there is no such topic, or `after` is no place.
        ServerUnavailable: Postgres does not answer.
    """
    values = _wanted(settings, topic, reason)
    behind = _refresh(settings)
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        letters = _select(cursor, after or None, **values, limit=limit)
        counted = f"SELECT count(*) FROM (SELECT {_OPEN} LIMIT %(limit)s) AS counted"  # noqa: S608 - our own text
        cursor.execute(counted, values | {"limit": COUNTED + 1})
        ((count,),) = cursor.fetchall()
    return LettersPage(letters, count, behind)


def _refresh(settings: Settings) -> str:
    """Have the index compared with the topics when that is long ago; why it could not be."""
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT max(checked_at) FROM dead_letter_marks")
        ((checked_at,),) = cursor.fetchall()
    if checked_at is not None and datetime.now(UTC) - checked_at < STALE:
        return ""
    try:
        catch_up(settings)
    except (InputError, ServerUnavailable) as error:
        since = f"since {checked_at:%Y-%m-%d %H:%M} UTC" if checked_at else "yet"
        return f"not compared with the topics {since}: {error}"
    return ""


def stats(settings: Settings, topic: str | None = None) -> list[ReasonCount]:
    """How many are open, by topic and reason.

    Raises: as `open_letters`.
    """
    postgres.require_tables(settings.database)
    wanted = _wanted(settings, topic, None)
    catch_up(settings)
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        cursor.execute(
            f"SELECT d.topic, d.reason, count(*), min(d.written_at) {_OPEN} GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2",
            wanted,
        )
        return [ReasonCount(*row) for row in cursor]


def read(
    settings: Settings,
    topic: str | None = None,
    reason: str | None = None,
    limit: int | None = None,
    place: str | None = None,
) -> list[DeadLetter]:
    """The records of `open_letters`, from their topics.

    Raises: as `open_letters`.
    """
    return fetch(settings, open_letters(settings, topic, reason, limit, place))


def parse_place(place: str) -> tuple[str, int, int]:
    """Topic, partition and offset.

    Raises:
        InputError: it is none.
    """
    try:
        topic, partition, offset = place.rsplit("/", 2)
        at = topic, int(partition), int(offset)
    except ValueError:
        at = "", -1, -1
    if not (at[0] and 0 <= at[1] < 2**31 and 0 <= at[2] < 2**63) or "\x00" in place:
        raise InputError(f"{place}: must be TOPIC/PARTITION/OFFSET, as `pigeon dlq list` prints it")
    return at


@dataclass(frozen=True, slots=True)
class _At:
    topic: str
    partition: int
    offset: int
    topic_id: str = ""


def find(settings: Settings, place: str) -> DeadLetter:
    """The dead letter at TOPIC/PARTITION/OFFSET, open or not.

    Raises:
        InputError: there is none.
        Refused: a user that it names has asked to be erased.
    """
    name, partition, offset = parse_place(place)
    (topic,) = topics(settings, name)
    found = fetch(settings, [_At(topic, partition, offset)])
    if not found:
        raise InputError(f"{place}: no such dead letter")
    if _is_hidden(settings, found[0]):
        raise Refused(
            f"{place} is hidden: a user that it names has asked to be erased; it leaves its topic by retention"
        )
    return found[0]


def _is_hidden(settings: Settings, letter: DeadLetter) -> bool:
    """Whether a record, indexed or not, is of an erased user."""
    row = IndexRow.of(letter)
    with postgres.connected(settings.database, "pigeon-dlq") as connection, connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {_HIDDEN} FROM (VALUES (%s::text[], %s::bigint, %s::timestamptz))
                AS d (user_ids, source_timestamp, written_at)""",  # noqa: S608 - our own text
            (list(row.user_ids), row.source_timestamp, row.written_at),
        )
        return bool(cursor.fetchone()[0])


def _mark(settings: Settings, letters: Sequence[Place], action: Literal["replayed", "dropped"]) -> None:
    at = [(letter.topic, letter.topic_id, letter.partition, letter.offset) for letter in letters]
    with (
        postgres.connected(settings.database, "pigeon-dlq") as connection,
        connection,
        connection.cursor() as cursor,
    ):
        execute_values(
            cursor,
            """INSERT INTO dead_letter_actions (topic, topic_id, partition, "offset", action) VALUES %s
               ON CONFLICT DO NOTHING""",
            [(*place, action) for place in at],
        )
        execute_values(  # and its copies
            cursor,
            """UPDATE dead_letters c SET closed_at = now()
               FROM dead_letters d JOIN (VALUES %s) AS v (topic, topic_id, partition, "offset")
                 ON d.topic = v.topic AND d.topic_id = v.topic_id AND d.partition = v.partition AND d."offset" = v."offset"
               WHERE c.source = d.source AND c.source_timestamp = d.source_timestamp AND c.closed_at IS NULL""",
            at,
        )


def drop(settings: Settings, letters: Sequence[Place]) -> int:
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


def replay(settings: Settings, letters: Sequence[DeadLetter]) -> int:
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
