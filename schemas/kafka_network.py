"""The network of every Kafka client, which turns soon from a broker that stands still to another one.

Such a broker takes connections and says nothing on them. kafka-python 3.0.12 waits 10 to 30 s for each of them, when it looks
for a first broker as long as it may at all, and has no option for either.
"""

from __future__ import annotations

import functools
from typing import Any

CONNECT_MS = 3_000
"""Milliseconds until a broker must have answered on a new connection; twice as many when it did not the last time."""


def network(**options: Any) -> Any:
    """Make what kafka-python's clients take as their option `kafka_client`."""
    from kafka.net.compat import KafkaNetClient
    from kafka.net.selector import NetworkSelector

    net = NetworkSelector(**options)
    return KafkaNetClient(net=net, manager=_manager()(net, **options))


@functools.cache
def _manager() -> Any:
    from kafka.net.manager import KafkaConnectionManager

    class Impatient(KafkaConnectionManager):  # type: ignore[misc] # kafka-python has no types
        def __init__(self, net: Any, **options: Any) -> None:
            super().__init__(net, **options)
            self.config |= {
                "socket_connection_setup_timeout_ms": CONNECT_MS,
                "socket_connection_setup_timeout_max_ms": 2 * CONNECT_MS,
            }
            self._servers = self.cluster.bootstrap_brokers()
            self.cluster.bootstrap_brokers = self._next_servers

        def _next_servers(self) -> list[Any]:
            """The servers of the settings that have failed least often: all have their turn."""
            failures = [self._backoff.get(server.node_id, (0,))[0] for server in self._servers]
            return [server for server, failed in zip(self._servers, failures, strict=True) if failed == min(failures)]

        def get_connection(self, node_id: Any, timeout_ms: float | None = None, **more: Any) -> Any:
            if timeout_ms is not None and len(self._servers) > 1:  # of one server nobody takes the place
                timeout_ms = min(timeout_ms, self.socket_connection_setup_timeout_ms(node_id))
            return super().get_connection(node_id, timeout_ms=timeout_ms, **more)

    return Impatient
