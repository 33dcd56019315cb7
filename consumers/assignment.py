"""What the group has given us and taken away: told by Kafka's own thread, acted on in the loop's."""

from __future__ import annotations

from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any, Literal

from kafka import ConsumerRebalanceListener, TopicPartition

from consumers import broker

Change = tuple[Literal["assigned", "revoked"], frozenset[TopicPartition]]


class Assignments(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Queues the group's decisions; new partitions stay paused until they are claimed and sought.

    Kafka's thread must not wait for Postgres: it sends the heartbeats.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._changes: SimpleQueue[Change] = SimpleQueue()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Hold the new partitions still. Any position will do for now, as long as there is one."""
        partitions = frozenset(assigned)
        for tp in partitions:
            self._consumer.seek(tp, 0)
        self._consumer.pause(*partitions)
        self._changes.put(("assigned", partitions))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Their buffered records must not be written any more: the next owner reads them again."""
        broker.keep_joining(self._consumer)
        self._changes.put(("revoked", frozenset(revoked)))

    def changes(self) -> Iterable[Change]:
        """What happened since the last call, in order."""
        while True:
            try:
                yield self._changes.get_nowait()
            except Empty:
                return
