"""The ingest path against its own parts and against plain loops."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import psycopg2
from kafka import KafkaConsumer, TopicPartition

from consumers.files.produce import Producer
from consumers.kafka import clients
from consumers.write import staging
from consumers.write.decode import Limits, Row, decode
from deploy.local.stack import Stack
from migrations import database
from schemas.events import INTERACTIONS, Interaction
from schemas.settings import Settings, load_settings
from tests.benchmarks.table import Figure, Options, say

USERS = 2_000
PARTITIONS = 4
PATIENCE_SECONDS = 120
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
SPACE = uuid5(NAMESPACE_URL, "pigeon-benchmark")

INSERT = (
    "INSERT INTO interactions (event_id, occurred_at, user_id, item_id, kind, context) VALUES (%s, %s, %s, %s, %s, %s)"
)


def produce(settings: Settings, count: int) -> int:
    """Send the events; returns their bytes."""
    size = 0
    with Producer(settings.kafka) as producer:
        for number in range(count):
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
    """Poll `limit` records of the interactions topic from its start, a poll at a time.

    Returns how many there were.
    """
    topic = settings.kafka.topic_prefix + INTERACTIONS
    consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap_servers, fetch_max_wait_ms=50)
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    consumer.assign(partitions)
    for partition in partitions:
        consumer.seek(partition, 0)
    seen, last = 0, time.monotonic()
    while seen < limit:
        for records in consumer.poll(timeout_ms=1_000, max_records=min(5_000, limit - seen)).values():
            each(records)
            seen, last = seen + len(records), time.monotonic()
        if time.monotonic() - last > PATIENCE_SECONDS:
            raise SystemExit(f"only {seen} of {limit} events came")
    consumer.close()
    return seen


@dataclass
class Cost:
    """What `count` events took: wall seconds.

    And seconds of this process's (or its children's) processor time.
    """

    count: int
    wall: float
    processor: float

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.count / self.wall


def timed(count: int, work: Callable[[], object]) -> Cost:
    """Do `work`."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Cost(count, time.perf_counter() - wall, time.process_time() - processor)


def connect(settings: Settings) -> Any:
    """A plain connection, as a plain loop would open one."""
    return psycopg2.connect(settings.database.url.get_secret_value().replace("+psycopg2", ""))


def parse_all(settings: Settings, count: int, rows: list[Row]) -> None:
    """(a) poll, JSON, validation; the rows are kept for (b)."""
    limits = Limits(settings.consumer.max_event_bytes, timedelta(seconds=settings.consumer.max_future_seconds))
    now = datetime.now(UTC)

    def each(records: list[Any]) -> None:
        rows.extend(d.row for d in (decode(r, INTERACTIONS, limits, now) for r in records) if d.row is not None)

    read(settings, count, each)


def copy_all(settings: Settings, rows: list[Row]) -> None:
    """(b) COPY of the same rows in batches of the same size, nothing else."""
    connection = connect(settings)
    with connection.cursor() as cursor:
        staging.create(cursor)
    size = settings.consumer.batch_max_records
    for start in range(0, len(rows), size):
        with connection.cursor() as cursor:
            lines = [staging.line(seq, row) for seq, row in enumerate(rows[start : start + size])]
            staging.copy(cursor, INTERACTIONS, lines)
        connection.commit()
    connection.close()


@dataclass
class Consumed(Cost):
    """(c), and the resident memory of the largest member in bytes.

    After each quarter of the backlog, and at its peak.
    """

    resident: list[int] = field(default_factory=list)


