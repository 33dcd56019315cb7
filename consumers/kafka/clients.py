"""Every Kafka client we make, the topics, and the one place that knows what brokers get wrong.

What the two brokers of the tests do otherwise than Apache Kafka, and where it is met; nothing else depends on it.
Tansu (the embedded one):
- its `end_offsets` lies, so the end of a log is `consumer.highwater`, known after the first fetch (ownership.py);
- a position past the end is never refused, so ownership.py compares it with `highwater` as well as hearing OffsetOutOfRange;
- joining a group takes half the session timeout: the embedded settings use a short one;
- it makes a topic that a producer asks for, even when told not to (noida-db, too): a missing dead-letter topic shows elsewhere only;
- an idle fetch answers late: `fetch_max_wait_ms` is 50.
noida-db:
- a member that died is never put out, so members are static there (`kafka.group_instance_id`), as they may be with Apache Kafka;
- it forgets members that are still joining when the next join begins at once, as a cooperative group's does: `let_others_join`;
- its topics have no ids, like those of Apache Kafka before 2.8: only the length of the log tells that a topic was made anew.
kafka-python 3.0.12:
- it refuses to send a header without a value: `sendable_headers`;
- it forgets a join that a change of metadata began when a `poll` ends before it, and never assigns again: `keep_joining`;
- it keeps the known end of a log over a seek: `forget_end`;
- a cooperative join that brings a member nothing new is not told to its listener: `Cooperative`.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from typing import Any, Protocol

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor

from consumers.outage import first_line
from schemas.errors import InputError, ServerUnavailable
from schemas.events import COMPACTED, DLQ_SUFFIX, all_topics
from schemas.runtime import kafka_login
from schemas.settings import ConsumerSettings, KafkaSettings

KafkaError = kafka_errors.KafkaError
# The log does not have our position any more: `lost_positions`.
LostPosition = (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError)
# Trying again does not help: not allowed, too large, misconfigured.
Unrecoverable = (
    kafka_errors.AuthorizationError,
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.IllegalSaslStateError,
    kafka_errors.InvalidSessionTimeoutError,
    kafka_errors.FencedInstanceIdError,
    kafka_errors.InconsistentGroupProtocolError,
    kafka_errors.MessageSizeTooLargeError,
    kafka_errors.InvalidTopicError,
    kafka_errors.KafkaConfigurationError,
)
# The setting that an unrecoverable error speaks of.
_SETTING = {
    kafka_errors.SaslAuthenticationFailedError: "sasl_username and kafka.sasl_password: refused by the broker",
    kafka_errors.UnsupportedSaslMechanismError: "sasl_mechanism: not one of the broker's",
    kafka_errors.IllegalSaslStateError: "security_protocol: the broker expects another login",
    kafka_errors.InvalidSessionTimeoutError: "session_timeout_ms: outside of the broker's group.{min,max}.session.timeout.ms",
    kafka_errors.FencedInstanceIdError: "group_instance_id: another member has it",
    kafka_errors.InconsistentGroupProtocolError: "rebalance: other members of the group have another",
    kafka_errors.AuthorizationError: "sasl_username: the broker does not allow it this",
}
BOOTSTRAP_TIMEOUT_MS = 15_000
# The largest dead letter: what a source topic takes by default (1 MiB), and room for our headers.
DEAD_LETTER_BYTES = 2 * 2**20
JOIN_PAUSE_SECONDS = 0.1
CLIENT = f"pigeon-{socket.gethostname()}"


def _common(settings: KafkaSettings) -> dict[str, Any]:
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": CLIENT,
        "request_timeout_ms": settings.request_timeout_ms,
        "bootstrap_timeout_ms": min(BOOTSTRAP_TIMEOUT_MS, settings.request_timeout_ms),
        "reconnect_backoff_max_ms": 5_000,
        **kafka_login.options(settings),
    }


def lost_positions(error: Exception) -> set[TopicPartition]:
    """The partitions that a `LostPosition` speaks of."""
    if isinstance(error, kafka_errors.LogTruncationError):
        return set(error.divergent_offsets)
    return set(error.args[0])


def refusal(error: Exception) -> InputError:
    """An error that waiting does not mend, in words that name the setting."""
    names = [what for kind, what in _SETTING.items() if isinstance(error, kind)]
    return InputError(
        f"kafka.{names[0] if names else 'bootstrap_servers'}: {type(error).__name__}: {first_line(error)}"
    )


def _connect(client: Any, settings: KafkaSettings, **config: Any) -> Any:
    try:
        return client(**_common(settings), **config)
    except Unrecoverable as error:
        raise refusal(error) from None
    except (KafkaError, OSError) as error:
        raise kafka_login.explain(settings) or ServerUnavailable(
            f"kafka.bootstrap_servers {settings.bootstrap_servers}: {type(error).__name__}: {first_line(error)}"
        ) from None


class Joins(Protocol):
    """Who wants to know of a group's joins."""

    def joining(self) -> None: ...
    def joined(self, partitions: Iterable[TopicPartition]) -> None: ...


class Cooperative(CooperativeStickyAssignor):  # type: ignore[misc] # kafka-python has no types
    """KIP-429's assignor, which tells of every join and of its whole outcome."""

    def __init__(self, joins: Joins) -> None:
        super().__init__()
        self._joins = joins

    def metadata(self, topics: Any) -> Any:
        """What goes into the join."""
        self._joins.joining()
        return super().metadata(topics)

    def on_assignment(self, assignment: Any, generation: Any) -> None:
        """What came out of it."""
        super().on_assignment(assignment, generation)
        self._joins.joined(assignment.partitions())


