"""Records in the order they were read, and the next offset of each partition: what one transaction writes."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

from kafka import TopicPartition

from consumers.decode import Decoded
from schemas.settings import ConsumerSettings


class Batch:
    """Closed by count, bytes or time, whichever comes first.

    Every record carries its offset, so the offsets to store cannot be wrong by one: they are the last record's plus one.
    """

    def __init__(self, limits: ConsumerSettings) -> None:
        self._limits = limits
        self.records: list[Decoded] = []
        self.bytes = 0
        self.opened_at: float | None = None
        self.admitted = False  # counted by the poison limit
        self.dead_letters_sent = False

    def __len__(self) -> int:
        return len(self.records)

    def add(self, decoded: Decoded) -> None:
        """Take one record; the caller adds a partition's records in offset order."""
        if self.opened_at is None:
            self.opened_at = time.monotonic()
        self.records.append(decoded)
        record = decoded.record
        self.bytes += len(record.value or b"") + len(record.key or b"") + 64

    @property
    def room(self) -> int:
        """How many records may still come in; 0 when it is full by count or bytes."""
        if self.bytes >= self._limits.batch_max_bytes:
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

    @property
    def poison(self) -> list[Decoded]:
        """The records that go to the dead-letter topic."""
        return [d for d in self.records if d.poison is not None]

    def spans(self) -> dict[TopicPartition, tuple[int, int]]:
        """The first offset and the next offset (last + 1) of each partition in here."""
        spans: dict[TopicPartition, tuple[int, int]] = {}
        for d in self.records:
            tp = TopicPartition(d.record.topic, d.record.partition)
            first, _ = spans.get(tp, (d.record.offset, 0))
            spans[tp] = (first, d.record.offset + 1)
        return spans

    def _with(self, records: list[Decoded]) -> Batch:
        part = Batch(self._limits)
        for decoded in records:
            part.add(decoded)
        part.opened_at = self.opened_at if records else None
        part.admitted, part.dead_letters_sent = self.admitted, self.dead_letters_sent
        return part

    def without(self, partitions: Collection[TopicPartition]) -> Batch:
        """The same batch less some partitions, which are somebody else's now."""
        gone = set(partitions)
        return self._with([d for d in self.records if (d.record.topic, d.record.partition) not in gone])

    def halves(self) -> Iterator[Batch]:
        """Two parts that, written one after the other, equal the whole: each partition's records keep their order."""
        middle = len(self.records) // 2
        yield self._with(self.records[:middle])
        yield self._with(self.records[middle:])
