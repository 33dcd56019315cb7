"""One batch, one transaction: dead letters first, then rows, their index, and the next offsets.

Runs in the writer's own thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg2
import structlog
from kafka import TopicPartition

from consumers import metrics, outage, postgres
from consumers.outage import Outage, first_line
from consumers.write import letter_index, offsets, staging, upsert
from consumers.write.batch import Batch
from consumers.write.dead_letter_sender import DeadLetters, PoisonLimit
from consumers.write.decode import Decoded, refused_by_database
from consumers.write.letter_index import IndexRow
from consumers.write.offsets import Claim
from consumers.write.upsert import Written
from schemas.errors import PigeonError
from schemas.faultpoints import reach
from schemas.settings import Settings

log = structlog.get_logger("pigeon.consume")
T = TypeVar("T")


class Writer:
    """Owns the database connection, the epochs of our partitions and the dead-letter producer."""

    def __init__(self, settings: Settings, owner: str) -> None:
        self._settings = settings
        self._owner = owner
        self._group = settings.kafka.group_id
        self._connection: Any = None
        self._epochs: dict[TopicPartition, int] = {}
        self._dead_letters = DeadLetters(settings.kafka)
        self._limit = PoisonLimit(settings.consumer)
        self._unindexed: list[IndexRow] = []  # of dead letters that are in their topics
        self._untold = 0  # poison since the last line about it
        self._first_untold: Decoded
        self._tell_poison_at = 0.0

    def _transaction(self, work: Callable[[Any], T]) -> T:
        """Run `work(cursor)` and commit.

        Raises:
            Outage: the server cannot do it now.
            psycopg2.Error: a row is at fault (`outage.is_data_error`).
            PigeonError: the schema is not ours.
        """
        try:
            if self._connection is None or self._connection.closed:
                self._connection = postgres.connect(self._settings.database, "pigeon-consumer")
                with self._connection, self._connection.cursor() as cursor:
                    staging.create(cursor)
            with self._connection, self._connection.cursor() as cursor:
                result = work(cursor)
                reach("before_commit")
        except psycopg2.Error as error:
            if outage.is_data_error(error):
                raise
            self._disconnect()
            if outage.is_outage(error):
                raise Outage(f"database: {first_line(error)}") from error
            raise PigeonError(
                f"database: {first_line(error)}: is it at this release's revision? `pigeon db check`"
            ) from error
        return result

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def claim(self, partitions: Mapping[TopicPartition, tuple[int, str | None]]) -> dict[TopicPartition, Claim]:
        """Take partitions over, given where unowned ones begin: (offset, topic id).

        Raises:
            Outage: the database cannot be written now.
        """
        claims = self._transaction(lambda cursor: offsets.claim(cursor, self._group, self._owner, partitions))
        self._epochs.update({tp: claim.epoch for tp, claim in claims.items()})
        reach("claimed")
        return claims

    def restart(self, tp: TopicPartition, offset: int, topic_id: str | None) -> None:
        """Set an owned partition back, because its topic was recreated.

        Raises: Outage, Fenced.
        """
        epoch = self._epochs[tp]
        self._transaction(lambda cursor: offsets.restart(cursor, self._group, tp, epoch, offset, topic_id))

    def write(self, batch: Batch) -> Written:
        """Make a batch durable.

        Raises:
            Outage: nothing was written; the same batch may be tried again.
            Fenced, AlreadyDurable: nothing was written; try again without those partitions.
            PoisonLimitExceeded: nothing was written.
        """
        started = time.monotonic()
        if not batch.admitted:
            self._limit.admit(len(batch), len(batch.poison))
            batch.admitted = True
        if not batch.dead_letters_sent:
            self._send_dead_letters(batch.poison)
            batch.dead_letters_sent = True
        written = self._write(batch)
        now = time.time()
        metrics.DURABLE_DELAY_SECONDS.observe(max(0.0, now - min(now, batch.oldest_ms / 1000)))
        metrics.WRITE_SECONDS.observe(time.monotonic() - started)
        metrics.BATCH_RECORDS.observe(len(batch))
        return written

    def _send_dead_letters(self, poison: list[Decoded]) -> None:
        if not poison:
            return
        self._unindexed += self._dead_letters.send(poison)
        for d in poison:
            metrics.POISON.labels(d.topic, d.poison.reason if d.poison else "").inc()
        self._tell_poison(poison)
        reach("dead_letters_sent")

    def _tell_poison(self, poison: list[Decoded]) -> None:
        """One line per `log_every_seconds`, about the first that the line before did not count."""
        if not self._untold:
            self._first_untold = poison[0]
        self._untold += len(poison)
        now = time.monotonic()
        if now < self._tell_poison_at:
            return
        record, why = self._first_untold.record, self._first_untold.poison
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        log.warning(
            "poison",
            **place,
            reason=why.reason if why else "",
            detail=why.detail if why else "",
            records=self._untold,
            see="`pigeon dlq list`",
        )
        self._untold, self._tell_poison_at = 0, now + self._settings.consumer.log_every_seconds

    def _write(self, batch: Batch) -> Written:
        try:
            written = self._transaction(lambda cursor: self._apply(cursor, batch))
        except psycopg2.Error as error:
            return self._isolate(batch, error)
        self._unindexed.clear()
        reach("after_commit")
        return written

    def _apply(self, cursor: Any, batch: Batch) -> Written:
        for topic, lines in batch.lines.items():
            staging.copy(cursor, topic, lines)
        settings = self._settings.consumer
        counts = {topic: len(lines) for topic, lines in batch.lines.items()}
        written = upsert.apply(cursor, counts, settings.positive_kinds, settings.history_size)
        letter_index.insert(cursor, self._unindexed)
        reach("staged")
        offsets.advance(cursor, self._group, self._epochs, batch.spans)
        return written

    def _isolate(self, batch: Batch, error: psycopg2.Error) -> Written:
        """Postgres refused a row that validation let through: find it by halves, its neighbours are stored."""
        if len(batch) == 1:
            decoded = batch.records[0]
            bad = decoded._replace(row=None, poison=refused_by_database(error))
            self._limit.admit(0, 1)
            self._send_dead_letters([bad])
            batch.replace([bad])
            return self._write(batch)
        total = Written()
        halves = list(batch.halves())
        for half in halves:
            total.add(self._write(half))
        batch.replace([decoded for half in halves for decoded in half.records])
        return total

    def now(self) -> datetime:
        """The time that future-dated events are clamped to."""
        return datetime.now(UTC)

    def close(self) -> None:
        """Roll back what is open and let go of everything."""
        self._disconnect()
        self._dead_letters.close()
