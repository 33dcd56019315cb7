"""Typed events to their topics: what imports and other producers of this project send with."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from consumers.kafka import clients
from schemas.errors import ServerUnavailable
from schemas.events import TOPIC_OF, CatalogItem, Event, key_of
from schemas.settings_kafka import KafkaSettings


class Producer:
    """Sender of events; one is sent for certain only after `flush`.

    As a context manager it flushes at the end.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        """Raises: ServerUnavailable, InputError, as consumers.kafka.clients.producer."""
        self._settings = settings
        self._producer = clients.producer(settings, linger_ms=500)
        self._failures: list[BaseException] = []
        self._pending: list[Any] = []
        self.sent = 0

    def __enter__(self) -> Producer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._producer.close(timeout=5)

    def _send(self, topic: str, key: bytes, value: bytes | None) -> None:
        try:
            future = self._producer.send(self._settings.topic_prefix + topic, key=key, value=value)
        except clients.KafkaError as error:
            raise ServerUnavailable(
                f"topic {self._settings.topic_prefix + topic}: {type(error).__name__}: {error}"
            ) from None
        future.add_errback(self._failures.append)
        self.sent += 1

    def send(self, event: Event) -> None:
        """Queue one event for its topic.

        Raises:
            ServerUnavailable: the topic's partitions cannot be learnt in time.
        """
        self._send(TOPIC_OF[type(event)], key_of(event), event.model_dump_json().encode())

    def delete_item(self, item_id: str) -> None:
        """Queue a catalogue tombstone.

        Raises: as `send`.
        """
        self._send(TOPIC_OF[CatalogItem], item_id.encode(), None)

    def flush(self) -> None:
        """Wait until the broker has acknowledged everything.

        Raises:
            ServerUnavailable: some events were not acknowledged; sending them again is safe.
        """
        try:
            self._producer.flush(timeout=2 * self._settings.request_timeout_ms / 1000)
        except clients.KafkaError as error:
            raise ServerUnavailable(f"kafka did not acknowledge in time: {error}") from None
        if self._failures:
            first = self._failures[0]
            raise ServerUnavailable(
                f"{len(self._failures)} of {self.sent} events were not acknowledged: {type(first).__name__}: {first}; "
                "run it again, stored events are recognised"
            )
