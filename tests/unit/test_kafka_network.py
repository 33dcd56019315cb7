"""Kafka clients and servers that take connections and say nothing (FLAWS F36)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from schemas import kafka_network


@pytest.fixture
def manager() -> Iterator[Any]:
    client = kafka_network.network(bootstrap_servers=["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"])
    yield client._manager
    client._manager.close()
    client._net.close()


def test_servers_that_failed_wait_until_the_others_had_their_turn(manager: Any) -> None:
    asked = []
    for _ in range(6):
        server = manager.cluster.bootstrap_brokers()[0]
        manager.update_backoff(server.node_id)
        asked.append(server.port)
    assert sorted(asked[:3]) == sorted(asked[3:]) == [1, 2, 3]


def test_one_silent_server_gets_no_more_than_its_share_of_the_time(
    manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(
        type(manager).__base__, "get_connection", lambda *args, timeout_ms, **more: given.append(timeout_ms)
    )
    first = manager.cluster.bootstrap_brokers()[0].node_id
    manager.get_connection(first, timeout_ms=15_000)
    manager.get_connection(first, timeout_ms=500)
    manager.get_connection(first)
    assert given == [kafka_network.CONNECT_MS, 500, None]
    manager._servers = [SimpleNamespace(node_id=first)]
    manager.get_connection(first, timeout_ms=15_000)
    assert given[-1] == 15_000, "there is no other one to ask"
