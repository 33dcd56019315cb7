"""Events handed to Kafka one by one, each with a future that ends when all replicas have it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from consumers.kafka import clients
from consumers.outage import first_line
from schemas.errors import PigeonError, ServerUnavailable
from schemas.events import TOPIC_OF, Event, key_of
from schemas.settings_kafka import KafkaSettings

LINGER_MS = 5
CLOSE_SECONDS = 10.0


class AcknowledgedSender:
    """Hands events over from any thread and never makes the caller wait.

    Its own thread connects at the first event, and again after a failure: a broker that is away, or that takes no more, ends
    futures with ServerUnavailable.
    """

    def __init__(self, settings: KafkaSettings, in_flight: int) -> None:
        """`in_flight`: events that may wait for Kafka at a time."""
        # What waits for the topics' partitions blocks the others behind it: for no longer than a caller would wait.
        self._settings = settings.model_copy(update={"request_timeout_ms": min(5_000, settings.request_timeout_ms)})
        self._room = threading.BoundedSemaphore(in_flight)
        self._in_flight = in_flight
        self._thread = ThreadPoolExecutor(1, "pigeon-feedback")
        self._producer: Any = None

    def send(self, event: Event) -> Future[None]:
        """Hand one event over to its topic.

        Raises:
            ServerUnavailable: `in_flight` events wait already; this one was not taken.
        """
        if not self._room.acquire(blocking=False):
            raise ServerUnavailable(f"{self._in_flight} events wait for Kafka already (web.feedback_in_flight)")
        done: Future[None] = Future()
        done.add_done_callback(lambda _: self._room.release())
        topic = self._settings.topic_prefix + TOPIC_OF[type(event)]
        self._thread.submit(self._hand_over, done, topic, key_of(event), event.model_dump_json().encode())
        return done

    def close(self) -> None:
        """Wait for what was handed over, for a time."""
        self._thread.shutdown(wait=True)
        if self._producer is not None:
            self._producer.close(timeout=CLOSE_SECONDS)

    def _hand_over(self, done: Future[None], topic: str, key: bytes, value: bytes) -> None:
        try:
            if self._producer is None:
                self._producer = clients.producer(self._settings, linger_ms=LINGER_MS)
            sent = self._producer.send(topic, key=key, value=value)
        except PigeonError as error:
            done.set_exception(error)
        except clients.KafkaError as error:
            done.set_exception(_outage(topic, error))
        else:
            sent.add_callback(lambda _: done.set_result(None))
            sent.add_errback(_fail(done, topic))


def _fail(done: Future[None], topic: str) -> Callable[[Exception], None]:
    return lambda error: done.set_exception(_outage(topic, error))


def _outage(topic: str, error: Exception) -> ServerUnavailable:
    return ServerUnavailable(f"Kafka, topic {topic}: {type(error).__name__}: {first_line(error)}")
