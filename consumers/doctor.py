"""What the consumers ask of Kafka for `pigeon doctor`, and before they read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from consumers.kafka import clients, rights
from schemas.errors import InputError
from schemas.events import COMPACTED, CONSUMED, DLQ_SUFFIX, PUBLISHED, all_topics
from schemas.kafka_access import check_login
from schemas.kafka_rights import missing_rights
from schemas.runtime.checkup import Finding, Probe, ok, warn, wrong
from schemas.settings import Settings

AREA = "kafka"
CODECS = {"gzip": "zlib", "snappy": "snappy", "lz4": "lz4", "zstd": "zstandard"}
"""Codec -> the module that reads it."""
_FIRST_WITH_TRANSACTIONS = (0, 11)
_UNKNOWN_TOPIC = 3  # UNKNOWN_TOPIC_OR_PARTITION


def _broker(settings: Settings) -> Iterator[Finding]:
    check_login(settings.kafka, again=True)
    with clients.asked(settings.kafka) as client:
        brokers = client.describe_cluster()["brokers"]
        version = tuple(client._manager.broker_version or ())
    text = ".".join(map(str, version)) or "unknown"
    how = f"{len(brokers)} {'broker' if len(brokers) == 1 else 'brokers'}, {settings.kafka.security_protocol}"
    yield ok(AREA, "broker", f"speaks as Apache Kafka {text} does; {how}")
    if version < _FIRST_WITH_TRANSACTIONS:
        yield warn(
            AREA, "transactions", f"Kafka {text} has none", "events of aborted transactions cannot be told apart"
        )
    else:
        yield ok(AREA, "transactions", "aborted ones are not read")


def _codecs(settings: Settings) -> Iterator[Finding]:
    missing = [name for name, module in CODECS.items() if importlib.util.find_spec(module) is None]
    if missing:
        mend = "pip install 'pigeon-posters[consumers]'"
        yield wrong(AREA, "codecs", f"batches in {', '.join(missing)} cannot be read on this machine", mend)
    else:
        yield ok(AREA, "codecs", f"{', '.join(CODECS)} are read")


def _topics(settings: Settings) -> Iterator[Finding]:
    wanted = all_topics(settings.kafka.topic_prefix)
    with clients.asked(settings.kafka) as client:
        there = {topic["name"]: topic for topic in client.describe_topics(wanted)}
        missing = [
            name for name in wanted if there.get(name, {}).get("error_code") == _UNKNOWN_TOPIC or name not in there
        ]
        known = [name for name in wanted if there.get(name, {}).get("error_code") == 0]
        if missing:
            text = f"{len(missing)} of {len(wanted)} do not exist: {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
            yield wrong(AREA, "topics", text, "`pigeon topics create`")
        else:
            yield ok(AREA, "topics", f"{len(known)} of {len(wanted)} exist")
        yield from _copies(client, [there[name] for name in known])
        yield from _configs(client, settings, known)


def _copies(client: Any, topics: list[dict[str, Any]]) -> Iterator[Finding]:
    """Topics of one copy on a cluster that could have more."""
    alone = [t["name"] for t in topics if any(len(p["replica_nodes"]) < 2 for p in t["partitions"])]
    if alone and len(client.describe_cluster()["brokers"]) > 1:
        text = f"{len(alone)} have one copy only, and stand still with its broker: {', '.join(alone[:3])}"
        yield warn(AREA, "topics", text, "raise their replication factor (kafka-reassign-partitions)")


def _configs(client: Any, settings: Settings, known: list[str]) -> Iterator[Finding]:
    """Configurations of topics that lose what we need."""
    from kafka.admin import ConfigResource, ConfigResourceType

    try:
        told = client.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in known], config_filter="all"
        )
    except clients.KafkaError as error:
        yield warn(AREA, "topics", f"their configuration cannot be asked for: {type(error).__name__}")
        return
    found = {name: values for by_name in told.values() for name, values in by_name.items()}
    for name in known:
        yield from _config(settings, name, {key: _value(one) for key, one in found.get(name, {}).items()})


def _value(entry: Any) -> str:
    return str(entry.get("value", "") if isinstance(entry, dict) else entry)


def _config(settings: Settings, name: str, values: dict[str, str]) -> Iterator[Finding]:
    """What is wrong with one topic's configuration."""
    plain = name.removeprefix(settings.kafka.topic_prefix)
    policy = values.get("cleanup.policy", "")
    if plain in COMPACTED and policy and "compact" not in policy:
        mend = "kafka-configs --alter --add-config cleanup.policy=compact"
        yield warn(AREA, "topics", f"{name} is not compacted: retention deletes items", mend)
    if plain not in COMPACTED and "compact" in policy:
        mend = "kafka-configs --alter --add-config cleanup.policy=delete"
        yield wrong(AREA, "topics", f"{name} is compacted: of a user's events only the last one stays", mend)
    largest = values.get("max.message.bytes", "")
    if plain.endswith(DLQ_SUFFIX) and largest.isdigit() and int(largest) < clients.DEAD_LETTER_BYTES:
        mend = f"kafka-configs --alter --add-config max.message.bytes={clients.DEAD_LETTER_BYTES}"
        yield warn(
            AREA, "topics", f"{name} takes {largest} bytes: a dead letter of 1 MiB and its headers do not fit", mend
        )
    kept = values.get("retention.ms", "")
    longest = settings.kafka.dlq_retention_days * clients.DAY_MS
    if plain.endswith(DLQ_SUFFIX) and kept.lstrip("-").isdigit() and not 0 <= int(kept) <= longest:
        mend = f"kafka-configs --alter --add-config retention.ms={longest},segment.ms={clients.DAY_MS}"
        days = "for ever" if int(kept) < 0 else f"for {int(kept) / clients.DAY_MS:.0f} days"
        text = f"{name} keeps dead letters {days}: longer than kafka.dlq_retention_days, which erasures count on"
        yield warn(AREA, "topics", text, mend)


def _rights(settings: Settings) -> Iterator[Finding]:
    prefix = settings.kafka.topic_prefix
    needed = [
        *rights.to_consume(settings.kafka, [prefix + topic for topic in CONSUMED]),
        *rights.to_produce([prefix + PUBLISHED]),
    ]
    with clients.asked(settings.kafka) as client:
        lacking = missing_rights(client, needed)
    if lacking:
        yield wrong(AREA, "rights", rights.without(settings.kafka, lacking), kind=InputError)
    else:
        yield ok(AREA, "rights", "consume, dead letters and announcements are allowed")


PROBES = (
    Probe(AREA, "broker", _broker, seconds=40.0),
    Probe(AREA, "codecs", _codecs),
    Probe(AREA, "topics", _topics, seconds=40.0),
    Probe(AREA, "rights", _rights, seconds=40.0),
)
