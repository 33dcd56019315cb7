"""INPUTS 5, FLAWS F33, F36: leaders that die, restart and stand still, on three Kafka brokers.

In the long form (`make faults`): three brokers need a gigabyte, and electing leaders takes its time.
"""

from __future__ import annotations

import gc
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from consumers import metrics
from consumers.kafka import clients
from consumers.loop.health import Health
from consumers.loop.ingest import Ingest
from consumers.loop.summary import Summary
from deploy.local.stack import Stack
from schemas.errors import ServerUnavailable
from schemas.events import INTERACTIONS
from schemas.settings import Settings, load_settings
from tests.support.apache_kafka import ApacheCluster, needs_apache
from tests.support.consume_world import REPORT, ROUNDS, SEED, Ledger, changed, consume, events, make_topics

LONG = ROUNDS >= 100
pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.timeout(900),
    needs_apache,
    # kafka-python 3.0.12 drops the socket of a refused connection without closing it (net/inet.py, sock_connect).
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.skipif(not LONG, reason="three brokers of Apache Kafka: the long form (`make faults`)"),
]
ELECTION_SECONDS = 6.0
"""Seconds after which these brokers put one out that they have not heard of (`broker.session.timeout.ms`)."""
KILLS = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheCluster]:
    made = ApacheCluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.kill()


@pytest.fixture(autouse=True)
def dropped_sockets() -> Iterator[None]:
    """Those of this module are collected here, where they are expected."""
    yield
    gc.collect()


@pytest.fixture
def there(cluster: ApacheCluster, stack: Stack, database_url: str) -> Settings:
    prefix = f"{database_url.rpartition('/')[2]}."
    settings = load_settings(
        state_dir=stack.state.path,
        database={"url": database_url},
        kafka={
            "bootstrap_servers": cluster.addresses,
            "topic_prefix": prefix,
            "group_id": f"{prefix}pigeon",
            "session_timeout_ms": 6_000,
        },
        consumer={"batch_max_records": 15, "batch_max_seconds": 0.3, "outage_backoff_max_seconds": 1.0},
    )
    make_topics(settings, replication=3)
    return settings


class Reading:
    """A consumer in a thread, until `stop`."""

    def __init__(self, settings: Settings) -> None:
        self.health, self.records = Health(), 0
        self.told: set[str] = set()
        self._ingest = Ingest(settings, [INTERACTIONS], health=self.health, progress=self._watch)
        self._thread = threading.Thread(target=self._ingest.run, daemon=True)
        self._thread.start()

    def _watch(self, summary: Summary, lag: int) -> None:
        self.records = summary.records
        self.told.add(self.health.ready()[1])

    def until(self, enough: Callable[[], object], seconds: float = 180.0) -> float:
        """Wait for it; returns the seconds that it took."""
        started = time.monotonic()
        while not enough():
            assert time.monotonic() < started + seconds, "the consumer did not come so far"
            assert self._thread.is_alive(), "the consumer ended"
            time.sleep(0.05)
        return time.monotonic() - started

    def stop(self) -> None:
        self._ingest.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


def partitions(settings: Settings) -> list[dict[str, Any]]:
    """What the cluster tells of the topic's partitions; asked again where the broker stands still."""
    impatient = settings.kafka.model_copy(update={"request_timeout_ms": 1_000})
    until = time.monotonic() + 120.0
    while True:
        try:
            with clients.asked(impatient) as admin:
                (topic,) = admin.describe_topics([settings.kafka.topic_prefix + INTERACTIONS])
        except ServerUnavailable:
            assert time.monotonic() < until, "no broker answers"
        else:
            return sorted(topic["partitions"], key=lambda one: one["partition_index"])


def leader(settings: Settings, partition: int) -> int:
    number: int = partitions(settings)[partition]["leader_id"]
    return number


def whole(settings: Settings) -> bool:
    """Whether every broker has all of the log: the next may go."""
    return all(len(one["isr_nodes"]) == 3 for one in partitions(settings))


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_leader_that_goes_and_comes_back_loses_and_doubles_nothing(
    there: Settings, cluster: ApacheCluster, how: str
) -> None:
    """Fault 21, INPUTS 5: kill -9, and rolling restarts."""
    chance = random.Random(f"{SEED} {how}")
    ledger = Ledger(there)
    reading = Reading(there)
    for _ in range(KILLS):
        ledger.send(events(chance, 60))
        broker = cluster.by_number(leader(there, chance.randrange(4)))
        getattr(broker, how)()
        ledger.send(events(chance, 60))
        broker.start()
        reading.until(lambda: whole(there))
    reading.until(lambda: reading.records >= len(ledger.at))
    reading.stop()
    ledger.check_end()
    REPORT.append(f"5 {how}: seed {SEED}, {KILLS} leaders, {len(ledger.at)} records, each accounted for once")


@pytest.mark.parametrize("round_", range(3))
def test_a_leader_that_stands_still_holds_its_partitions_no_longer_than_two_elections(
    there: Settings, cluster: ApacheCluster, round_: int
) -> None:
    """Fault 21, FLAWS F36: SIGSTOP; readiness says what is waited for."""
    chance = random.Random(f"{SEED} frozen {round_}")
    ledger = Ledger(there)
    reading = Reading(changed(there, "kafka", request_timeout_ms=4_000))
    ledger.send(events(chance, 60))
    reading.until(lambda: reading.records >= 60)
    frozen = cluster.by_number(leader(there, round_))
    frozen.freeze()
    try:
        started = time.monotonic()
        elected_after = None
        number = cluster.brokers.index(frozen) + 1
        while elected_after is None:
            if leader(there, round_) != number:
                elected_after = time.monotonic() - started
        ledger.send(events(chance, 60))
        reading.until(lambda: reading.records >= len(ledger.at))
        waited = time.monotonic() - started
    finally:
        frozen.thaw()
    reading.until(lambda: whole(there))
    reading.stop()
    ledger.check_end()
    assert any(f"kafka broker {frozen.address}: no answer" in told for told in reading.told), reading.told
    assert waited <= 2 * max(ELECTION_SECONDS, elected_after) + 2
    REPORT.append(f"36 frozen leader: another elected after {elected_after:.0f} s, all read after {waited:.0f} s")


def test_every_start_joins_its_group_once(there: Settings) -> None:
    """Beside fault 21, FLAWS F33."""
    for _ in range(5):
        before = metrics.REBALANCES._value.get()
        consume(there)
        assert metrics.REBALANCES._value.get() == before + 1
