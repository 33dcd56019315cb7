"""What one transaction writes: records as they were read, and the next offset of each partition."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from itertools import groupby

from kafka import TopicPartition

from consumers.write import staging
from consumers.write.decode import Decoded
from schemas.settings import ConsumerSettings

OVERHEAD_BYTES = 64
"""Bytes of a record beside its key and value, as `batch_max_bytes` counts."""


class Batch:
    """Closed by count, bytes or time, whichever comes first.

    Every record carries its offset, so the offsets to store cannot be wrong by one: they are the last record's plus one.
    What the writer needs of each record is made as it comes in: the writer is the slower one of the two threads.
    """

    def __init__(self, limits: ConsumerSettings) -> None:
        self._limits = limits
        self.replace([])
        self.opened_at: float | None = None
        self.admitted = False  # counted by the poison limit
        self.dead_letters_sent = False

    def __len__(self) -> int:
        return len(self.records)

    def replace(self, records: list[Decoded]) -> None:
        """Replace the records: the same ones as they turned out to be, some of them poison now."""
        self.records: list[Decoded] = []
        self.poison: list[Decoded] = []  # of the records, those that go to the dead-letter topic
        self.lines: dict[str, list[str]] = {}  # of each topic, its rows in COPY's text
        self.spans: dict[TopicPartition, tuple[int, int]] = {}  # the first offset and the next one (last + 1)
        self.oldest_ms = math.inf  # the records' least timestamp
        self.bytes = 0  # of keys and values
        for (topic, partition), run in groupby(records, key=lambda d: (d.record.topic, d.record.partition)):
            self._take(TopicPartition(topic, partition), list(run))

    def _take(self, tp: TopicPartition, records: list[Decoded]) -> None:
        if not records:
            return
        lines = []
        for place, decoded in enumerate(records, len(self.records)):
            record, row = decoded.record, decoded.row
            if row is None:
                self.poison.append(decoded)
            else:
                lines.append(staging.line(place, row))
            stamp = record.timestamp
            if stamp is not None and 0 <= stamp < self.oldest_ms:
                self.oldest_ms = stamp
            self.bytes += len(record.value or b"") + len(record.key or b"")
        if lines:
            self.lines.setdefault(records[0].topic, []).extend(lines)
        self.records += records
        first, _ = self.spans.get(tp, (records[0].record.offset, 0))
        self.spans[tp] = (first, records[-1].record.offset + 1)

    def add(self, tp: TopicPartition, records: list[Decoded]) -> None:
        """Take records of one partition, in offset order and after those that are in here."""
        if self.opened_at is None and records:
            self.opened_at = time.monotonic()
        self._take(tp, records)

    @property
    def room(self) -> int:
        """How many records may still come in; 0 when it is full by count or bytes."""
        if self.bytes + OVERHEAD_BYTES * len(self.records) >= self._limits.batch_max_bytes:
            return 0
        return max(0, self._limits.batch_max_records - len(self.records))

    @property
    def due_in(self) -> float:
        """Seconds until it must be written; 0 when it is due, infinity when it is empty."""
        if self.opened_at is None:
            return float("inf")
        if not self.room:
            return 0.0
        return max(0.0, self.opened_at + self._limits.batch_max_seconds - time.monotonic())

    def _with(self, records: list[Decoded]) -> Batch:
        part = Batch(self._limits)
        part.replace(records)
        part.opened_at = self.opened_at if records else None
        part.admitted, part.dead_letters_sent = self.admitted, self.dead_letters_sent
        return part

    def without(self, partitions: Collection[TopicPartition]) -> Batch:
        """The same batch less some partitions, which are somebody else's now."""
        gone = set(partitions)
        return self._with([d for d in self.records if (d.record.topic, d.record.partition) not in gone])

    def halves(self) -> Iterator[Batch]:
        """Two parts that, written one after the other, equal the whole.

        Each partition's records keep their order.
        """
        middle = len(self.records) // 2
        yield self._with(self.records[:middle])
        yield self._with(self.records[middle:])
