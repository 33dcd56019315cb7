"""What a command needs at the broker: topics that are there, and rights; asked before it begins."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from consumers.kafka import clients
from schemas.errors import InputError
from schemas.events import DLQ_SUFFIX
from schemas.kafka_rights import Right, missing_rights
from schemas.settings_kafka import KafkaSettings


def to_consume(settings: KafkaSettings, topics: Iterable[str]) -> list[Right]:
    """Rights that `pigeon consume` needs for topics (names with their prefix)."""
    names = list(topics)
    return [
        Right("group", settings.group_id, "READ"),
        *(Right("topic", name, "READ") for name in names),
        *(Right("topic", name + DLQ_SUFFIX, "WRITE") for name in names),
    ]


def to_produce(topics: Iterable[str]) -> list[Right]:
    """Rights that sending to topics needs.

    Apache Kafka before 3.0 wants IDEMPOTENT_WRITE on the cluster, too.
    """
    return [Right("topic", name, "WRITE") for name in topics]


def require(settings: KafkaSettings, rights: Collection[Right]) -> None:
    """Check that the topics of the rights exist, and that our login has the rights.

    Raises:
        InputError: a topic does not exist, or a right is missing; the message names all of them and the fix.
        ServerUnavailable: no broker answers.
    """
    with clients.asked(settings) as client:
        lacking = missing_rights(client, rights)
        refused = {right.name for right in lacking}
        names = {right.name for right in rights if right.resource == "topic"} - refused
        missing = sorted(names - set(clients.topic_ids(client, names)))
    if lacking:
        raise InputError(without(settings, lacking))
    if missing:
        raise InputError(f"topics {', '.join(missing)} do not exist: `pigeon topics create`")


def without(settings: KafkaSettings, lacking: Iterable[Right]) -> str:
    """A sentence about rights that are missing."""
    who = f"kafka.sasl_username {settings.sasl_username}" if settings.sasl_username else "our Kafka login"
    return f"{who} lacks {', '.join(map(str, lacking))}: grant it on the brokers (kafka-acls --add, deploy/kafka/README.md)"
