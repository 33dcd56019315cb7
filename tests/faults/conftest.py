"""Three brokers for the ingest's fault tests.

Fixtures: `noida` and `apache` (the second and third broker), `quick` (settings of this test's own database and topics, on
each broker in turn, with short timeouts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from deploy.local.stack import Stack
from deploy.local.state import StateDir
from schemas.settings import Settings, load_settings
from tests.support.apache_kafka import BROKERS, ApacheBroker, one_broker
from tests.support.consume_world import REPORT, NoidaBroker, make_topics


@pytest.fixture(autouse=True)
def report(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """What the test tells of goes with its result, from whichever process it ran in.

    Tests/conftest.py prints it.
    """
    yield
    for line in REPORT:
        record_property("faults", line)
    REPORT.clear()


@pytest.fixture(scope="session")
def noida(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoidaBroker]:
    """noida-db with a folder of its own; tests that kill it start their own."""
    broker = NoidaBroker(StateDir(tmp_path_factory.mktemp("noida")))
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheBroker]:
    """One broker of Apache Kafka that everybody may use."""
    broker = one_broker(tmp_path_factory.mktemp("apache"))
    yield broker
    broker.kill()


@pytest.fixture(params=BROKERS)
def quick(request: pytest.FixtureRequest, stack: Stack, database_url: str) -> Settings:
    """A dead member is missed soon.

    A stalled transaction ends after 2 s; outages are retried every second; batches are small.
    """
    prefix = f"{database_url.rpartition('/')[2]}."
    kafka = {"topic_prefix": prefix, "group_id": f"{prefix}pigeon", "session_timeout_ms": 1_500}
    if request.param == "noida":
        address = request.getfixturevalue("noida").address
        # It refuses shorter sessions, as Apache Kafka does by default, and never puts a dead member out: ours is static.
        kafka |= {"bootstrap_servers": address, "session_timeout_ms": 6_000, "group_instance_id": "member"}
    if request.param == "apache":
        prefix = f"apache.{prefix}"
        address = request.getfixturevalue("apache").address
        kafka |= {"bootstrap_servers": address, "topic_prefix": prefix, "group_id": f"{prefix}pigeon"}
    settings = load_settings(
        state_dir=stack.state.path,
        database={"url": database_url, "statement_timeout_seconds": 2.0, "lock_timeout_seconds": 1.0},
        kafka=kafka,
        consumer={"batch_max_records": 15, "batch_max_seconds": 0.3, "outage_backoff_max_seconds": 1.0},
    )
    make_topics(settings)
    return settings
