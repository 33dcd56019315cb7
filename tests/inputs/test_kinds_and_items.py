"""INPUTS 3, 8 and 11: events of no use are counted in words, by who reads them and by the night."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from consumers.kafka import clients
from consumers.loop.health import Health
from generator.nightly.event_hints import event_hints
from schemas.events import CATALOG, INTERACTIONS, CatalogItem
from schemas.settings import Settings
from tests.support.consume_world import changed, click, consume, query, send, send_raw

pytestmark = pytest.mark.integration


def test_kinds_without_use_and_items_without_a_catalogue_are_told_of(settings: Settings, engine: Engine) -> None:
    seen = [click(number, kind="View") for number in range(3)]
    used = [click(10, item_id="known"), click(11, item_id="108775015"), click(12, item_id="other")]
    send(settings, [CatalogItem(item_id="known", title="T"), *seen, *used])
    line = consume(settings, [CATALOG, INTERACTIONS]).line()
    assert "events that enter no history (consumer.positive_kinds): 3 of kind 'view'" in line
    with Session(engine) as session:
        kinds, items = event_hints(session, settings.consumer.positive_kinds)
    assert "3 of kind 'view'" in kinds
    assert "click, play, like, purchase" in kinds
    assert items.startswith("2 clicked items are not in the catalogue, for example '108775015'")


def test_a_tombstone_whose_key_is_no_items_id_is_counted_and_not_obeyed(settings: Settings, engine: Engine) -> None:
    """INPUTS 3: such as an id in JSON's quotes; of an item that came in the same batch it is obeyed."""
    send(settings, [CatalogItem(item_id=name, title="T") for name in ("kept", "gone")])
    send_raw(settings, CATALOG, [None, None], key=b'"kept"')
    send_raw(settings, CATALOG, [None], key=b"gone")
    summary = consume(settings, [CATALOG])
    assert "2 tombstones of no item" in summary.line()
    assert summary.poison == 0
    assert query(settings, "SELECT item_id, deleted_at IS NULL FROM items ORDER BY 1") == [
        ("gone", False),
        ("kept", True),
    ]


def test_where_all_is_of_use_nobody_says_a_word(settings: Settings, engine: Engine) -> None:
    send(settings, [CatalogItem(item_id="known", title="T"), click(1, item_id="known")])
    assert "enter no history" not in consume(settings, [CATALOG, INTERACTIONS]).line()
    with Session(engine) as session:
        assert event_hints(session, settings.consumer.positive_kinds) == []


def test_readiness_names_a_broker_that_is_silent_until_it_answers() -> None:
    """FLAWS F36."""
    health = Health()
    health.beat(0)
    health.note_silent_brokers({"10.0.0.1:9092": 7.2})
    assert health.ready() == (
        False,
        "kafka broker 10.0.0.1:9092: no answer for 7 s: waiting for another leader of its partitions",
    )
    assert health.alive()[0], "a restart would not help"
    health.note_silent_brokers({})
    assert health.ready() == (True, "ok")


def test_clients_come_up_where_the_first_of_the_servers_is_silent(settings: Settings) -> None:
    """INPUTS 5, FLAWS F36: it takes connections and says nothing, as one that was stopped does."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        servers = f"127.0.0.1:{silent.getsockname()[1]},{settings.kafka.bootstrap_servers}"
        there = changed(settings, "kafka", bootstrap_servers=servers)
        with closing(clients.admin(there.kafka)) as admin, closing(clients.producer(there.kafka)) as producer:
            assert CATALOG in admin.list_topics()
            assert producer.partitions_for(CATALOG)