def resident(process: int) -> int:
    """Bytes of memory that a process holds now; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def consume_all(settings: Settings, count: int, members: int) -> Consumed | None:
    """(c) `pigeon consume` in processes of its own.

    Exactly once, histories and all, offsets from the start.

    The clock runs from when every member has stored some of its own partitions to the last event: joining a group takes as long
    as its session timeout wants. None when a member got nothing to do in time, which is the broker's to decide.
    """
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {
        **os.environ,
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_KAFKA__GROUP_ID": f"bench-{members}-{time.monotonic_ns()}",
    }
    command = [sys.executable, "-m", "generator.cli", "consume", "--topics", INTERACTIONS, "--until-idle", "3"]
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(members)
    ]
    connection = connect(settings)
    connection.autocommit = True
    joined: dict[str, int] = {}  # each owner's offsets when all had partitions for the first time
    started: tuple[float, int] | None = None
    ended = time.perf_counter()
    stored, sizes, peak = 0, [], 0
    while stored < count and any(child.poll() is None for child in children):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT owner, sum(next_offset)::bigint FROM consumer_offsets WHERE group_id = %s GROUP BY owner",
                (environment["PIGEON_KAFKA__GROUP_ID"],),
            )
            offsets = dict(cursor.fetchall())
        stored = sum(offsets.values())
        ended = time.perf_counter()
        if started is None and len(offsets) == members:
            if joined.keys() != offsets.keys():
                joined = offsets
            elif all(offsets[owner] > joined[owner] for owner in offsets):
                started = (ended, stored)
        now = max(resident(child.pid) for child in children)
        peak = max(peak, now)
        if stored * 4 >= count * (len(sizes) + 1):
            sizes.append(now)
        time.sleep(0.02)
    connection.close()
    if stored < count:
        raise SystemExit(f"a consumer ended after {stored} of {count} events")
    for child in children:
        child.wait(300)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
    if started is None or started[1] >= count:
        return None
    return Consumed(count - started[1], ended - started[0], processor, [*sizes, peak])


def loop(settings: Settings, count: int, *, many: bool) -> None:
    """(d) one INSERT and one commit per event; (e) executemany and one commit per poll.

    No histories, no offsets, no dedupe.
    """
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

    read(settings, count, each)
    connection.close()


def empty(settings: Settings) -> None:
    """Forget the interactions, so that every contender inserts into the same tables.

    Vacuumed at once: else autovacuum comes by in the middle of the next contender's first batch, and counts pages without rows.
    """
    connection = connect(settings)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE interactions, user_histories")
        cursor.execute("VACUUM (ANALYZE) interactions, user_histories")
    connection.close()


def middle(costs: list[Cost | None]) -> Cost | None:
    """The one of the median rate; None when there is none."""
    found = sorted((cost for cost in costs if cost), key=lambda cost: cost.rate)
    return found[len(found) // 2] if found else None


def measure(settings: Settings, events: int, loop_events: int, rounds: int) -> list[Figure]:
    """Print events per second; returns the ratios, which mean something on another machine.

    The contenders take turns, round by round: a machine that others use is not equally quick all the time.
    """
    size = produce(settings, events)
    say(
        f"{events} events, {size / 2**20:.1f} MiB, {USERS} users, {PARTITIONS} partitions; (d) and (e): {loop_events} events; "
        f"the median of {rounds} rounds"
    )
    rows: list[Row] = []

    def emptied(work: Callable[[], Cost | None]) -> Cost | None:
        cost = work()
        empty(settings)
        return cost

    def parsed() -> Cost:
        rows.clear()
        return timed(events, lambda: parse_all(settings, events, rows))

    contenders: dict[str, tuple[str, Callable[[], Cost | None]]] = {
        "poll": ("    poll alone", lambda: timed(events, lambda: read(settings, events, lambda records: None))),
        "a": ("(a) poll + JSON + validation alone", parsed),
        "b": ("(b) COPY of the same rows alone", lambda: timed(events, lambda: copy_all(settings, rows))),
        "c": ("(c) pigeon consume, end to end, 1 process", lambda: emptied(lambda: consume_all(settings, events, 1))),
        "two": ("    pigeon consume, 2 processes", lambda: emptied(lambda: consume_all(settings, events, 2))),
        "d": (
            "(d) plain loop: INSERT and commit per event",
            lambda: emptied(lambda: timed(loop_events, lambda: loop(settings, loop_events, many=False))),
        ),
        "e": (
            "(e) plain loop: executemany and commit per poll",
            lambda: emptied(lambda: timed(loop_events, lambda: loop(settings, loop_events, many=True))),
        ),
    }
    costs: dict[str, list[Cost | None]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (_, work) in contenders.items():
            costs[name].append(work())
    best = {name: middle(of) for name, of in costs.items()}
    poll, a, b, c, d, e = (best[name] for name in ("poll", "a", "b", "c", "d", "e"))
    if not (poll and a and b and isinstance(c, Consumed) and d and e):
        raise SystemExit("all events were stored in one batch: measure more of them")

    for name, (title, _) in contenders.items():
        cost, all_rates = best[name], [cost.rate for cost in costs[name] if cost]
        rates = (
            f"{cost.rate:>9,.0f} events/s ({min(all_rates):,.0f} to {max(all_rates):,.0f})" if cost else "no partition"
        )
        say(f"{title:<50} {rates}")
    sequence = 1 / (1 / a.rate + 1 / b.rate)
    ratios = {"c / min(a, b)": c.rate / min(a.rate, b.rate), "c / (a and b in sequence)": c.rate / sequence}
    ratios |= {"c / d": c.rate / d.rate, "c / e": c.rate / e.rate}
    two = best["two"]
    if two:
        ratios["2 processes / 1"] = two.rate / c.rate
    say("processor time of Python, microseconds per event (a busy machine does not change these much):")
    for name, seconds, count in (
        ("poll", poll.processor, events),
        ("decode and validate: (a) less poll", a.processor - poll.processor, events),
        ("COPY's text: (b)", b.processor, events),
        ("(c) whole process, its start and end included", c.processor, events),
        ("(d)", d.processor, loop_events),
    ):
        say(f"  {name:<48} {seconds / count * 1e6:>9.0f}")
    quarters = ", ".join(f"{size / 2**20:.0f}" for size in c.resident[:-1])
    say(
        f"resident memory of (c) after each quarter of the backlog: {quarters} MiB; peak {c.resident[-1] / 2**20:.0f} MiB"
    )
    sizes = f"{events} events, {PARTITIONS} partitions, events per second by the clock, median of {rounds} rounds"
    return [Figure("ingest", name, ratio, detail=sizes) for name, ratio in ratios.items()]


def rows(options: Options) -> list[Figure]:
    """Measure on embedded servers of its own."""
    events, loop_events, rounds = (200_000, 2_000, 3) if options.full else (60_000, 1_000, 1)
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(Path(folder))
        stack.up(services=("postgres", "s3", "kafka"), tied=True)
        try:
            settings = load_settings(state_dir=Path(folder))
            database.upgrade(settings.database)
            clients.create_topics(settings.kafka, partitions=PARTITIONS, replication=1)
            return measure(settings, events, loop_events, rounds)
        finally:
            stack.down(purge=True)
