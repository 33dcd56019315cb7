"""The world of the consumers' tests: what they are sent.

For the fault tests brokers, the ledger of what those acknowledged, and
consumers that are cheap to kill.

`FAULT_ROUNDS` (rounds of each point) and `FUZZ_CASES` (generated cases of each property) are small in `make test` and large in
`make faults`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from typing import Any, get_args

from consumers import dead_letters, metrics
from consumers.files.produce import Producer
from consumers.kafka import clients
from consumers.loop.ingest import Ingest
from consumers.loop.summary import Summary
from consumers.postgres import postgres_connection
from deploy.local.noida import Noida
from deploy.local.ports import choose
from deploy.local.process import Child
from deploy.local.state import Secrets, StateDir
from schemas import faultpoints
from schemas.errors import PigeonError
from schemas.events import INTERACTIONS, Event, Interaction, all_topics
from schemas.runtime import logs
from schemas.runtime.stop_signals import stop_signals
from schemas.settings import Settings

ROUNDS = int(os.environ.get("FAULT_ROUNDS", "2"))
CASES = int(os.environ.get("FUZZ_CASES", "300"))
SEED = 33
START = datetime(2026, 11, 1, tzinfo=UTC)
REPORT: list[str] = []  # lines for the end of the run: what was really done, with its seed
# The last is reached in the loop's own thread, the others in the writer's.
POINTS = get_args(faultpoints.ConsumePoint)

_processes = multiprocessing.get_context("forkserver")
# Importing takes seconds, forking a process that has imported takes milliseconds.
_processes.set_forkserver_preload(["consumers.loop.ingest", "consumers.dead_letters", "tests.support.consume_world"])


class NoidaBroker:
    """noida-db as a child of the test run; can be killed and started again on the same data."""

    def __init__(self, state: StateDir) -> None:
        state.make()
        self.server = Noida(state, choose(state.path), Secrets.new())
        self.server.prepare()
        self.start()

    @property
    def address(self) -> str:
        return self.server.address

    def start(self) -> None:
        self._child = Child(self.server.command())
        deadline = time.monotonic() + 60
        while not self.server.answers():
            assert time.monotonic() < deadline, self.server.log.read_text()[-2_000:]
            assert self._child.exit_code() is None, self.server.log.read_text()[-2_000:]
            time.sleep(0.05)

    def kill(self) -> None:
        self._child.kill()


def make_topics(settings: Settings, partitions: int = 4, replication: int = 1) -> None:
    admin = clients.admin(settings.kafka)
    try:
        names = all_topics(settings.kafka.topic_prefix)
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": replication} for name in names})
    finally:
        admin.close()


def changed(settings: Settings, group: str, **values: Any) -> Settings:
    """The same settings with other values in one group."""
    part = getattr(settings, group)
    return settings.model_copy(update={group: part.model_copy(update=values)})


class connected:  # noqa: N801 - reads as a function
    """A cursor of a connection of its own, each statement for itself."""

    def __init__(self, settings: Settings) -> None:
        self._connection = postgres_connection(settings.database, "pigeon-tests")
        self._connection.autocommit = True

    def __enter__(self) -> Any:
        return self._connection.cursor()

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def query(settings: Settings, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connected(settings) as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


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


def event_id(number: int) -> uuid.UUID:
    return uuid.UUID(int=number, version=4)


def click(number: int, user: str = "u1", at: datetime | None = None, **changes: Any) -> Interaction:
    values = {
        "event_id": event_id(number),
        "user_id": user,
        "item_id": f"i{number}",
        "kind": "click",
        "occurred_at": at or START + timedelta(minutes=number),
    }
    return Interaction.model_validate(values | changes)


def send(settings: Settings, events: Iterable[Event]) -> None:
    with Producer(settings.kafka) as producer:
        for event in events:
            producer.send(event)


def send_raw(settings: Settings, topic: str, values: Iterable[bytes | None], key: bytes = b"u1") -> None:
    producer = clients.producer(settings.kafka, 4 * 2**20)
    for value in values:
        producer.send(settings.kafka.topic_prefix + topic, key=key, value=value, headers=[("from", b"test")])
    producer.flush()
    producer.close()


class Ledger:
    """What was acknowledged: the event (or None for poison) at each (partition, offset)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.at: dict[tuple[int, int], Interaction | None] = {}
        self.known: list[Interaction] = []
        self.topic = settings.kafka.topic_prefix + INTERACTIONS

    def send(self, events: Iterable[Interaction | None]) -> None:
        producer = clients.producer(self.settings.kafka, linger_ms=5)
        sent = []
        for event in events:
            # Poison on every partition: on one alone, 200 kills before it is past pile up more of it than the limit allows.
            key = (event.user_id if event else f"poison {len(sent)}").encode()
            value = event.model_dump_json().encode() if event else b"{"
            sent.append((producer.send(self.topic, key=key, value=value), event))
        for future, event in sent:
            metadata = future.get(timeout=60)
            self.at[metadata.partition, metadata.offset] = event
        producer.close()

    def send_mixed(self, chance: random.Random, count: int, poison: int = 1) -> None:
        """New events, some of the old ones again, and poison, in any order."""
        fresh = events(chance, count)
        again = chance.sample(self.known, min(count // 6, len(self.known)))
        mixed = [*fresh, *again, *[None] * poison]
        self.send(chance.sample(mixed, len(mixed)))
        self.known += fresh

    def check(self) -> int:
        """The table holds exactly the events below the stored offsets.

        Returns how many records are below them.
        """
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
        """Everything acknowledged is accounted for: rows, histories, dead letters, each once."""
        assert self.check() == len(self.at), "every acknowledged record is accounted for"
        events = {e.event_id: e for e in self.at.values() if e}
        expected: dict[str, list[str]] = {}
        items: dict[str, set[str]] = {}
        for event in sorted(events.values(), key=lambda e: (e.occurred_at, e.event_id), reverse=True):
            mine, seen = expected.setdefault(event.user_id, []), items.setdefault(event.user_id, set())
            if event.item_id not in seen and len(mine) < self.settings.consumer.history_size:
                mine.append(str(event.event_id))
                seen.add(event.item_id)
        rows = query(self.settings, "SELECT user_id, entries, interaction_count FROM user_histories")
        assert {user: [entry["event_id"] for entry in entries] for user, entries, _ in rows} == expected
        assert {user: count for user, _, count in rows} == Counter(e.user_id for e in events.values())
        letters = dead_letters.read(self.settings)
        assert len(letters) == sum(event is None for event in self.at.values())


def consume(settings: Settings, topics: Iterable[str] = (INTERACTIONS,), **options: Any) -> Summary:
    """Read the topics in this process until all is durable."""
    return Ingest(settings, list(topics), **{"until_idle": 0.5, **options}).run()


def _consume(
    settings: Settings, point: str, number: int, deed: str, options: dict[str, Any], outcome: Connection
) -> None:
    """The body of a `Victim`."""
    logs.configure(settings)
    seen = 0
    last: tuple[float, ...] = ()

    def listener(reached: str) -> None:
        nonlocal seen
        seen += reached == point
        if reached == point and seen == number:
            if deed == "sleep":
                time.sleep(2.5 * settings.kafka.max_poll_interval_ms / 1000)  # the fault itself
            else:
                signal.pthread_kill(threading.get_ident(), getattr(signal, deed))  # this thread goes no further

    def tell(summary: Summary, lag: int) -> None:
        nonlocal last
        refused = metrics.FENCED._value.get() + metrics.OUTAGES.labels("database")._value.get()
        now = (summary.records, refused, metrics.REBALANCES._value.get())
        if seen >= number and now != last:
            outcome.send(now)
            last = now

    faultpoints.handler = listener
    ingest = Ingest(settings, [INTERACTIONS], progress=tell, **options)
    try:
        with stop_signals(lambda _: ingest.stop(), numbers=(signal.SIGTERM,)):
            ingest.run()
    except PigeonError as error:
        sys.stderr.write(f"pigeon: {error}\n")
        sys.exit(error.exit_code)


class Victim:
    """A consumer in a process of its own that does `deed` (a signal's name, or sleep) to itself at a point's n-th time."""

    def __init__(self, settings: Settings, point: str = "", number: int = 0, deed: str = "SIGKILL", **options: Any):
        self._outcome, theirs = _processes.Pipe(duplex=False)
        self.process = _processes.Process(
            target=_consume, args=(settings, point, number, deed, options, theirs), daemon=True
        )
        self.process.start()
        theirs.close()

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self._outcome.close()

    def ended(self, seconds: float = 300.0) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode

    def stopped(self, seconds: float = 300.0) -> bool:
        """Wait until it has stopped itself; False when it ended instead."""
        deadline = time.monotonic() + seconds
        while self.process.is_alive():
            with open(f"/proc/{self.process.pid}/stat") as stat:  # noqa: PTH123 - gone between two lines, it raises
                if stat.read().rpartition(")")[2].split()[0] == "T":
                    return True
            assert time.monotonic() < deadline, "it neither stopped nor ended"
            time.sleep(0.01)
        return False

    def goes_on(self) -> None:
        assert self.process.pid
        os.kill(self.process.pid, signal.SIGCONT)

    def told(self, enough: Callable[[float, float, float], bool], seconds: float = 300.0) -> bool:
        """Wait until (records, refused writes, rebalances) are as wanted; False when it ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self._outcome.poll(0.2) and enough(*self._outcome.recv()):
                    return True
            except (EOFError, ConnectionError):
                return False
        raise AssertionError("it neither did so nor ended")
