"""Fault 4: Postgres stops, hangs, is read-only or locked.

The consumer waits, and no outage is ever poison.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pytest

from consumers import dead_letters, metrics
from consumers.loop.health import Health
from consumers.loop.summary import Summary
from deploy.local.process import parent_of, processes
from deploy.local.stack import Stack
from migrations import database
from schemas import faultpoints
from schemas.settings import DatabaseSettings, Settings, load_settings
from tests.support.consume_world import REPORT, ROUNDS, SEED, Ledger, connected, consume, events, query

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("quick", ["tansu"], indirect=True),  # it is Postgres that fails
]
# As long as FAULTS.md says in the long form.
STOPPED_SECONDS = 30.0 if ROUNDS >= 100 else 4.0


@pytest.fixture(scope="module")
def own_postgres(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Postgres that may be ill-treated.

    Its supervisor starts it again when it dies, as an operator would.
    """
    servers = Stack(tmp_path_factory.mktemp("postgres"))
    servers.up(services=("postgres",), tied=True)
    yield servers
    servers.down(purge=True)


@pytest.fixture
def ill(quick: Settings, own_postgres: Stack, request: pytest.FixtureRequest) -> Settings:
    """`quick` on a database of the Postgres that is ill-treated."""
    server = load_settings(state_dir=own_postgres.state.path).database.url.get_secret_value().rpartition("/")[0]
    name = f"ill_{abs(hash(request.node.name))}"
    url = f"{server}/{name}"
    admin = quick.model_copy(update={"database": DatabaseSettings.model_validate({"url": f"{server}/postgres"})})
    query(admin, f"CREATE DATABASE {name}")
    database.upgrade(DatabaseSettings.model_validate({"url": url}))
    values = quick.database.model_dump() | {"url": url}
    return quick.model_copy(update={"database": DatabaseSettings.model_validate(values)})


def postmaster(servers: Stack) -> int:
    (pid,) = [server.pid for server in servers.status() if server.name == "postgres" and server.pid]
    return pid


@dataclass
class Fault:
    """What is done to Postgres in the middle of a write, and what ends it again."""

    begin: Callable[[Settings, Stack], None]
    end: Callable[[Settings, Stack], None] = field(default=lambda settings, servers: None)
    outages: int = 1  # failed tries that it must cost before it ends


def _terminate(settings: Settings, servers: Stack) -> None:
    query(
        settings,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'pigeon-consumer'",
    )


def _read_only(settings: Settings, servers: Stack) -> None:
    _terminate(settings, servers)
    ((name,),) = query(settings, "SELECT current_database()")
    query(settings, f"ALTER DATABASE {name} SET default_transaction_read_only = on")


def _writable(settings: Settings, servers: Stack) -> None:
    ((name,),) = query(settings, "SELECT current_database()")
    with connected(settings) as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        cursor.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")


def _restart(settings: Settings, servers: Stack) -> None:
    os.kill(postmaster(servers), signal.SIGQUIT)  # immediate shutdown; the supervisor starts it again


def _stop_for_a_while(settings: Settings, servers: Stack) -> None:
    first = postmaster(servers)  # once: each question leaves a backend that may end only after the list is made
    family = [first, *(pid for pid in processes() if parent_of(pid) == first)]

    def send(number: int, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def go_on() -> None:
        send(signal.SIGCONT, reversed(family))

    send(signal.SIGSTOP, family)

    threading.Timer(STOPPED_SECONDS, go_on).start()  # the length of the fault, not of a wait


class _Lock:
    """Somebody else's lock on the table, for longer than lock_timeout."""

    def begin(self, settings: Settings, servers: Stack) -> None:
        _terminate(settings, servers)  # the transaction under way has its locks already
        self._connection = connected(settings)
        self._cursor = self._connection.__enter__()
        self._cursor.execute("BEGIN")
        self._cursor.execute("LOCK TABLE consumer_offsets IN ACCESS EXCLUSIVE MODE")

    def end(self, settings: Settings, servers: Stack) -> None:
        self._connection.__exit__()


FAULTS: dict[str, Callable[[], Fault]] = {
    "backends killed": lambda: Fault(_terminate),
    "immediate restart": lambda: Fault(_restart),
    "SIGSTOP": lambda: Fault(_stop_for_a_while),
    "read-only": lambda: Fault(_read_only, _writable, outages=3),
    "lock timeout": lambda: Fault((lock := _Lock()).begin, lock.end, outages=3),
}


@pytest.fixture
def at_points() -> Iterator[None]:
    yield
    faultpoints.handler = None


@pytest.mark.usefixtures("at_points")
@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("point", ["staged", "before_commit"])
def test_fault_4_an_outage_is_waited_out(ill: Settings, own_postgres: Stack, name: str, point: str):
    """Fault 4: each outage at each point of the write."""
    fault = FAULTS[name]()
    ledger = Ledger(ill)
    ledger.send(events(random.Random(f"{SEED} {name} {point}"), 60))
    outages = metrics.OUTAGES.labels("database")
    before = outages._value.get()
    seen = 0
    started, ended = threading.Event(), threading.Event()
    health = Health()
    said: set[str] = set()

    def begin(reached: str) -> None:
        nonlocal seen
        seen += reached == point
        if seen == 2 and not started.is_set():  # claiming reaches before_commit, too
            started.set()
            fault.begin(ill, own_postgres)

    def end(summary: Summary, lag: int) -> None:
        said.add(health.ready()[1])
        if started.is_set() and not ended.is_set() and outages._value.get() - before >= fault.outages:
            ended.set()
            fault.end(ill, own_postgres)

    faultpoints.handler = begin
    summary = consume(ill, progress=end, health=health)
    assert started.is_set()
    # A write that was stopped together with the server may go on where it was.
    assert ended.is_set() or name == "SIGSTOP"
    assert not ended.is_set() or any("database" in words for words in said), "readiness says what is in the way"
    assert health.ready() == (True, "ok")
    assert summary.poison == 0
    ledger.check_end()
    assert dead_letters.read(ill) == []
    REPORT.append(
        f"4 {name} at {point}: {outages._value.get() - before:.0f} failed tries, {len(ledger.at)} records, none lost"
    )


@pytest.mark.usefixtures("at_points")
def test_reading_is_paused_in_an_outage_and_the_backlog_in_memory_is_bounded(ill: Settings, own_postgres: Stack):
    """Fault 4: a long outage under load."""
    ledger = Ledger(ill)
    ledger.send(events(random.Random(SEED), 200))
    lock = _Lock()
    tries: list[float] = []
    read: list[float] = []
    locked = threading.Event()

    def begin(reached: str) -> None:
        if reached == "staged" and not locked.is_set():
            locked.set()
            lock.begin(ill, own_postgres)

    records = metrics.RECORDS.labels("user.interactions.v1")
    before = records._value.get(), metrics.OUTAGES.labels("database")._value.get()

    def watch(summary: Summary, lag: int) -> None:
        failed = metrics.OUTAGES.labels("database")._value.get() - before[1]
        if locked.is_set() and failed > len(tries):
            tries.append(time.monotonic())
            read.append(records._value.get() - before[0])
            if failed == 4:
                lock.end(ill, own_postgres)

    faultpoints.handler = begin
    consume(ill, progress=watch)
    assert len(tries) >= 4
    assert read[0] == read[3] <= 3 * ill.consumer.batch_max_records, "two batches and no more are held while it lasts"
    ledger.check_end()
