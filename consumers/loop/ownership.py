"""The partitions of this member: claimed when given, read from the stored offset, given up when taken.

Only the loop's thread calls this; what needs the network is handed out as jobs for the background.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import structlog
from kafka import TopicPartition

from consumers import metrics
from consumers.kafka import clients, quirks
from consumers.loop.background import Job
from consumers.outage import Outage, first_line
from consumers.write.offsets import Claim
from consumers.write.writer import Writer
from schemas.errors import Refused, ServerUnavailable
from schemas.kafka_access import check_login
from schemas.settings import Settings

T = TypeVar("T")
log = structlog.get_logger("pigeon.consume")
CUT_SECONDS = 3.0
"""Seconds for which a log must end before our offset to count as cut: a change of leader does that for a moment."""
IDENTIFY_SECONDS = 10.0
"""Seconds between two questions to the broker whether our topics are still the same ones."""


class Ownership:
    """Which partitions we own, the next offset to take of each, and how far each is durable."""

    def __init__(self, settings: Settings, consumer: Any, writer: Writer) -> None:
        self._settings = settings
        self._consumer = consumer
        self._writer = writer
        self._admin: Any = None
        self._topic_ids: dict[str, str | None] = {}
        self._identify_at = 0.0
        self._identity: dict[TopicPartition, str | None] = {}  # the topic id that our offset counts in
        self._short: dict[TopicPartition, float] = {}  # since when its log ends before our offset
        self._unclaimed: dict[TopicPartition, float] = {}  # -> not before this time
        self._restarting: set[TopicPartition] = set()  # recreated, to be read from their start
        self._flowing = True
        self._next: dict[TopicPartition, int] = {}
        self._durable: dict[TopicPartition, int] = {}
        self._given: frozenset[TopicPartition] | None = None  # by the last join; None while one is under way

    @property
    def settled(self) -> bool:
        """Whether the group's join is done and everything it gave us is being read."""
        return self._given is not None and self._given <= self._next.keys() and not self._short

    @property
    def restarting(self) -> bool:
        """Whether a recreated topic waits to be read from its start."""
        return bool(self._restarting)

    def next_offset(self, tp: TopicPartition) -> int | None:
        """The next offset to take of a partition; None when it is not ours, or not claimed yet."""
        return self._next.get(tp)

    def mark_taken(self, tp: TopicPartition, following: int) -> None:
        """Go on after records that were taken: `following` is the last one's offset plus one."""
        if tp in self._next:
            self._next[tp] = max(self._next[tp], following)

    def pass_over(self, pending: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """Go on behind offsets without a record for us: markers, aborted ones, what was compacted.

        Returns the partitions that moved, all but `pending`, which have records that are not durable yet.
        """
        moved: dict[TopicPartition, int] = {}
        for tp, following in self._next.items():
            at = quirks.position(self._consumer, tp)
            if tp not in pending and at is not None and at > following and self._durable[tp] == following:
                moved[tp] = self._next[tp] = self._durable[tp] = at
        return moved

    def where(self) -> str:
        """Our partitions and the offset that each goes on from, for people."""
        return ", ".join(f"{tp.topic} partition {tp.partition} offset {at}" for tp, at in sorted(self._next.items()))

    def mark_durable(self, following: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """Note how far partitions are durable; returns those of them that are still ours."""
        ours = {tp: offset for tp, offset in following.items() if tp in self._next}
        self._durable.update(ours)
        return ours

    def note_joined(self, partitions: Collection[TopicPartition]) -> None:
        """Note the outcome of a join: all that is ours from now on."""
        self._given = frozenset(partitions)

    def note_assigned(self, partitions: Collection[TopicPartition]) -> None:
        """Have new partitions claimed."""
        metrics.REBALANCES.inc()
        self._unclaimed.update(dict.fromkeys(partitions, 0.0))

    def note_revoked(self) -> None:
        """Note that a join is under way."""
        self._given = None

    def give_up(self, partitions: Collection[TopicPartition], claim_at: float | None = None) -> None:
        """Drop partitions; with `claim_at` those that the group leaves us are claimed again at that time."""
        assigned = self._consumer.assignment()
        for tp in partitions:
            self._next.pop(tp, None)
            self._short.pop(tp, None)
            self._restarting.discard(tp)
            self._unclaimed.pop(tp, None)
            with contextlib.suppress(KeyError):  # of one that was never read there is none
                metrics.LAG_RECORDS.remove(tp.topic, tp.partition)
            if claim_at is not None and tp in assigned:
                self._unclaimed[tp] = claim_at
                self._consumer.pause(tp)
        metrics.ASSIGNED.set(len(self._next))

    def flow(self, flowing: bool) -> None:
        """Pause or resume everything we own."""
        if flowing == self._flowing:
            return
        self._flowing = flowing
        owned = [tp for tp in self._next if tp in self._consumer.assignment()]
        if owned:
            (self._consumer.resume if flowing else self._consumer.pause)(*owned)

    def claim(self, now: float) -> Job | None:
        """The job of claiming what is due."""
        due = [tp for tp, not_before in self._unclaimed.items() if now >= not_before]
        if not due:
            return None

        def work() -> tuple[dict[TopicPartition, Claim], dict[TopicPartition, int]]:
            self._topic_ids.update(self._ask(lambda admin: clients.topic_ids(admin, {tp.topic for tp in due})))
            starts = self._ask(lambda admin: clients.beginnings(admin, due))
            begin = {tp: (starts[tp], self._topic_ids.get(tp.topic)) for tp in due}
            return self._writer.claim(begin), starts

        return work, lambda result: self._claimed(*result)

    def _ask(self, question: Callable[[Any], T]) -> T:
        """Ask the broker something, in the background's thread.

        Raises:
            Outage: it does not answer.
            InputError: it refuses us.
        """
        try:
            if self._admin is None:
                self._admin = clients.admin(self._settings.kafka)
            return question(self._admin)
        except clients.Unrecoverable as error:
            raise clients.refusal(error) from error
        except (clients.KafkaError, ServerUnavailable) as error:
            check_login(self._settings.kafka, again=True)  # a password that was changed meanwhile is no outage
            raise Outage(f"kafka: {type(error).__name__}: {first_line(error)}") from error

    def _claimed(self, claims: dict[TopicPartition, Claim], starts: dict[TopicPartition, int]) -> None:
        assigned = self._consumer.assignment()
        for tp, claim in claims.items():
            if tp not in self._unclaimed or tp not in assigned:
                continue  # taken away meanwhile
            del self._unclaimed[tp]
            self._identity[tp] = claim.topic_id
            if self._is_another(tp):
                continue
            if claim.next_offset < starts[tp]:
                self._recreated(tp, f"begins at {starts[tp]}, after our offset {claim.next_offset}")
            else:
                self._begin(tp, claim.next_offset)
        metrics.ASSIGNED.set(len(self._next))

    def _is_another(self, tp: TopicPartition) -> bool:
        """Whether the topic is another one than that in which our offset counts.

        Raises: as `verify`.
        """
        now_id, then_id = self._topic_ids.get(tp.topic), self._identity.get(tp)
        if not (now_id and then_id) or now_id == then_id:
            return False
        self._recreated(tp, f"has another id than before ({now_id}, was {then_id})")
        return True

    def identify_soon(self) -> None:
        """Ask before more is written: during an outage anything may have happened to the topics."""
        self._identify_at = 0.0

    def identify(self, now: float) -> Job | None:
        """The job of asking whether our topics are still the ones we began with.

        Raises: its outcome, as `verify`.
        """
        if now < self._identify_at or not self._next:
            return None
        topics = {tp.topic for tp in self._next}

        def finish(ids: dict[str, str | None]) -> None:
            self._identify_at = now + IDENTIFY_SECONDS
            self._topic_ids.update(ids)
            for tp in list(self._next):
                self._is_another(tp)

        return lambda: self._ask(lambda admin: clients.topic_ids(admin, topics)), finish

    def _begin(self, tp: TopicPartition, offset: int) -> None:
        self._consumer.seek(tp, offset)
        if (quirks.known_end(self._consumer, tp) or 0) < offset:  # known from before others read on
            quirks.clear_end(self._consumer, tp)
        self._next[tp] = self._durable[tp] = offset
        if self._flowing:
            self._consumer.resume(tp)

    def verify(self) -> None:
        """Notice a log that ends before our offset: brokers do not always report it.

        Raises:
            Refused: one does, and the policy is to stop.
        """
        for tp, following in list(self._next.items()):
            end = quirks.known_end(self._consumer, tp)
            if end is None or end >= following:
                self._short.pop(tp, None)
            elif time.monotonic() - self._short.setdefault(tp, time.monotonic()) >= CUT_SECONDS:
                self._recreated(tp, f"ends at {end}, before our offset {following}")

    def lost_position(self, tp: TopicPartition) -> None:
        """Treat an offset that is out of the broker's range.

        Raises: as `verify`.
        """
        if tp in self._next and tp in self._consumer.assignment():
            self._recreated(tp, f"does not have our offset {self._next[tp]}")

    def _recreated(self, tp: TopicPartition, what: str) -> None:
        """Stop, or read a topic that is not the one we left from its start."""
        if self._settings.consumer.on_topic_recreated == "stop":
            raise Refused(
                f"topic {tp.topic} partition {tp.partition} {what}: recreated or cut? Nothing was read. To read it from "
                "its start (stored events are recognised by event_id) set PIGEON_CONSUMER__ON_TOPIC_RECREATED=restart"
            )
        log.warning("topic recreated", topic=tp.topic, partition=tp.partition, what=what, policy="read from its start")
        self._next.pop(tp, None)
        self._short.pop(tp, None)
        self._consumer.pause(tp)
        self._restarting.add(tp)

    def restart(self) -> Job | None:
        """The job of setting one stored offset back to the start of its log.

        What was read before must be durable.
        """
        if not self._restarting:
            return None
        tp = next(iter(self._restarting))

        def work() -> int:
            start = self._ask(lambda admin: clients.beginnings(admin, [tp]))[tp]
            self._writer.restart(tp, start, self._topic_ids.get(tp.topic))
            return start

        def finish(start: int) -> None:
            if tp in self._restarting:
                self._restarting.discard(tp)
                self._identity[tp] = self._topic_ids.get(tp.topic)
                self._begin(tp, start)

        return work, finish

    @property
    def partitions(self) -> Collection[TopicPartition]:
        """What is being read."""
        return self._next.keys()

    def lag(self, later_ends: Mapping[TopicPartition, int] | None = None) -> tuple[int, bool]:
        """Records of our partitions that are not durable yet, and whether every log's end is known.

        `later_ends`: ends that were asked for since the last fetch.
        """
        total, complete = 0, True
        for tp in self._next:
            known, later = quirks.known_end(self._consumer, tp), (later_ends or {}).get(tp)
            if known is None and later is None:
                complete = False
                continue
            lag = max(0, max(known or 0, later or 0) - self._durable[tp])
            metrics.LAG_RECORDS.labels(tp.topic, tp.partition).set(lag)
            total += lag
        return total, complete

    def close(self) -> None:
        """Close the admin client."""
        if self._admin is not None:
            self._admin.close()
