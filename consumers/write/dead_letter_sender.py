"""Dead letters: the untouched record with the reason in headers, and the limit that stops a consumer."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import Any

from consumers.kafka import clients, quirks, rights
from consumers.outage import Outage, first_line
from consumers.write.decode import Decoded
from consumers.write.letter_index import PREFIX, DeadLetter, IndexRow
from schemas.errors import InputError, PoisonLimitExceeded, ServerUnavailable
from schemas.events import DLQ_SUFFIX
from schemas.kafka_rights import missing_rights
from schemas.settings import ConsumerSettings
from schemas.settings_kafka import KafkaSettings

SHARE_NEEDS_RECORDS = 100
"""Records in the window below which `dlq_max_share` does not count: 1 bad of 1 is no epidemic."""
MAX_REQUEST_BYTES = 32 * 2**20
"""Bytes of the largest request: any record that the source topic can contain, plus our headers."""
IDENTIFY_SECONDS = 60.0
"""Seconds between two questions for the ids of dead-letter topics.

A row with the id that a topic had before it was recreated is found out and deleted when the topic is read.
"""


class PoisonLimit:
    """Counts poison within a sliding window of time."""

    def __init__(self, settings: ConsumerSettings) -> None:
        self._settings = settings
        self._window: deque[tuple[float, int, int]] = deque()
        self._records = self._poison = 0

    def admit(self, records: int, poison: int, now: float | None = None) -> None:
        """Count a batch before it is written.

        Raises:
            PoisonLimitExceeded: the window holds more poison than the settings allow; the batch must not be written.
        """
        now = time.monotonic() if now is None else now
        self._window.append((now, records, poison))
        self._records += records
        self._poison += poison
        while self._window and self._window[0][0] < now - self._settings.dlq_window_seconds:
            _, old_records, old_poison = self._window.popleft()
            self._records -= old_records
            self._poison -= old_poison
        limit = self._settings
        if self._poison > limit.dlq_max_count:
            raise PoisonLimitExceeded(
                f"{self._poison} undecodable records in {limit.dlq_window_seconds:.0f} s, consumer.dlq_max_count allows "
                f"{limit.dlq_max_count}: stopped, no offset moved past them; mend the producer or raise the limit"
            )
        if self._records >= SHARE_NEEDS_RECORDS and self._poison > limit.dlq_max_share * self._records:
            raise PoisonLimitExceeded(
                f"{self._poison} of {self._records} records undecodable, consumer.dlq_max_share allows "
                f"{limit.dlq_max_share:.0%}: stopped, no offset moved past them; mend the producer or raise the limit"
            )


def headers_of(decoded: Decoded) -> list[tuple[str, bytes]]:
    """The record's own headers, then ours."""
    record, poison = decoded.record, decoded.poison
    if poison is None:
        raise ValueError("only poison has a reason")
    ours = {
        "reason": poison.reason,
        "detail": poison.detail,
        "error-type": poison.error_type,
        "stack": poison.stack,
        "source-topic": record.topic,
        "source-partition": str(record.partition),
        "source-offset": str(record.offset),
        "source-timestamp": str(record.timestamp),
        "time": datetime.now(UTC).isoformat(),
    }
    return [
        *quirks.sendable_headers(record.headers),
        *((PREFIX + name, value.encode("utf-8", "backslashreplace")) for name, value in ours.items()),
    ]


class DeadLetters:
    """Writes poison to `<topic>.dlq` and waits until the broker has it."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: Any = None
        self._topic_ids: dict[str, str] = {}
        self._identify_at = 0.0

    def send(self, poison: list[Decoded]) -> list[IndexRow]:
        """Send and wait for every acknowledgement; returns what the index should have of them.

        That is less than all where the topics' ids cannot be asked for: who reads the topic adds the rest.

        Raises:
            Outage: the broker did not acknowledge in time; sending all of them again is safe (replay dedupes by source offset).
            ServerUnavailable: a dead-letter topic does not exist or does not take them; waiting would not help.
            InputError: we lack the right to write it.
        """
        if not poison:
            return []
        self._identify({d.record.topic + DLQ_SUFFIX for d in poison})
        headers = [headers_of(d) for d in poison]
        try:
            if self._producer is None:
                self._producer = clients.producer(self._settings, MAX_REQUEST_BYTES)
        except ServerUnavailable as error:
            raise Outage(str(error)) from error
        try:
            sent = [
                self._producer.send(
                    d.record.topic + DLQ_SUFFIX,
                    value=d.record.value,
                    key=d.record.key,
                    headers=own,  # its time as well: the dead letter's own is now, from which retention counts
                )
                for d, own in zip(poison, headers, strict=True)
            ]
            at = [future.get(timeout=self._settings.request_timeout_ms / 1000) for future in sent]
        except clients.KafkaError as error:
            self._refuse({d.record.topic + DLQ_SUFFIX for d in poison})
            if isinstance(error, clients.Unrecoverable):
                raise ServerUnavailable(f"the dead-letter topic cannot be written: {first_line(error)}") from error
            raise Outage(f"dead-letter topic: {type(error).__name__}: {first_line(error)}") from error
        return [
            IndexRow.of(self._letter(d, own, where))
            for d, own, where in zip(poison, headers, at, strict=True)
            if where.topic in self._topic_ids and where.offset >= 0  # a broker that knew a retry tells no offset
        ]

    def _letter(self, decoded: Decoded, headers: list[tuple[str, bytes]], at: Any) -> DeadLetter:
        record, identity = decoded.record, self._topic_ids[at.topic]
        return DeadLetter(
            *(at.topic, identity, at.partition, at.offset, record.key, record.value), tuple(headers), at.timestamp
        )

    def _identify(self, topics: set[str]) -> None:
        """Learn the topics' ids before anything is sent: a row's may be out of date, never another topic's."""
        now = time.monotonic()
        if now < self._identify_at and topics <= self._topic_ids.keys():
            return
        wanted = topics | self._topic_ids.keys()
        self._topic_ids = {}
        try:
            client = clients.admin(self._settings)
        except (ServerUnavailable, InputError):
            return
        try:
            self._topic_ids = {topic: identity or "" for topic, identity in clients.topic_ids(client, wanted).items()}
            self._identify_at = now + IDENTIFY_SECONDS
        except clients.KafkaError:
            return
        finally:
            client.close()

    def _refuse(self, topics: set[str]) -> None:
        """Raise what waiting would not mend: topics that are not there, rights that we lack."""
        try:
            client = clients.admin(self._settings)
        except ServerUnavailable:
            return
        try:
            lacking = missing_rights(client, rights.to_produce(topics))
            there = topics <= set(clients.topic_ids(client, topics))
        except clients.KafkaError:
            return
        finally:
            client.close()
        if lacking:
            raise InputError(f"dead letters cannot be written: {rights.without(self._settings, lacking)}")
        if not there:
            raise ServerUnavailable(
                "the dead-letter topic cannot be written, so nothing was: does it exist? `pigeon topics create`"
            )

    def close(self) -> None:
        """Close the producer; everything sent was acknowledged already."""
        if self._producer is not None:
            self._producer.close(timeout=2)
            self._producer = None
