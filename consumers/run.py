"""The loop of `pigeon consume`: poll, decode, batch, hand to the writer; settle rebalances, back off, stop.

Two threads: this one polls Kafka, always, and decodes; the writer's does what may wait (Postgres, dead letters), one task at
a time: claim, write, restart. Back-pressure is plain: while a batch is full and the one before it is not durable, nothing more is read.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from consumers import broker, metrics
from consumers.assignment import Assignments
from consumers.batch import Batch
from consumers.decode import Limits, decode
from consumers.health import Health
from consumers.ingest import Written
from consumers.offsets import AlreadyDurable, Claim, Fenced
from consumers.outage import Backoff, Outage, first_line
from consumers.points import reached
from consumers.writer import Writer
from schemas.errors import Refused, ServerUnavailable
from schemas.settings import Settings

log = structlog.get_logger("pigeon.consume")
POLL_SECONDS = 0.2
BUSY_POLL_SECONDS = 0.02  # while the writer works: its end should be noticed soon


@dataclass
class Summary:
    """What a run did, in numbers."""

    records: int = 0
    poison: int = 0
    clamped: int = 0
    batches: int = 0
    seconds: float = 0.0  # spent while there was something to do
    written: Written = field(default_factory=Written)

    def line(self) -> str:
        """One line for people."""
        w = self.written
        rows = ", ".join(f"{topic} {count}" for topic, count in sorted(w.rows.items())) or "none"
        rate = self.records / self.seconds if self.seconds > 0 else 0.0
        extra = {
            "duplicates": w.duplicates,
            "poison": self.poison,
            "stale": w.stale,
            "clamped": self.clamped,
            "erased rows": w.erased,
            "events of erased users": w.forgotten,
        }
        tail = "".join(
            f", {count} {name}" for name, count in extra.items() if count or name in ("duplicates", "poison")
        )
        return f"{self.records} records in {self.batches} batches, {rate:.0f}/s; rows: {rows}{tail}"


class Ingest:
    """One member of the consumer group."""

    def __init__(
        self,
        settings: Settings,
        topics: list[str],
        *,
        until_idle: float | None = None,
        max_records: int | None = None,
        health: Health | None = None,
        progress: Callable[[Summary, int | None], None] | None = None,
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
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._writer = Writer(settings, self._owner)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="pigeon-writer")
        self._consumer: Any = None
        self._admin: Any = None
        self._stop = threading.Event()

        self._next: dict[TopicPartition, int] = {}  # of the partitions that are claimed: the next offset to take
        self._durable: dict[TopicPartition, int] = {}
        self._verified: set[TopicPartition] = set()  # their log is known to be as long as we left it
        self._topic_ids: dict[str, str | None] = {}
        self._unclaimed: dict[TopicPartition, float] = {}  # -> not before this time
        self._batch = Batch(settings.consumer)
        self._writing: Batch | None = None  # handed to the writer, not durable yet
        self._task: Future[Any] | None = None
        self._settle: Callable[[Any], None] = lambda result: None
        self._retry_at = 0.0
        self._backoff = Backoff(settings.consumer.outage_backoff_max_seconds)
        self._flowing = True
        self._joined = False  # the group has given us our partitions, be they none
        self._last_record = time.monotonic()
        self._taken = 0

    # --- the outside ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask the loop to finish its batch and return; safe from a signal handler or another thread."""
        self._stop.set()

    def run(self) -> Summary:
        """Consume until stopped, idle or at `max_records`.

        Raises:
            PoisonLimitExceeded: too much poison; offsets are held.
            Refused: a topic was made anew or cut, and the policy is to stop.
            ServerUnavailable: a dead-letter topic cannot be written, or no broker answers at the start.
        """
        self._consumer = broker.consumer(self.settings.kafka, self.settings.consumer)
        try:
            assignments = Assignments(self._consumer)
            self._consumer.subscribe(list(self._topics), listener=assignments)
            while not (self._stop.is_set() or self._finished()):
                self._step(assignments)
            self._drain(time.monotonic() + self.settings.consumer.stop_deadline_seconds)
            return self.summary
        finally:
            self._close()

    # --- one round -----------------------------------------------------------------------------------------------------

    def _step(self, assignments: Assignments) -> None:
        started = time.monotonic()
        self._collect()
        self._dispatch()
        self._flow()
        records = self._poll()
        for kind, partitions in assignments.changes():
            self._reassign(kind, partitions)
        for tp, batch in records.items():
            self._take(tp, batch)
        self._verify()
        if records or self._task is not None:
            self.summary.seconds += time.monotonic() - started
        self._watch()

    def _poll(self) -> dict[TopicPartition, list[Any]]:
        room = self._batch.room if self._max_records is None else min(self._batch.room, self._max_records - self._taken)
        seconds = BUSY_POLL_SECONDS if self._task is not None else min(POLL_SECONDS, self._batch.due_in)
        if not self._flowing:
            seconds = POLL_SECONDS
        if self._task is not None and room <= 0:
            wait([self._task], timeout=POLL_SECONDS)  # both batches are full: nothing to read for
            seconds = 0.0
        try:
            polled: dict[TopicPartition, list[Any]] = self._consumer.poll(
                timeout_ms=int(seconds * 1000), max_records=max(1, room)
            )
        except broker.OffsetOutOfRange as error:
            for tp in error.args[0]:
                self._lost_position(tp)
            return {}
        except broker.Unrecoverable:
            raise
        except broker.KafkaError as error:
            metrics.OUTAGES.labels("kafka").inc()
            self._health.outage("kafka", f"{type(error).__name__}: {first_line(error)}")
            time.sleep(POLL_SECONDS)
            return {}
        if polled:
            self._health.recovered("kafka")
        return polled

    def _take(self, tp: TopicPartition, records: list[Any]) -> None:
        expected = self._next.get(tp)
        if expected is None:  # revoked meanwhile
            return
        topic = self._topics[tp.topic]
        now = self._writer.now()
        size = 0
        for record in records:
            if record.offset < expected:
                continue
            decoded = decode(record, topic, self._limits, now)
            self._batch.add(decoded)
            size += len(record.value or b"") + len(record.key or b"")
            if decoded.clamped:
                self.summary.clamped += 1
                metrics.CLAMPED.labels(topic).inc()
        self._next[tp] = max(expected, records[-1].offset + 1)
        self._taken += len(records)
        self._last_record = time.monotonic()
        metrics.RECORDS.labels(topic).inc(len(records))
        metrics.BYTES.labels(topic).inc(size)

    # --- the writer's tasks --------------------------------------------------------------------------------------------

    def _submit(self, work: Callable[[], Any], settle: Callable[[Any], None]) -> None:
        self._settle = settle
        self._task = self._pool.submit(work)

    def _dispatch(self) -> None:
        """Give the writer its next task: claims first, then the batch that failed or is due."""
        now = time.monotonic()
        if self._task is not None or now < self._retry_at:
            return
        due = [tp for tp, not_before in self._unclaimed.items() if now >= not_before]
        if due and self._writing is None:
            self._claim(due)
            return
        if self._writing is None and len(self._batch) and self._batch.due_in <= 0:
            self._writing, self._batch = self._batch, Batch(self.settings.consumer)
        if self._writing is not None:
            batch = self._writing
            self._submit(lambda: self._writer.write(batch), self._written)

    def _collect(self) -> None:
        """Take the finished task's outcome."""
        if self._task is None or not self._task.done():
            return
        task, self._task = self._task, None
        try:
            result = task.result()
        except Outage as error:
            delay = self._backoff.next()
            self._retry_at = time.monotonic() + delay
            server = str(error).partition(":")[0]
            metrics.OUTAGES.labels(server).inc()
            if self._health.outage("database", str(error)):
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
        if self._backoff.failures:
            log.info("recovered", tries=self._backoff.failures)
        self._backoff.reset()
        self._health.recovered("database")
        self._settle(result)

    def _written(self, written: Written) -> None:
        batch, self._writing = self._writing, None
        if batch is None:
            return
        spans = batch.spans()
        self.summary.records += len(batch)
        self.summary.poison += len(batch.poison)
        self.summary.batches += 1
        self.summary.written.add(written)
        self._durable.update({tp: following for tp, (_, following) in spans.items()})
        self._health.progressed()
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
        self._commit_to_kafka({tp: following for tp, (_, following) in spans.items() if tp in self._next})

    def _commit_to_kafka(self, offsets: dict[TopicPartition, int]) -> None:
        """Tell Kafka, for lag tools only: our truth is in Postgres, so a failure is counted and forgotten."""

        def done(_: Any, response: Any) -> None:
            if isinstance(response, Exception):
                metrics.KAFKA_COMMIT_ERRORS.inc()

        if not offsets:
            return
        try:
            self._consumer.commit_async({tp: OffsetAndMetadata(o, "", -1) for tp, o in offsets.items()}, callback=done)
        except broker.KafkaError:
            metrics.KAFKA_COMMIT_ERRORS.inc()
        reached("after_kafka_commit")

    # --- partitions that come and go -----------------------------------------------------------------------------------

    def _reassign(self, kind: str, partitions: frozenset[TopicPartition]) -> None:
        self._give_up(partitions, None)
        self._joined = kind == "assigned"
        if self._joined:
            metrics.REBALANCES.inc()
            self._unclaimed.update(dict.fromkeys(partitions, 0.0))
            self._last_record = time.monotonic()

    def _give_up(self, partitions: frozenset[TopicPartition], claim_at: float | None) -> None:
        """Forget partitions and their records that are not durable; `claim_at`: when to claim them again."""
        for tp in partitions:
            self._next.pop(tp, None)
            self._verified.discard(tp)
            if claim_at is None:
                self._unclaimed.pop(tp, None)
            else:
                self._unclaimed[tp] = claim_at
        if claim_at is not None:
            self._consumer.pause(*(partitions & self._consumer.assignment()))
        self._batch = self._batch.without(partitions)
        if self._writing is not None and self._task is None:
            self._writing = self._writing.without(partitions)
            if not len(self._writing):
                self._writing = None

    def _claim(self, partitions: list[TopicPartition]) -> None:
        """Ask the writer for them; what needs the network is asked of the broker there, too."""

        def work() -> tuple[dict[TopicPartition, Claim], dict[TopicPartition, int]]:
            try:
                if self._admin is None:
                    self._admin = broker.admin(self.settings.kafka)
                self._topic_ids = broker.topic_ids(self._admin, {tp.topic for tp in partitions})
                starts = broker.beginnings(self._admin, partitions)
            except (broker.KafkaError, ServerUnavailable) as error:
                raise Outage(f"kafka: {type(error).__name__}: {first_line(error)}") from error
            begin = {tp: (starts[tp], self._topic_ids.get(tp.topic)) for tp in partitions}
            return self._writer.claim(begin), starts

        self._submit(work, self._claimed)

    def _claimed(self, result: tuple[dict[TopicPartition, Claim], dict[TopicPartition, int]]) -> None:
        claims, starts = result
        assigned = self._consumer.assignment()
        for tp, claim in claims.items():
            if tp not in self._unclaimed or tp not in assigned:
                continue  # taken away meanwhile
            del self._unclaimed[tp]
            now_id = self._topic_ids.get(tp.topic)
            if claim.topic_id and now_id and claim.topic_id != now_id:
                self._recreated(tp, f"has another id than before ({now_id}, was {claim.topic_id})")
                continue
            if claim.next_offset < starts[tp]:
                self._recreated(tp, f"begins at {starts[tp]}, after our offset {claim.next_offset}")
                continue
            self._begin(tp, claim.next_offset)
        metrics.ASSIGNED.set(len(self._next))

    def _begin(self, tp: TopicPartition, offset: int) -> None:
        self._consumer.seek(tp, offset)
        self._next[tp] = self._durable[tp] = offset
        if self._flowing:
            self._consumer.resume(tp)

    def _verify(self) -> None:
        """Notice a log that ends before our offset: brokers do not always say so."""
        for tp in self._next.keys() - self._verified:
            end = self._consumer.highwater(tp) if tp in self._consumer.assignment() else None
            if end is None:
                continue
            self._verified.add(tp)
            if end < self._next[tp]:
                self._recreated(tp, f"ends at {end}, before our offset {self._next[tp]}")

    def _lost_position(self, tp: TopicPartition) -> None:
        if tp in self._next:
            self._recreated(tp, f"does not have our offset {self._next[tp]}")

    def _recreated(self, tp: TopicPartition, what: str) -> None:
        """A topic is not the one we left: stop, or read it from its start."""
        if self.settings.consumer.on_topic_recreated == "stop":
            raise Refused(
                f"topic {tp.topic} partition {tp.partition} {what}: made anew or cut? Nothing was read. To read it from "
                "its start (stored events are recognised by event_id) set PIGEON_CONSUMER__ON_TOPIC_RECREATED=restart"
            )
        log.warning("topic made anew", topic=tp.topic, partition=tp.partition, what=what, policy="read from its start")
        self._give_up(frozenset([tp]), None)

        def work() -> int:
            try:
                start = broker.beginnings(self._admin, [tp])[tp]
            except broker.KafkaError as error:
                raise Outage(f"kafka: {type(error).__name__}: {first_line(error)}") from error
            self._writer.restart(tp, start, self._topic_ids.get(tp.topic))
            return start

        # At once and in this thread: it happens once in a topic's life, and nothing of it may be read before.
        start = work()
        self._verified.add(tp)
        self._begin(tp, start)

    # --- flow, watching, the end ---------------------------------------------------------------------------------------

    def _flow(self) -> None:
        """Read only while there is room and no outage."""
        blocked = self._retry_at > time.monotonic() or self._backoff.failures > 0
        full = self._batch.room == 0 or (self._max_records is not None and self._taken >= self._max_records)
        flowing = not (blocked or full)
        metrics.PAUSED.set(1 if blocked else 0)
        if flowing == self._flowing:
            return
        self._flowing = flowing
        owned = [tp for tp in self._next if tp in self._consumer.assignment()]
        if owned:
            (self._consumer.resume if flowing else self._consumer.pause)(*owned)

    def lag(self) -> int | None:
        """Records of our partitions that are not durable yet; None until every partition was asked once."""
        total = 0
        for tp in self._next:
            end = self._consumer.highwater(tp) if tp in self._consumer.assignment() else None
            if end is None:
                return None
            lag = max(0, end - self._durable[tp])
            metrics.LAG_RECORDS.labels(tp.topic, tp.partition).set(lag)
            total += lag
        return total

    def _watch(self) -> None:
        lag = self.lag()
        self._health.beat(lag or 0)
        self._progress(self.summary, lag)

    def _finished(self) -> bool:
        busy = self._task is not None or self._writing is not None or len(self._batch) > 0
        if self._max_records is not None and self.summary.records >= self._max_records:
            return True
        if self._until_idle is None or busy or self._unclaimed or self._backoff.failures:
            return False
        if not self._joined or self.lag() != 0:
            return False
        return time.monotonic() - self._last_record >= self._until_idle

    def _drain(self, deadline: float) -> None:
        """Make durable what was read, if it can be done by the deadline; what cannot is read again by the next member."""
        while (self._task is not None or self._writing is not None or len(self._batch)) and not self._backoff.failures:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                log.warning("stop deadline passed", dropped=len(self._batch), policy="read again by the next member")
                return
            if self._task is not None:
                wait([self._task], timeout=min(remaining, POLL_SECONDS))
                self._collect()
            elif self._writing is None:
                self._writing, self._batch = self._batch, Batch(self.settings.consumer)
            if self._task is None and self._writing is not None:
                batch = self._writing
                self._submit(lambda batch=batch: self._writer.write(batch), self._written)  # type: ignore[misc]

    def _close(self) -> None:
        self._pool.shutdown(wait=self._task is None, cancel_futures=True)
        self._writer.close()
        if self._admin is not None:
            self._admin.close()
        self._consumer.close(autocommit=False, timeout_ms=2_000)
