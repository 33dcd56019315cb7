"""What the web asks of the consumers, as protocols: generator/cli.py, which may import both, gives it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
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


class ListedLetter(Protocol):
    """An open dead letter, as the index of dead letters knows it."""

    @property
    def place(self) -> str:
        """TOPIC/PARTITION/OFFSET."""

    @property
    def source(self) -> str:
        """TOPIC/PARTITION/OFFSET that the record was read at."""

    @property
    def reason(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def written_at(self) -> datetime: ...


class LettersPage(Protocol):
    """A page of open dead letters, oldest first."""

    @property
    def letters(self) -> Sequence[ListedLetter]: ...
    @property
    def count(self) -> int:
        """Number of those open on all pages, counted up to a bound."""

    @property
    def behind(self) -> str:
        """Why the list may lack some; empty when it does not."""


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
    list_letters: Callable[[Settings, str | None, str | None, str | None, int], LettersPage]
    """Those of a topic (all: None) with a reason (any: None), behind a place (the first: None), at most so many."""
    most_counted: int
    """Dead letters that a page counts; one more stands for any number above."""
    open_letters: Callable[[Settings, str | None, str | None, int | None, str | None], Sequence[Any]]
    """Open ones of a topic, with a reason, at most so many, at one place only: to set aside."""
    read_letters: Callable[[Settings, str | None, str | None, int | None, str | None], Sequence[Any]]
    """The same with their records, to send again."""
    find_letter: Callable[[Settings, str], DeadLetter]
    replay_letters: Callable[[Settings, Sequence[Any]], int]
    drop_letters: Callable[[Settings, Sequence[Any]], int]
