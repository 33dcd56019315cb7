"""`make bench`: the ingest path against its own parts and against plain loops, on embedded servers of its own."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg2
from kafka import KafkaConsumer, TopicPartition

from consumers import broker, staging
from consumers.decode import Limits, Row, decode
from consumers.produce import Producer
from consumers.run import Ingest
from deploy.local.stack import Stack
from migrations import database
from schemas.events import INTERACTIONS, Interaction
from schemas.settings import Settings, load_settings

EVENTS = 50_000
LOOP_EVENTS = 2_000
USERS = 2_000
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
SPACE = uuid5(NAMESPACE_URL, "pigeon-benchmark")

INSERT = (
    "INSERT INTO interactions (event_id, occurred_at, user_id, item_id, kind, context) VALUES (%s, %s, %s, %s, %s, %s)"
)


def produce(settings: Settings) -> int:
    """Send the events; returns their bytes."""
    size = 0
    with Producer(settings.kafka) as producer:
        for number in range(EVENTS):
            event = Interaction(
                event_id=uuid5(SPACE, str(number)),
                user_id=f"u{number * 7919 % USERS}",
                item_id=f"m{number * 104729 % 5000}",
                kind="click",
                occurred_at=FIRST + timedelta(seconds=number),
                context={"surface": "home", "position": number % 20},
            )
            size += len(event.model_dump_json())
            producer.send(event)
    return size


def read(settings: Settings, limit: int, each: Callable[[list[Any]], None]) -> int:
    """Poll `limit` records of the interactions topic from its start, a poll at a time; returns how many there were."""
    topic = settings.kafka.topic_prefix + INTERACTIONS
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, fetch_max_wait_ms=50)
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    seen = 0
    while seen < limit:
        for records in consumer.poll(timeout_ms=1_000, max_records=min(5_000, limit - seen)).values():
            each(records)
            seen += len(records)
    consumer.close()
    return seen


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def connect(settings: Settings) -> Any:
    """A plain connection, as a plain loop would open one."""
    return psycopg2.connect(settings.database.url.get_secret_value().replace("+psycopg2", ""))


def parse_all(settings: Settings, rows: list[Row]) -> None:
    """(a) poll, JSON, validation; the rows are kept for (b)."""
    limits = Limits(settings.consumer.max_event_bytes, timedelta(seconds=settings.consumer.max_future_seconds))
    now = datetime.now(UTC)

    def each(records: list[Any]) -> None:
        rows.extend(d.row for d in (decode(r, INTERACTIONS, limits, now) for r in records) if d.row is not None)

    read(settings, EVENTS, each)


def copy_all(settings: Settings, rows: list[Row]) -> None:
    """(b) COPY of the same rows in batches of the same size, nothing else."""
    connection = connect(settings)
    with connection.cursor() as cursor:
        staging.create(cursor)
    size = settings.consumer.batch_max_records
    for start in range(0, len(rows), size):
        with connection.cursor() as cursor:
            staging.copy(cursor, INTERACTIONS, enumerate(rows[start : start + size]))
        connection.commit()
    connection.close()


def consume_all(settings: Settings) -> None:
    """(c) the consumer: exactly once, histories and all."""
    summary = Ingest(settings, [INTERACTIONS], max_records=EVENTS).run()
    if summary.records != EVENTS:
        raise SystemExit(f"the consumer took {summary.records} of {EVENTS} records")


def loop(settings: Settings, *, many: bool) -> None:
    """(d) one INSERT and one commit per event; (e) executemany and one commit per poll. No histories, no offsets, no dedupe."""
    connection = connect(settings)

    def each(records: list[Any]) -> None:
        rows = []
        for record in records:
            event = json.loads(record.value)
            context = json.dumps(event["context"])
            row = (event["event_id"], event["occurred_at"], event["user_id"], event["item_id"], event["kind"], context)
            if many:
                rows.append(row)
                continue
            with connection.cursor() as cursor:
                cursor.execute(INSERT, row)
            connection.commit()
        if many:
            with connection.cursor() as cursor:
                cursor.executemany(INSERT, rows)
            connection.commit()

    read(settings, LOOP_EVENTS, each)
    connection.close()


def empty(settings: Settings) -> None:
    """Forget the interactions, so that every contender inserts into the same tables."""
    connection = connect(settings)
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE interactions")
    connection.commit()
    connection.close()


def main() -> None:
    """Measure, then print events per second, and the ratios that mean something on another machine."""
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.up(services=("postgres", "s3", "kafka"), tied=True)
        try:
            settings = load_settings(state_dir=Path(folder))
            database.upgrade(settings.database)
            broker.create_topics(settings.kafka, partitions=4, replication=1)
            size = produce(settings)
            sys.stdout.write(f"{EVENTS} events, {size / 2**20:.1f} MiB, {USERS} users, 4 partitions, one process\n")
            rows: list[Row] = []
            a = EVENTS / timed(lambda: parse_all(settings, rows))
            b = EVENTS / timed(lambda: copy_all(settings, rows))
            rows.clear()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            c = EVENTS / timed(lambda: consume_all(settings))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            empty(settings)
            d = LOOP_EVENTS / timed(lambda: loop(settings, many=False))
            empty(settings)
            e = LOOP_EVENTS / timed(lambda: loop(settings, many=True))
        finally:
            stack.down(purge=True)
    sequence = 1 / (1 / a + 1 / b)
    for name, rate in (
        ("(a) poll + JSON + validation alone", a),
        ("(b) COPY of the same rows alone", b),
        ("(c) pigeon consume, end to end", c),
        ("(d) plain loop: INSERT and commit per event", d),
        ("(e) plain loop: executemany and commit per poll", e),
    ):
        sys.stdout.write(f"{name:<50} {rate:>9,.0f} events/s\n")
    for name, ratio in (
        ("c / min(a, b)", c / min(a, b)),
        ("c / (a and b in sequence)", c / sequence),
        ("c / d", c / d),
        ("c / e", c / e),
    ):
        sys.stdout.write(f"{name:<50} {ratio:>9.2f}\n")
    sys.stdout.write(
        f"peak memory of this process: {peak / 1024:.0f} MiB, {(peak - before) / 1024:.0f} MiB more than before (c)\n"
    )


if __name__ == "__main__":
    main()
