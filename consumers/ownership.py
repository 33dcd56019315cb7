"""The partitions of this member: claimed when the group gives them, begun at the stored offset, given up when it takes them.

Only the loop's thread calls this; what needs the network is handed out as jobs for the background.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import structlog
from kafka import TopicPartition

from consumers import broker, metrics
from consumers.background import Job
from consumers.offsets import Claim
from consumers.outage import Outage, first_line
from consumers.writer import Writer
from schemas.errors import Refused, ServerUnavailable
from schemas.settings import Settings

log = structlog.get_logger("pigeon.consume")


class Ownership:
    """Which partitions we own, the next offset to take of each, and how far each is durable."""

    def __init__(self, settings: Settings, consumer: Any, writer: Writer) -> None:
        self._settings = settings
        self._consumer = consumer
        self._writer = writer
        self._admin: Any = None
        self._topic_ids: dict[str, str | None] = {}
        self._verified: set[TopicPartition] = set()  # their log is known to be as long as we left it
        self._unclaimed: dict[TopicPartition, float] = {}  # -> not before this time
        self._restarting: set[TopicPartition] = set()  # made anew, to be read from their start
        self._flowing = True
        self.next: dict[TopicPartition, int] = {}
        self.durable: dict[TopicPartition, int] = {}
        self.joined = False  # the group has given us our partitions, be they none

    @property
    def settled(self) -> bool:
        """Whether the group has spoken and everything it gave us is being read."""
        return self.joined and not self._unclaimed and not self._restarting

    @property
    def restarting(self) -> bool:
        """Whether a topic made anew waits to be read from its start."""
        return bool(self._restarting)

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        """The group gives us these."""
        self.joined = True
        metrics.REBALANCES.inc()
        self._unclaimed.update(dict.fromkeys(partitions, 0.0))

    def give_up(self, partitions: Collection[TopicPartition], claim_at: float | None = None) -> None:
        """Forget partitions; with `claim_at` claim them again at that time, if the group has not taken them by then."""
        for tp in partitions:
            self.next.pop(tp, None)
            self._verified.discard(tp)
            self._restarting.discard(tp)
            if claim_at is None:
                self._unclaimed.pop(tp, None)
            else:
                self._unclaimed[tp] = claim_at
        if claim_at is not None:
            self._consumer.pause(*(set(partitions) & self._consumer.assignment()))
        metrics.ASSIGNED.set(len(self.next))

    def flow(self, flowing: bool) -> None:
        """Pause or resume everything we own."""
        if flowing == self._flowing:
            return
        self._flowing = flowing
        owned = [tp for tp in self.next if tp in self._consumer.assignment()]
        if owned:
            (self._consumer.resume if flowing else self._consumer.pause)(*owned)

    def claim(self, now: float) -> Job | None:
        """The job of claiming what is due."""
        due = [tp for tp, not_before in self._unclaimed.items() if now >= not_before]
        if not due:
            return None

        def work() -> tuple[dict[TopicPartition, Claim], dict[TopicPartition, int]]:
            try:
                if self._admin is None:
                    self._admin = broker.admin(self._settings.kafka)
                self._topic_ids = broker.topic_ids(self._admin, {tp.topic for tp in due})
                starts = broker.beginnings(self._admin, due)
            except (broker.KafkaError, ServerUnavailable) as error:
                raise Outage(f"kafka: {type(error).__name__}: {first_line(error)}") from error
            begin = {tp: (starts[tp], self._topic_ids.get(tp.topic)) for tp in due}
            return self._writer.claim(begin), starts

        return work, lambda result: self._claimed(*result)

    def _claimed(self, claims: dict[TopicPartition, Claim], starts: dict[TopicPartition, int]) -> None:
        assigned = self._consumer.assignment()
        for tp, claim in claims.items():
            if tp not in self._unclaimed or tp not in assigned:
                continue  # taken away meanwhile
            del self._unclaimed[tp]
            now_id = self._topic_ids.get(tp.topic)
            if claim.topic_id and now_id and claim.topic_id != now_id:
                self._recreated(tp, f"has another id than before ({now_id}, was {claim.topic_id})")
            elif claim.next_offset < starts[tp]:
                self._recreated(tp, f"begins at {starts[tp]}, after our offset {claim.next_offset}")
            else:
                self._begin(tp, claim.next_offset)
        metrics.ASSIGNED.set(len(self.next))

    def _begin(self, tp: TopicPartition, offset: int) -> None:
        self._consumer.seek(tp, offset)
        self.next[tp] = self.durable[tp] = offset
        if self._flowing:
            self._consumer.resume(tp)

    def verify(self) -> None:
        """Notice a log that ends before our offset: brokers do not always say so.

        Raises:
            Refused: one does, and the policy is to stop.
        """
        for tp in self.next.keys() - self._verified:
            end = self._end(tp)
            if end is None:
                continue
            self._verified.add(tp)
            if end < self.next[tp]:
                self._recreated(tp, f"ends at {end}, before our offset {self.next[tp]}")

    def lost_position(self, tp: TopicPartition) -> None:
        """The broker says that our offset is out of its range. Raises: as `verify`."""
        if tp in self.next:
            self._recreated(tp, f"does not have our offset {self.next[tp]}")

    def _recreated(self, tp: TopicPartition, what: str) -> None:
        """A topic is not the one we left: stop, or read it from its start."""
        if self._settings.consumer.on_topic_recreated == "stop":
            raise Refused(
                f"topic {tp.topic} partition {tp.partition} {what}: made anew or cut? Nothing was read. To read it from "
                "its start (stored events are recognised by event_id) set PIGEON_CONSUMER__ON_TOPIC_RECREATED=restart"
            )
        log.warning("topic made anew", topic=tp.topic, partition=tp.partition, what=what, policy="read from its start")
        self.next.pop(tp, None)
        self._consumer.pause(tp)
        self._restarting.add(tp)

    def restart(self) -> Job | None:
        """The job of setting one stored offset back to the start of its log; what was read before must be durable."""
        if not self._restarting:
            return None
        tp = next(iter(self._restarting))

        def work() -> int:
            try:
                start = broker.beginnings(self._admin, [tp])[tp]
            except broker.KafkaError as error:
                raise Outage(f"kafka: {type(error).__name__}: {first_line(error)}") from error
            self._writer.restart(tp, start, self._topic_ids.get(tp.topic))
            return start

        def settle(start: int) -> None:
            if tp in self._restarting:
                self._restarting.discard(tp)
                self._verified.add(tp)
                self._begin(tp, start)

        return work, settle

    def _end(self, tp: TopicPartition) -> int | None:
        """The end of a partition's log as the last fetch told it; None before the first."""
        end: int | None = self._consumer.highwater(tp) if tp in self._consumer.assignment() else None
        return end

    def lag(self) -> tuple[int, bool]:
        """Records of our partitions that are known not to be durable yet, and whether every partition was asked."""
        total, complete = 0, True
        for tp in self.next:
            end = self._end(tp)
            if end is None:
                complete = False
                continue
            lag = max(0, end - self.durable[tp])
            metrics.LAG_RECORDS.labels(tp.topic, tp.partition).set(lag)
            total += lag
        return total, complete

    def close(self) -> None:
        """Let go of the admin client."""
        if self._admin is not None:
            self._admin.close()
