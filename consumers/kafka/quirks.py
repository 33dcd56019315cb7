"""What brokers and kafka-python get wrong, and the one place where it is worked round.

What the two small brokers of the tests do otherwise than Apache Kafka, their third, and where it is met; nothing else depends
on it.
Apache Kafka 4.3:
- it hangs up on who it refuses, and says why with the last bytes only: `schemas.kafka_access`;
- it lists our rights only where it knows the group or topic: a missing group is told of at the join;
- a broker that stands still (SIGSTOP) keeps its connections, takes new ones, and has its partitions until the others put it out.
Tansu (the embedded one):
- its `end_offsets` lies, so the end of a log is `known_end`, known after the first fetch, and the lag stands still while paused;
- a position past the end is never refused, so loop/ownership.py compares it with `known_end` and also takes OffsetOutOfRange;
- joining a group takes half the session timeout: the embedded settings use a short one;
- it makes a topic that a producer asks for, even when told not to (noida-db, too): a missing dead-letter topic shows elsewhere only;
- an idle fetch answers late: `fetch_max_wait_ms` of `clients.consumer` is 50.
noida-db:
- a member that died is never put out, so members are static there (`kafka.group_instance_id`), as they may be with Apache Kafka;
- it loses members that are still joining when the next join begins at once, as a cooperative group's does: `let_others_join`;
- its topics have no ids, like those of Apache Kafka before 2.8: only the length of the log tells that a topic was recreated.
kafka-python 3.0.12:
- it drops what a broker says last before it hangs up, and so every refusal of a login: `schemas.kafka_access` asks itself;
- it joins before it knows the topics' partitions, and then once more: `learn_topics`;
- it waits long on a broker that stands still, and at its start on one of several for all of its time: `schemas.kafka_network`;
- it refuses to send a header without a value: `sendable_headers`;
- it loses a join that a change of metadata began when a `poll` ends before it, and never assigns again: `keep_joining`;
- it keeps the known end of a log over a seek: `clear_end`;
- a batch that it cannot decode is an error once, and a poll without an end afterwards: `is_undecodable`;
- a cooperative join that brings a member nothing new is not passed on to its listener: `Cooperative`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

JOIN_PAUSE_SECONDS = 0.1
"""Pause before the next join of a cooperative group, so that this one's members know of it."""


LEARN_TRIES = 3
LEARN_MS = 5_000
"""Milliseconds that one question for the topics' partitions may take."""


SILENT_SECONDS = 3.0
"""Seconds without an answer after which a broker counts as silent; a fetch without news takes 0.05."""


class Joins(Protocol):
    """Receiver of a group's joins."""

    def joining(self) -> None: ...
    def joined(self, partitions: Iterable[TopicPartition]) -> None: ...


class Cooperative(CooperativeStickyAssignor):  # type: ignore[misc] # kafka-python has no types
    """KIP-429's assignor, which passes on every join and its whole outcome."""

    def __init__(self, joins: Joins) -> None:
        super().__init__()
        self._joins = joins

    def metadata(self, topics: Any) -> Any:
        """What goes into a join."""
        self._joins.joining()
        return super().metadata(topics)

    def on_assignment(self, assignment: Any, generation: Any) -> None:
        """What came out of a join."""
        super().on_assignment(assignment, generation)
        self._joins.joined(assignment.partitions())


def keep_joining(client: Any) -> None:
    """Have the join after a revocation finished, however many polls it takes.

    Without this the group's leader, asked to join again because the topics' metadata changed, takes the join for done when the
    first poll ends; its partitions stay revoked and its heartbeats stopped.
    """
    client._coordinator.request_rejoin()


def learn_topics(client: Any, topics: Iterable[str]) -> None:
    """Have the client know the topics' partitions before its first join.

    Without this the group's leader may share out partitions that it does not know, and has the whole group join again at once.
    """
    wanted = list(topics)
    try:
        for _ in range(LEARN_TRIES):  # the first may have been under way, and not for these topics
            if all(client._cluster.partitions_for_topic(topic) for topic in wanted):
                return
            client._net.run(client._manager.wait_for, client._cluster.request_update(), LEARN_MS)
    except kafka_errors.KafkaError:
        return  # no broker answers: the loop waits that out


def silent_brokers(client: Any, seconds: float = SILENT_SECONDS) -> dict[str, float]:
    """host:port of each broker that owes an answer for longer, and for how many seconds.

    Coordinators' connections are left out: a join may wait for other members.
    """
    now, silent = time.monotonic(), dict[str, float]()
    for node, connection in list(client._manager._conns.items()):
        try:
            sent_at = connection.in_flight_requests[0][2]
            host, port = connection.transport.getPeer()[:2]
        except (IndexError, AttributeError, OSError, TypeError):  # nothing is owed, or the connection has just ended
            continue
        if now - sent_at > seconds and not str(node).startswith("coordinator"):
            silent[f"{host}:{port}"] = now - sent_at
    return silent


def let_others_join() -> None:
    """Wait, in Kafka's thread, until the members of this join know of it, before the next one begins."""
    time.sleep(JOIN_PAUSE_SECONDS)


def known_end(client: Any, tp: TopicPartition) -> int | None:
    """The end of a partition's log as of the last fetch; None before the first, or when it is not ours."""
    end: int | None = client.highwater(tp) if tp in client.assignment() else None
    return end


def position(client: Any, tp: TopicPartition) -> int | None:
    """The offset that the next poll goes on from, without asking the broker; None when not ours."""
    state = client._subscription.assignment.get(tp)
    return state.position.offset if state is not None and state.has_valid_position else None


def is_undecodable(error: Exception) -> bool:
    """Whether a poll failed because a batch's bytes cannot be read: a codec, a checksum, a length.

    kafka-python raises it once; the poll after it never returns.
    """
    if isinstance(error, kafka_errors.CorruptRecordError | kafka_errors.UnsupportedCodecError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-3:-1] == ("kafka", "record") for frame in frames) or any(
        frame.filename.endswith(("kafka/codec.py",)) for frame in frames
    )


def clear_end(client: Any, tp: TopicPartition) -> None:
    """Make `known_end` unknown until the next fetch.

    kafka-python keeps it over a seek, though others may have read on meanwhile.
    """
    client._subscription.assignment[tp].highwater = None


def sendable_headers(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    """Headers that kafka-python accepts.

    Those without a value get an empty one and are named in a header of their own, `pigeon-null-headers`.
    """
    headers = list(headers)
    empty = [name for name, value in headers if value is None]
    sendable = [(name, value or b"") for name, value in headers]
    return [*sendable, ("pigeon-null-headers", ",".join(empty).encode())] if empty else sendable
