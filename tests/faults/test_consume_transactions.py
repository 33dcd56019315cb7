"""FLAWS F6, INPUTS 1 and 2: aborted transactions never happened, every codec is read.

On noida-db and Apache Kafka, and on the running broker that PIGEON_TEST_KAFKA names, if any. Tansu has no transactions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
from kafka import KafkaProducer

from schemas.connections import kafka_options
from schemas.errors import Refused
from schemas.events import INTERACTIONS
from schemas.settings import Settings, load_settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import changed, click, consume, make_topics, query

pytestmark = [pytest.mark.integration, pytest.mark.faults]
RUNNING = os.environ.get("PIGEON_TEST_KAFKA", "")
Send = Callable[[int, int, bool], None]


@pytest.fixture(params=[*BROKERS[1:], *(["running"] if RUNNING else [])])
def there(request: pytest.FixtureRequest, database_url: str) -> Settings:
    """Settings of topics of this test's own, of one partition."""
    prefix = f"{uuid4().hex[:8]}."  # a broker that somebody runs keeps its topics
    address = RUNNING if request.param == "running" else request.getfixturevalue(request.param).address
    settings = load_settings(
        database={"url": database_url},
        kafka={
            "bootstrap_servers": address,
            "topic_prefix": prefix,
            "group_id": f"{prefix}pigeon",
            "session_timeout_ms": 6_000,
            "group_instance_id": "member",
        },
    )
    make_topics(settings, partitions=1)
    return settings


@pytest.fixture
def send(there: Settings) -> Iterator[Send]:
    """Sends events number `first` to `first + count - 1` in one transaction, and commits or aborts it."""
    name = f"{there.kafka.topic_prefix}tx"
    producer = KafkaProducer(**kafka_options(there.kafka), transactional_id=name, acks="all")
    producer.init_transactions()

    def sent(first: int, count: int, commit: bool) -> None:
        producer.begin_transaction()
        for number in range(first, first + count):
            event = click(number)
            topic = there.kafka.topic_prefix + INTERACTIONS
            producer.send(topic, key=event.user_id.encode(), value=event.model_dump_json().encode())
        producer.flush()
        (producer.commit_transaction if commit else producer.abort_transaction)()

    yield sent
    producer.close(timeout=5)


def rows(settings: Settings) -> int:
    return int(query(settings, "SELECT count(*) FROM interactions")[0][0])


def test_what_was_aborted_is_not_stored_and_markers_are_no_lag(there: Settings, send: Send) -> None:
    """FLAWS F6, INPUTS 2: commit 3, abort 2, commit 2 gives 5 rows."""
    send(0, 3, True)
    send(10, 2, False)
    send(20, 2, True)
    assert consume(there, until_idle=0.5).records == 5  # it ends: the commit marker at the end is no lag
    assert rows(there) == 5
    send(30, 1, False)
    assert consume(there, until_idle=0.5).records == 0
    send(40, 1, True)
    assert consume(there, until_idle=0.5).records == 1
    assert rows(there) == 6


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_codec_is_read(there: Settings, codec: str) -> None:
    """Beside F6, INPUTS 1."""
    producer = KafkaProducer(**kafka_options(there.kafka), compression_type=codec)
    for number in range(20):
        event = click(number)
        producer.send(there.kafka.topic_prefix + INTERACTIONS, value=event.model_dump_json().encode())
    producer.close()
    assert consume(there, until_idle=0.5).records == 20


def test_a_batch_that_cannot_be_decoded_is_named_and_nothing_hangs(
    there: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside F6, INPUTS 1."""
    producer = KafkaProducer(**kafka_options(there.kafka), compression_type="zstd")
    event = click(1)
    producer.send(there.kafka.topic_prefix + INTERACTIONS, value=event.model_dump_json().encode())
    producer.close()
    monkeypatch.setattr("kafka.codec.zstd", None)  # as on a machine without the package
    with pytest.raises(Refused, match=r"batch cannot be decoded.*user\.interactions\.v1 partition 0 offset 0"):
        consume(changed(there, "consumer", outage_backoff_max_seconds=1.0), until_idle=0.5)
    assert rows(there) == 0
