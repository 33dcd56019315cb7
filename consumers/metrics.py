"""Every Prometheus metric of the consumers, by name and unit."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from schemas.runtime.metrics import registry

REGISTRY = registry()

RECORDS = Counter("pigeon_records", "Records read.", ["topic"], registry=REGISTRY)
BYTES = Counter("pigeon_read_bytes", "Bytes of keys and values read.", ["topic"], registry=REGISTRY)
ROWS = Counter("pigeon_rows", "Rows inserted or updated.", ["topic"], registry=REGISTRY)
DUPLICATES = Counter("pigeon_duplicates", "Events that were stored already.", registry=REGISTRY)
STALE = Counter("pigeon_stale", "Catalogue rows and recommendations older than what is stored.", registry=REGISTRY)
FORGOTTEN = Counter("pigeon_forgotten", "Events of erased users that were dropped.", registry=REGISTRY)
ERASED_ROWS = Counter("pigeon_erased_rows", "Stored rows deleted by erasures.", registry=REGISTRY)
CLAMPED = Counter("pigeon_clamped", "Events dated further ahead than allowed.", ["topic"], registry=REGISTRY)
POISON = Counter("pigeon_poison", "Records sent to the dead-letter topic.", ["topic", "reason"], registry=REGISTRY)
PARTITIONS_MADE = Counter(
    "pigeon_partitions_made_on_demand", "Months that upkeep had not made ahead: an alarm.", registry=REGISTRY
)
BATCH_RECORDS = Histogram(
    "pigeon_batch_records", "Records per transaction.", buckets=(1, 10, 100, 500, 1e3, 2e3, 5e3, 1e4), registry=REGISTRY
)
WRITE_SECONDS = Histogram("pigeon_write_seconds", "One transaction, dead letters included.", registry=REGISTRY)
DURABLE_DELAY_SECONDS = Histogram(
    "pigeon_durable_delay_seconds",
    "From the record's timestamp to its commit in Postgres, the oldest record of each batch.",
    buckets=(0.1, 0.5, 1, 2, 5, 10, 30, 60, 300, 3600),
    registry=REGISTRY,
)
LAG_RECORDS = Gauge("pigeon_lag_records", "Records not yet stored.", ["topic", "partition"], registry=REGISTRY)
OUTAGES = Counter("pigeon_outages", "Tries that met an outage.", ["server"], registry=REGISTRY)
PAUSED = Gauge("pigeon_paused", "1 while reading is paused by an outage.", registry=REGISTRY)
FENCED = Counter("pigeon_fenced", "Writes refused because another member owns the partition.", registry=REGISTRY)
REBALANCES = Counter("pigeon_rebalances", "Assignments received from the group.", registry=REGISTRY)
ASSIGNED = Gauge("pigeon_assigned_partitions", "Partitions that this member owns.", registry=REGISTRY)
KAFKA_COMMIT_ERRORS = Counter(
    "pigeon_kafka_commit_errors", "Failed commits to Kafka (lag tools only).", registry=REGISTRY
)


def begin(topics: Iterable[str], reasons: Iterable[str]) -> None:
    """Show each series at zero: Prometheus sees no increase in one that appears with its first count."""
    for topic in topics:
        RECORDS.labels(topic)
        for reason in reasons:
            POISON.labels(topic, reason)
