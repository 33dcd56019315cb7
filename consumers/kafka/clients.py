"""Every Kafka client that the consumers make, the topics, and which errors are final."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors
from kafka.admin import OffsetSpec

from consumers.outage import first_line
from schemas.connections import kafka_options
from schemas.errors import InputError, ServerUnavailable
from schemas.events import COMPACTED, DLQ_SUFFIX, all_topics
from schemas.kafka_access import check_login
from schemas.settings import ConsumerSettings
from schemas.settings_kafka import KafkaSettings

KafkaError = kafka_errors.KafkaError
# Errors of a log that does not have our position any more: `lost_positions`.
LostPosition = (kafka_errors.OffsetOutOfRangeError, kafka_errors.LogTruncationError)
# Errors that trying again does not help: not allowed, too large, misconfigured.
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
# Setting behind each unrecoverable error.
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
ANSWER_TIMEOUT_MS = 10_000
"""Milliseconds that a reader waits for one answer: a broker that stands still must not hold its partitions for longer."""
DEAD_LETTER_BYTES = 2 * 2**20
"""Bytes of the largest dead letter: what a source topic takes by default (1 MiB), and room for our headers."""
DAY_MS = 86_400_000
"""Milliseconds of the longest segment of a dead-letter topic: a broker deletes whole segments only."""
CLIENT = f"pigeon-{socket.gethostname()}"


def _common(settings: KafkaSettings) -> dict[str, Any]:
    return {
        **kafka_options(settings),
        "client_id": CLIENT,
        "bootstrap_timeout_ms": min(BOOTSTRAP_TIMEOUT_MS, settings.request_timeout_ms),
        "reconnect_backoff_max_ms": 5_000,
    }


def lost_positions(error: Exception) -> set[TopicPartition]:
    """The partitions that a `LostPosition` names."""
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
    check_login(settings)
    try:
        return client(**{**_common(settings), **config})
    except Unrecoverable as error:
        raise refusal(error) from None
    except (KafkaError, OSError) as error:
        check_login(settings, again=True)
        raise _away(settings, error) from None


def _away(settings: KafkaSettings, error: Exception) -> ServerUnavailable:
    return ServerUnavailable(
        f"kafka.bootstrap_servers {settings.bootstrap_servers}: {type(error).__name__}: {first_line(error)}"
    )


@contextmanager
def asked(settings: KafkaSettings) -> Iterator[Any]:
    """An admin client for questions that a command cannot do without; closed at the end.

    Raises:
        ServerUnavailable: no broker answers, or not with what was asked for.
        InputError: the login is refused or a setting is wrong.
    """
    client = admin(settings)
    try:
        yield client
    except KafkaError as error:
        raise _away(settings, error) from None
    finally:
        client.close()


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
        request_timeout_ms=min(settings.request_timeout_ms, ANSWER_TIMEOUT_MS),
        enable_auto_commit=False,
        metrics_enabled=False,
        auto_offset_reset="none" if group else "earliest",
        isolation_level="read_committed",  # what a producer has aborted never happened
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
    """An admin client.

    Raises: as `consumer`.
    """
    return _connect(KafkaAdminClient, settings)


def topic_ids(client: Any, topics: Iterable[str]) -> dict[str, str | None]:
    """Each existing topic's id; None where the broker has no ids.

    Topics that do not exist are left out.
    """
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


def ends(client: Any, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
    """The offset after each partition's last record; none of one that is told to be empty (Tansu's)."""
    found = client.list_partition_offsets(dict.fromkeys(partitions, OffsetSpec.LATEST))
    return {tp: int(at.offset) for tp, at in found.items() if at.offset > 0}


def _configs(settings: KafkaSettings, topic: str) -> dict[str, str]:
    """The configuration of a topic that we make; what is left out is the broker's default."""
    if topic.removeprefix(settings.topic_prefix) in COMPACTED:
        return {"cleanup.policy": "compact"}
    if not topic.endswith(DLQ_SUFFIX):
        return {}
    return {
        "max.message.bytes": str(DEAD_LETTER_BYTES),
        "retention.ms": str(settings.dlq_retention_days * DAY_MS),
        "segment.ms": str(DAY_MS),
    }


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
        answer = client.create_topics(
            {
                topic: {
                    "num_partitions": 1 if topic.endswith(DLQ_SUFFIX) else partitions,
                    "replication_factor": replication,
                    "configs": _configs(settings, topic),
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