def consumer(
    settings: KafkaSettings, limits: ConsumerSettings, group: bool = True, assignors: list[Any] | None = None
) -> Any:
    """A consumer that never moves its own offsets: we seek, and a lost position is an error.

    Args:
        group: join the group; without it the caller assigns partitions.
        assignors: how the group shares its partitions out, if not as kafka-python does by default.

    Raises:
        ServerUnavailable: no broker answers.
        InputError: the login is refused or a setting is wrong.
    """
    membership: dict[str, Any] = {
        "group_id": settings.group_id,
        "group_instance_id": settings.group_instance_id,
        "session_timeout_ms": settings.session_timeout_ms,
        "heartbeat_interval_ms": max(100, settings.session_timeout_ms // 4),
        "max_poll_interval_ms": settings.max_poll_interval_ms,
    }
    if assignors:
        membership["partition_assignment_strategy"] = assignors
    return _connect(
        KafkaConsumer,
        settings,
        **(membership if group else {}),
        enable_auto_commit=False,
        metrics_enabled=False,
        auto_offset_reset="none" if group else "earliest",
        allow_auto_create_topics=False,
        fetch_max_wait_ms=50,
        fetch_max_bytes=max(limits.batch_max_bytes, 2**20),
        max_poll_records=limits.batch_max_records,
    )


def producer(settings: KafkaSettings, max_request_bytes: int = 2**20, linger_ms: int = 20) -> Any:
    """A producer: idempotent, all replicas, compressed.

    Args:
        linger_ms: how long a batch may wait for more; long for files, because a broker that keeps its log in S3 pays per batch.

    Raises: as `consumer`.
    """
    return _connect(
        KafkaProducer,
        settings,
        acks="all",
        linger_ms=linger_ms,
        metrics_enabled=False,
        batch_size=512 * 1024,
        compression_type="gzip",
        max_request_size=max_request_bytes,
        max_block_ms=settings.request_timeout_ms,
        delivery_timeout_ms=2 * settings.request_timeout_ms,
        allow_auto_create_topics=False,
    )


def admin(settings: KafkaSettings) -> Any:
    """An admin client. Raises: as `consumer`."""
    return _connect(KafkaAdminClient, settings)


def topic_ids(client: Any, topics: Iterable[str]) -> dict[str, str | None]:
    """Each existing topic's id; None where the broker has no ids. Topics that do not exist are left out."""
    found: dict[str, str | None] = {}
    for topic in client.describe_topics(sorted(topics)):
        if topic["error_code"] == 0:
            identity = str(topic["topic_id"] or "")
            found[topic["name"]] = identity if identity.strip("0-") else None
    return found


def beginnings(client: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The first offset that each partition still has."""
    found = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.EARLIEST))
    return {tp: max(0, int(at.offset)) for tp, at in found.items()}


def keep_joining(client: Any) -> None:
    """Have the join that follows a revocation finished, however many polls it takes.

    Without this the group's leader, asked to join again because the topics' metadata changed, takes the join for done when the
    first poll ends; its partitions stay revoked and its heartbeats stopped.
    """
    client._coordinator.request_rejoin()


def let_others_join() -> None:
    """Wait, in Kafka's thread, until the members of this join know of it, before the next one begins."""
    time.sleep(JOIN_PAUSE_SECONDS)


def forget_end(client: Any, tp: TopicPartition) -> None:
    """Make `highwater` unknown until the next fetch: kafka-python keeps it over a seek, though others may have read on meanwhile."""
    client._subscription.assignment[tp].highwater = None


def require_topics(settings: KafkaSettings, topics: Iterable[str]) -> None:
    """Check that the topics exist.

    Raises:
        InputError: some do not; the message names them and the fix.
    """
    client = admin(settings)
    try:
        missing = sorted(set(topics) - set(topic_ids(client, topics)))
    finally:
        client.close()
    if missing:
        raise InputError(f"topics {', '.join(missing)} do not exist: `pigeon topics create`")


def create_topics(settings: KafkaSettings, partitions: int, replication: int) -> tuple[list[str], list[str]]:
    """Make every topic that does not exist yet; returns the names made and those that were there.

    Raises:
        InputError: the broker refused one; the message names it.
    """
    client = admin(settings)
    try:
        wanted = all_topics(settings.topic_prefix)
        existing = set(topic_ids(client, wanted))
        made = [topic for topic in wanted if topic not in existing]
        if not made:
            return [], wanted
        compacted = {settings.topic_prefix + topic for topic in COMPACTED}
        answer = client.create_topics(
            {
                topic: {
                    "num_partitions": 1 if topic.endswith(DLQ_SUFFIX) else partitions,
                    "replication_factor": replication,
                    "configs": {"cleanup.policy": "compact"}
                    if topic in compacted
                    else {"max.message.bytes": str(DEAD_LETTER_BYTES)}
                    if topic.endswith(DLQ_SUFFIX)
                    else {},
                }
                for topic in made
            },
            raise_errors=False,
        )
        for topic in answer["topics"]:
            if topic["error_code"] not in (0, kafka_errors.TopicAlreadyExistsError.errno):
                raise InputError(f"topic {topic['name']}: the broker refused it: {topic['error_message']}")
        return made, [topic for topic in wanted if topic in existing]
    finally:
        client.close()


def sendable_headers(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes]]:
    """Headers that kafka-python accepts; those without a value get an empty one and are named in a header of their own."""
    headers = list(headers)
    empty = [name for name, value in headers if value is None]
    sendable = [(name, value or b"") for name, value in headers]
    return [*sendable, ("pigeon-null-headers", ",".join(empty).encode())] if empty else sendable
