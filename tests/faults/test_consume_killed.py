"""Faults 1 to 4 in short seeded form: consumers killed, stopped, slow, and cut off from Postgres, at named points.

Checked by history: the producer's acknowledgements say which event is at which offset; after every kill exactly the events
below the stored offsets are in the table, and at the end all of them, once, in the right histories.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from consumers import broker, deadletters, metrics, points
from consumers.run import Ingest
from consumers.summary import Summary
from schemas.events import INTERACTIONS, Interaction
from schemas.settings import Settings

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.timeout(600),
]  # a hang ends, a busy machine does not fail
START = datetime(2026, 11, 1, tzinfo=UTC)
SEED = 33

# A consumer that does something to itself when it reaches a point for the n-th time.
CHILD = """
import signal, sys, threading
from consumers import points
point, number, signal_name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
seen = 0
def listener(reached):
    global seen
    seen += reached == point
    if reached == point and seen == number:
        signal.pthread_kill(threading.get_ident(), getattr(signal, signal_name))  # this thread goes no further
points.listener = listener
sys.argv[1:] = ["consume", *sys.argv[4:]]
from generator.cli import main
main()
"""
LIMITS = {"PIGEON_CONSUMER__BATCH_MAX_RECORDS": "40", "PIGEON_DATABASE__STATEMENT_TIMEOUT_SECONDS": "4"}


class Ledger:
    """What was acknowledged: the event (or None for poison) at each (partition, offset)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.at: dict[tuple[int, int], Interaction | None] = {}
        self.topic = settings.kafka.topic_prefix + INTERACTIONS

    def send(self, events: Iterable[Interaction | None]) -> None:
        producer = broker.producer(self.settings.kafka)
        sent = []
        for event in events:
            key = event.user_id.encode() if event else b"poison"
            value = event.model_dump_json().encode() if event else b"{"
            sent.append((producer.send(self.topic, key=key, value=value), event))
        for future, event in sent:
            metadata = future.get(timeout=30)
            self.at[metadata.partition, metadata.offset] = event
        producer.close()

    def check(self) -> int:
        """The table holds exactly the events below the stored offsets; returns how many records are below them."""
        with connected(self.settings) as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT partition, next_offset FROM consumer_offsets WHERE topic = %s", (self.topic,))
            offsets = dict(cursor.fetchall())
            cursor.execute("SELECT event_id::text FROM interactions")
            stored = Counter(event_id for (event_id,) in cursor)
        below = [event for (partition, offset), event in self.at.items() if offset < offsets.get(partition, 0)]
        assert set(stored) == {str(event.event_id) for event in below if event}
        assert not [event_id for event_id, count in stored.items() if count > 1]
        return len(below)

    def check_end(self) -> None:
        assert self.check() == len(self.at), "every acknowledged record is accounted for"
        events = {e.event_id: e for e in self.at.values() if e}
        expected: dict[str, list[str]] = {}
        for event in sorted(events.values(), key=lambda e: (e.occurred_at, e.event_id), reverse=True):
            mine = expected.setdefault(event.user_id, [])
            if len(mine) < self.settings.consumer.history_size:
                mine.append(str(event.event_id))
        with connected(self.settings) as cursor:
            cursor.execute("SELECT user_id, entries, interaction_count FROM user_histories")
            rows = cursor.fetchall()
        assert {user: [entry["event_id"] for entry in entries] for user, entries, _ in rows} == expected
        assert {user: count for user, _, count in rows} == Counter(e.user_id for e in events.values())
        letters = deadletters.read(self.settings)
        assert len(letters) == sum(event is None for event in self.at.values())


class connected:  # noqa: N801 - reads as a function
    def __init__(self, settings: Settings) -> None:
        self._connection = psycopg2.connect(settings.database.url.get_secret_value().replace("+psycopg2", ""))
        self._connection.autocommit = True

    def __enter__(self) -> Any:
        return self._connection.cursor()

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def events(chance: random.Random, count: int) -> list[Interaction]:
    return [
        Interaction(
            event_id=uuid.UUID(int=chance.getrandbits(128), version=4),
            user_id=f"u{chance.randrange(12)}",
            item_id=f"i{chance.randrange(50)}",
            kind="click",
            occurred_at=START + timedelta(minutes=chance.randrange(5_000)),
        )
        for _ in range(count)
    ]


def child(settings: Settings, point: str, number: int, signal_name: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, point, str(number), signal_name, "--topics", INTERACTIONS, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            **LIMITS,
            "PIGEON_STATE_DIR": str(settings.state_dir),
            "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
            "PIGEON_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
            "PIGEON_KAFKA__GROUP_ID": settings.kafka.group_id,
            "PIGEON_KAFKA__SESSION_TIMEOUT_MS": str(settings.kafka.session_timeout_ms),
        },
    )


def consume(settings: Settings, **options: Any) -> Summary:
    return Ingest(settings, [INTERACTIONS], **{"until_idle": 0.5, **options}).run()


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """A dead member is missed after 3 s; a stalled transaction ends after 4."""
    return settings.model_copy(
        update={
            "kafka": settings.kafka.model_copy(update={"session_timeout_ms": 3_000}),
            "database": settings.database.model_copy(
                update={"statement_timeout_seconds": 4.0, "lock_timeout_seconds": 2.0}
            ),
            "consumer": settings.consumer.model_copy(
                update={"batch_max_records": 40, "outage_backoff_max_seconds": 1.0}
            ),
        }
    )


