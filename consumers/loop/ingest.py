"""The loop of `pigeon consume`: poll, decode, batch, write; follow rebalances, back off, stop.

Two threads: this one polls Kafka, always, and decodes; the other does what may wait (Postgres, dead letters), one job at a
time: claim, write, restart. Back-pressure is plain: while a batch is full and the one before it is not durable, nothing more is read.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from consumers import metrics
from consumers.kafka import clients, quirks
from consumers.loop.assignment import Assignments
from consumers.loop.background import Background
from consumers.loop.health import Health
from consumers.loop.ownership import Ownership
from consumers.loop.summary import Summary
from consumers.outage import Backoff, Outage, first_line
from consumers.write.batch import Batch
from consumers.write.decode import REASONS, Limits, decode
from consumers.write.offsets import AlreadyDurable, Fenced
from consumers.write.upsert import Written
from consumers.write.writer import Writer
from schemas.errors import Refused
from schemas.faultpoints import reach
from schemas.settings import Settings

log = structlog.get_logger("pigeon.consume")
POLL_SECONDS = 0.2
BUSY_POLL_SECONDS = 0.02
"""Seconds of a poll while a job is under way: its end should be noticed soon."""
POLL_RECORDS = 1_000
"""Records of one poll at most: while they are decoded nobody notices that the writer is done."""
CLOSE_TIMEOUT_MS = 2_000


class Ingest:
    """One member of the consumer group; runs once."""

    _consumer: Any
    _owned: Ownership

    def __init__(
        self,
        settings: Settings,
        topics: list[str],
        *,
        until_idle: float | None = None,
        max_records: int | None = None,
        health: Health | None = None,
        progress: Callable[[Summary, int], None] | None = None,
    ) -> None:
        """Consume `topics` (names without the prefix).

        Args:
            until_idle: return when everything is read and nothing came for this many seconds.
            max_records: return after this many records are durable.
            progress: called about once a poll with the summary so far and the known lag in records.
        """
        self.settings = settings
        self.summary = Summary()
        self._topics = {settings.kafka.topic_prefix + topic: topic for topic in topics}
        self._until_idle = until_idle
        self._max_records = max_records
        self._health = health or Health()
        self._progress = progress or (lambda summary, lag: None)
        self._limits = Limits(
            settings.consumer.max_event_bytes, timedelta(seconds=settings.consumer.max_future_seconds)
        )
        self._writer = Writer(settings, owner=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}")
        self._background = Background()
        self._stop = threading.Event()
        self._batch = Batch(settings.consumer)
        self._writing: Batch | None = None  # handed to the writer, not durable yet
        self._retry_at = 0.0
        self._backoff = Backoff(settings.consumer.outage_backoff_max_seconds)
        self._flowing = True
        self._last_record = time.monotonic()

    def stop(self) -> None:
        """Ask the loop to finish its batch and return; safe from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> Summary:
        """Consume until stopped, idle or at `max_records`.

        Raises:
            PoisonLimitExceeded: too much poison; offsets are held.
            Refused: a topic was recreated or cut, and the policy is to stop; or a batch's bytes cannot be decoded.
            InputError: the broker refuses a setting of ours, or us.
            ServerUnavailable: a dead-letter topic cannot be written, or no broker answers at the start.
        """
        metrics.begin(self._topics.values(), REASONS)
        assignments = Assignments(self.settings.kafka, self.settings.consumer)
        self._consumer = assignments.consumer
        self._owned = Ownership(self.settings, self._consumer, self._writer)
        try:
            self._consumer.subscribe(list(self._topics), listener=assignments)
            quirks.learn_topics(self._consumer, self._topics)
            while not (self._stop.is_set() or self._finished()):
                self._step(assignments)
            self._drain(time.monotonic() + self.settings.consumer.stop_deadline_seconds)
            return self.summary
        finally:
            self._close()

    def _step(self, assignments: Assignments) -> None:
        """One round."""
        started = time.monotonic()
        self._collect()
        self._dispatch()
        self._flow()
        records = self._poll()
        for kind, partitions in assignments.changes():
            if kind == "given":
                self._owned.note_joined(partitions)
                self._last_record = time.monotonic()
                continue
            self._give_up(partitions)
            if kind == "assigned":
                self._owned.note_assigned(partitions)
            else:
                self._owned.note_revoked()
        for tp, batch in records.items():
            self._take(tp, batch)
        self._commit_to_kafka(
            self._owned.pass_over({*self._batch.spans, *(self._writing.spans if self._writing else ())})
        )
        self._owned.verify()
        if records or self._background.busy:
            self.summary.seconds += time.monotonic() - started
        lag, _ = self._owned.lag()
        self._health.beat(lag)
        self._health.note_silent_brokers(quirks.silent_brokers(self._consumer))
        self._progress(self.summary, lag)

    # --- reading -------------------------------------------------------------------------------------------------------

    def _room(self) -> int:
        """How many more records may be read now."""
        if self._max_records is None:
            return self._batch.room
        taken = self.summary.records + len(self._writing or ()) + len(self._batch)
        return max(0, min(self._batch.room, self._max_records - taken))

    def _flow(self) -> None:
        """Read only while there is room and no outage."""
        waiting = self._backoff.failures > 0
        metrics.PAUSED.set(1 if waiting else 0)
        self._flowing = self._room() > 0 and not waiting
        self._owned.flow(self._flowing)

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        busy = self._background.busy
        if not self._flowing:
            if busy:
                self._background.wait(POLL_SECONDS)  # both batches are full: nothing to read for
            seconds = 0.0 if busy else POLL_SECONDS
        else:
            seconds = BUSY_POLL_SECONDS if busy else min(POLL_SECONDS, self._batch.due_in)
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(
                timeout_ms=int(seconds * 1000), max_records=max(1, min(POLL_RECORDS, self._room()))
            )
        except clients.LostPosition as error:
            for tp in clients.lost_positions(error):
                self._owned.lost_position(tp)
            return {}
        except clients.Unrecoverable as error:
            raise clients.refusal(error) from error
        except Exception as error:
            if quirks.is_undecodable(error):
                raise Refused(
                    f"kafka: a batch cannot be decoded: {type(error).__name__}: {first_line(error)}. It lies at one of "
                    f"{self._owned.where()}. Nothing behind it was read; repair or delete it (kafka-delete-records), "
                    "or move the stored offset in `consumer_offsets` behind it"
                ) from error
            if not isinstance(error, clients.KafkaError):
                raise
            self._owned.identify_soon()
            metrics.OUTAGES.labels("kafka").inc()
            if self._health.note_outage("kafka", f"{type(error).__name__}: {first_line(error)}"):
                log.warning("outage", server="kafka", error=first_line(error), policy="polling until it is back")
            time.sleep(POLL_SECONDS)
            return {}
        if polled:
            self._health.note_recovery("kafka")
        return polled

    def _take(self, tp: TopicPartition, records: list[Any]) -> None:
        expected = self._owned.next_offset(tp)
        if expected is None:  # taken away meanwhile
            return
        topic = self._topics[tp.topic]
        now = self._writer.now()
        decoded = [decode(record, topic, self._limits, now) for record in records if record.offset >= expected]
        before = self._batch.bytes
        self._batch.add(tp, decoded)
        clamped = sum(d.clamped for d in decoded)
        if clamped:
            self.summary.clamped += clamped
            metrics.CLAMPED.labels(topic).inc(clamped)
        self._owned.mark_taken(tp, records[-1].offset + 1)
        self._last_record = time.monotonic()
        metrics.RECORDS.labels(topic).inc(len(records))
        metrics.BYTES.labels(topic).inc(self._batch.bytes - before)

    # --- writing -------------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Begin the next job.

        In order: the batch that failed, claims, a look at the topics, the batch that is due, recreated topics.
        """
        now = time.monotonic()
        if self._background.busy or now < self._retry_at:
            return
        if self._writing is None:
            first = self._owned.claim(now) or self._owned.identify(now)
            if first:
                self._background.submit(first)
                return
            if len(self._batch) and (self._batch.due_in <= 0 or self._owned.restarting):
                self._close_batch()
        if self._writing is not None:
            self._write(self._writing)
        elif not len(self._batch):
            restart = self._owned.restart()
            if restart:
                self._background.submit(restart)

    def _close_batch(self) -> None:
        self._writing, self._batch = self._batch, Batch(self.settings.consumer)

    def _write(self, batch: Batch) -> None:
        self._background.submit((lambda: self._writer.write(batch), self._written))

    def _collect(self) -> None:
        """Take the outcome of the job that is done, if one is."""
        try:
            finish = self._background.collect()
        except Outage as error:
            self._retry_at = time.monotonic() + self._backoff.next()
            server = str(error).partition(":")[0]
            metrics.OUTAGES.labels(server).inc()
            if self._health.note_outage("stores", str(error)):
                log.warning("outage", error=str(error), policy="paused; trying again until it is back")
            return
        except Fenced as error:
            metrics.FENCED.inc(len(error.partitions))
            log.warning("fenced", partitions=str(error), policy="dropped; the new owner reads them")
            # The group tells us of the change as a rule; should it not, claim again when a session has passed.
            self._give_up(error.partitions, time.monotonic() + self.settings.kafka.session_timeout_ms / 1000)
            return
        except AlreadyDurable as error:
            log.warning("already durable", partitions=str(error), policy="claimed again at the stored offset")
            self._give_up(error.partitions, 0.0)
            return
        if finish is None:
            return
        if self._backoff.failures:
            log.info("recovered", tries=self._backoff.failures)
            self._owned.identify_soon()
        self._backoff.reset()
        self._health.note_recovery("stores")
        finish()

    def _written(self, written: Written) -> None:
        batch, self._writing = self._writing, None
        if batch is None:
            return
        self.summary.add(batch, written)
        self._health.note_progress()
        for topic, rows in written.rows.items():
            metrics.ROWS.labels(topic).inc(rows)
        metrics.DUPLICATES.inc(written.duplicates)
        metrics.STALE.inc(written.stale)
        metrics.FORGOTTEN.inc(written.forgotten)
        metrics.ERASED_ROWS.inc(written.erased)
        metrics.PARTITIONS_MADE.inc(written.partitions_made)
        if written.partitions_made:
            log.warning(
                "partitions made on demand", count=written.partitions_made, fix="`pigeon db upkeep` makes them ahead"
            )
        self._commit_to_kafka(self._owned.mark_durable({tp: end for tp, (_, end) in batch.spans.items()}))

    def _commit_to_kafka(self, offsets: dict[TopicPartition, int]) -> None:
        """Commit to Kafka, for lag tools only: our truth is in Postgres, so a failure is just counted."""

        def done(_: Any, response: Any) -> None:
            if isinstance(response, Exception):
                metrics.KAFKA_COMMIT_ERRORS.inc()

        if not offsets:
            return
        try:
            self._consumer.commit_async({tp: OffsetAndMetadata(o, "", -1) for tp, o in offsets.items()}, callback=done)
        except clients.KafkaError:
            metrics.KAFKA_COMMIT_ERRORS.inc()
        reach("after_kafka_commit")

    def _give_up(self, partitions: Collection[TopicPartition], claim_at: float | None = None) -> None:
        """Drop partitions and what was read of them and is not durable.

        A write under way is fenced by the new owner.
        """
        self._owned.give_up(partitions, claim_at)
        self._batch = self._batch.without(partitions)
        if self._writing is not None and not self._background.busy:
            self._writing = self._writing.without(partitions)
            if not len(self._writing):
                self._writing = None

    # --- the end -------------------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        if self._max_records is not None and self.summary.records >= self._max_records:
            return True
        busy = self._background.busy or self._writing is not None or len(self._batch) > 0
        if self._until_idle is None or busy or self._backoff.failures or not self._owned.settled:
            return False
        return self._owned.lag() == (0, True) and time.monotonic() - self._last_record >= self._until_idle

    def _drain(self, deadline: float) -> None:
        """Make durable what was read, as far as the deadline allows; the next member reads the rest again."""
        while not self._backoff.failures and (self._background.busy or self._writing is not None or len(self._batch)):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                log.warning("stop deadline passed", policy="what is not durable is read again by the next member")
                return
            if self._background.busy:
                self._background.wait(min(remaining, POLL_SECONDS))
                self._collect()
                continue
            if self._writing is None:
                self._close_batch()
            if self._writing is not None:
                self._write(self._writing)

    def _close(self) -> None:
        if not self._background.busy:  # else it hangs in a dead server, and closing the connection would hang, too
            self._writer.close()
        self._owned.close()
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_TIMEOUT_MS)
