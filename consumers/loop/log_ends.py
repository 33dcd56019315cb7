"""Ends of the logs while nothing is read of them.

Who fetches learns them, but in an outage nobody fetches.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from kafka import TopicPartition

from consumers.kafka import clients
from consumers.loop.background import Background
from schemas.errors import PigeonError
from schemas.settings_kafka import KafkaSettings

ASK_SECONDS = 5.0
"""Seconds without fetching before the broker is asked, and between two questions."""


class LogEnds:
    """Asks in a thread and by a client of its own: the writer's may hang in a dead Postgres."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin: Any = None
        self._background = Background("pigeon-log-ends")
        self._ends: dict[TopicPartition, int] = {}
        self._ask_at = 0.0

    def look(self, partitions: Collection[TopicPartition], *, fetching: bool) -> Mapping[TopicPartition, int]:
        """The ends that the last answer told; none while fetching tells them."""
        now = time.monotonic()
        if (finish := self._background.collect()) is not None:
            finish()
        if fetching or not partitions:
            self._ends, self._ask_at = {}, now + ASK_SECONDS
        elif now >= self._ask_at and not self._background.busy:
            asked = list(partitions)
            self._background.submit((lambda: self._ask(asked), self._ends.update))
            self._ask_at = now + ASK_SECONDS
        return self._ends

    def close(self) -> None:
        """Close the client, unless it is being used."""
        if self._admin is not None and not self._background.busy:
            self._admin.close()

    def _ask(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        try:
            if self._admin is None:
                self._admin = clients.admin(self._settings)
            return clients.ends(self._admin, partitions)
        except (clients.KafkaError, PigeonError):
            return {}  # Kafka is away as well, which others tell of