@pytest.fixture
def at_points() -> Iterator[None]:
    yield
    points.listener = points._nobody


def test_fault_1_killed_at_every_point_of_the_write(quick: Settings):
    chance = random.Random(SEED)
    ledger = Ledger(quick)
    known: list[Interaction] = []
    killed = Counter[str]()
    for point in ("dead_letters_sent", "staged", "before_commit", "after_commit", "after_kafka_commit", "claimed"):
        fresh = events(chance, 120)
        repeated = chance.sample(known, min(20, len(known)))
        ledger.send(chance.sample([*fresh, *repeated, None], 121 + len(repeated)))
        known += fresh
        number = 1 if point in ("claimed", "dead_letters_sent") else chance.choice([1, 2])
        with child(quick, point, number, "SIGKILL", "--until-idle", "0.5") as victim:
            out, err = victim.communicate()
        killed[point] += victim.returncode == -signal.SIGKILL
        assert victim.returncode in (0, -signal.SIGKILL), (point, out, err)
        ledger.check()
    assert sum(killed.values()) >= 5, f"seed {SEED}: kills that hit: {killed}"
    consume(quick)
    ledger.check_end()


@pytest.mark.parametrize(("point", "number"), [("staged", 2), ("before_commit", 3)])  # claiming commits, too
def test_fault_2_the_late_write_of_a_former_owner_is_refused(quick: Settings, point: str, number: int):
    chance = random.Random(SEED)
    ledger = Ledger(quick)
    ledger.send(events(chance, 200))
    with child(quick, point, number, "SIGSTOP") as zombie:
        try:
            assert os.WIFSTOPPED(os.waitpid(zombie.pid, os.WUNTRACED)[1]), "it stopped itself in the middle of a write"
            assert ledger.check() == 40, "its first batch is durable, the second is under way"
            assert consume(quick).records == 160
            ledger.check_end()
            zombie.send_signal(signal.SIGCONT)
            ledger.send(events(chance, 100))
            deadline = time.monotonic() + 400
            while ledger.check() < 300:  # it comes back as a member like any other
                assert time.monotonic() < deadline, "the former owner did not come back"
                time.sleep(0.2)
            zombie.send_signal(signal.SIGTERM)
            _, err = zombie.communicate()
        finally:
            zombie.kill()
    assert zombie.returncode == 128 + signal.SIGTERM, err
    ledger.check_end()


@pytest.mark.usefixtures("at_points")
def test_fault_3_a_write_slower_than_max_poll_interval_costs_nothing(quick: Settings):
    ledger = Ledger(quick)
    ledger.send(events(random.Random(SEED), 150))
    slow = quick.model_copy(update={"kafka": quick.kafka.model_copy(update={"max_poll_interval_ms": 1_500})})
    held = threading.Event()

    def hold(point: str) -> None:
        if point == "staged" and not held.is_set():
            held.set()
            time.sleep(3.0)  # the fault itself: twice the interval

    points.listener = hold
    before = metrics.REBALANCES._value.get()
    consume(slow)
    assert held.is_set()
    assert metrics.REBALANCES._value.get() == before + 1, "polling went on meanwhile: the member was never put out"
    ledger.check_end()


@pytest.mark.usefixtures("at_points")
def test_fault_4_killed_backends_and_a_read_only_database_are_waited_out(quick: Settings):
    ledger = Ledger(quick)
    ledger.send(events(random.Random(SEED), 200))
    kills = Counter[str]()

    def cut(point: str) -> None:
        if point in ("staged", "before_commit") and kills[point] < 2:
            kills[point] += 1
            with connected(quick) as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND application_name = 'pigeon-consumer'"
                )
                if kills.total() == 2:
                    cursor.execute("SELECT current_database()")
                    (name,) = cursor.fetchone()
                    cursor.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

    points.listener = cut
    outages = metrics.OUTAGES.labels("database")
    before = outages._value.get()

    def writable_again(summary: Summary, lag: int) -> None:
        if outages._value.get() - before >= 4:
            with connected(quick) as cursor:
                cursor.execute("SET default_transaction_read_only = off")
                cursor.execute("SELECT current_database()")
                (name,) = cursor.fetchone()
                cursor.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")

    consume(quick, progress=writable_again)
    assert kills.total() >= 3
    assert outages._value.get() - before >= 4
    ledger.check_end()


@pytest.mark.usefixtures("at_points")
def test_a_stop_keeps_its_deadline_when_the_write_hangs(quick: Settings):
    ledger = Ledger(quick)
    ledger.send(events(random.Random(SEED), 60))
    hanging, release = threading.Event(), threading.Event()

    def hang(point: str) -> None:
        if point == "staged" and not hanging.is_set():
            hanging.set()
            release.wait(60)

    points.listener = hang
    short = quick.model_copy(update={"consumer": quick.consumer.model_copy(update={"stop_deadline_seconds": 0.5})})
    ingest = Ingest(short, [INTERACTIONS], progress=lambda *_: ingest.stop() if hanging.is_set() else None)
    assert ingest.run().records == 0
    assert hanging.is_set()
    assert not release.is_set(), "it did not wait for the write"
    release.set()
    consume(quick)
    ledger.check_end()
