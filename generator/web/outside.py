"""What the web asks of the consumers, as protocols: generator/cli.py, which may import both, gives it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from schemas.events import Event
from schemas.settings import Settings
from schemas.settings_kafka import KafkaSettings


class DeadLetter(Protocol):
    """One record of a dead-letter topic."""

    @property
    def topic(self) -> str: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]: ...
    @property
    def place(self) -> str:
        """TOPIC/PARTITION/OFFSET."""

    @property
    def source(self) -> tuple[str, str, str]:
        """Topic, partition and offset that the record was read at."""

    def note(self, name: str) -> str:
        """One of the headers that the consumer added, as text."""


class EventSender(Protocol):
    """Sends events to their topics."""

    def send(self, event: Event) -> Future[None]:
        """Hand one event over; the future ends when Kafka has it, or raises ServerUnavailable.

        Raises:
            ServerUnavailable: too many wait already; this one was not taken.
        """

    def close(self) -> None:
        """Wait for what was handed over, for a time."""


@dataclass(frozen=True)
class Outside:
    """Functions of the consumers."""

    open_sender: Callable[[KafkaSettings, int], EventSender]
    """The number is of events that may wait at a time."""
    kafka_problem: Callable[[KafkaSettings], str | None]
    """None when a broker takes connections."""
    read_letters: Callable[[Settings, str | None, str | None, int | None], list[Any]]
    """Open dead letters of a topic (all: None) with a reason (any: None), oldest first, at most so many."""
    find_letter: Callable[[Settings, str], DeadLetter]
    replay_letters: Callable[[Settings, list[Any]], int]
    drop_letters: Callable[[Settings, list[Any]], int]
