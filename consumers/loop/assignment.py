"""What the group gives us and takes away: queued in Kafka's own thread, acted on in the loop's."""

from __future__ import annotations

from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import Any, Literal

from kafka import ConsumerRebalanceListener, TopicPartition

from consumers.kafka import clients, quirks
from schemas.settings import ConsumerSettings
from schemas.settings_kafka import KafkaSettings

# "given": the outcome of a join, all that is ours now. In a cooperative group "assigned" is only what is new of it.
Change = tuple[Literal["given", "assigned", "revoked"], frozenset[TopicPartition]]


class Assignments(ConsumerRebalanceListener):  # type: ignore[misc] # kafka-python has no types
    """Queue of the group's decisions; new partitions stay paused until they are claimed and sought.

    Kafka's thread must not wait for Postgres: it sends the heartbeats. `consumer` is the group's member.
    """

    def __init__(self, settings: KafkaSettings, limits: ConsumerSettings) -> None:
        """Raises: as `clients.consumer`."""
        self._changes: SimpleQueue[Change] = SimpleQueue()
        self._cooperative = settings.rebalance == "cooperative"
        assignors = [quirks.Cooperative(self)] if self._cooperative else None
        self.consumer: Any = clients.consumer(settings, limits, assignors=assignors)

    def joining(self) -> None:
        """Keep the join that begins going, in a cooperative group."""
        quirks.keep_joining(self.consumer)

    def joined(self, partitions: Iterable[TopicPartition]) -> None:
        """Queue the outcome of a join: all partitions that are ours now."""
        self._changes.put(("given", frozenset(partitions)))

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Pause the new partitions and queue them."""
        partitions = frozenset(assigned)
        # Any position will do for now, as long as there is one.
        for tp in partitions:
            self.consumer.seek(tp, 0)
        self.consumer.pause(*partitions)
        self._changes.put(("assigned", partitions))
        if not self._cooperative:
            self.joined(partitions)

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Queue what was taken away: its buffered records must not be written, the next owner reads them."""
        quirks.keep_joining(self.consumer)
        self._changes.put(("revoked", frozenset(revoked)))
        if self._cooperative:
            quirks.let_others_join()

    def changes(self) -> Iterable[Change]:
        """What happened since the last call, in order."""
        while True:
            try:
                yield self._changes.get_nowait()
            except Empty:
                return
