"""Events of topic `posters.published.v1`: which posters can be surfaced.

A poster is marked when the broker has acknowledged its event, so none is left out; a crash between the two sends an event
again, which readers recognise by its `poster_id`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from typing import Protocol

from generator.nightly import runs
from generator.nightly.ledger import Ledger
from generator.nightly.wording import counted
from schemas.connections import kafka_options
from schemas.errors import ServerUnavailable
from schemas.events import PUBLISHED, PosterPublished
from schemas.faultpoints import reach
from schemas.kafka_access import check_login
from schemas.runtime import trace
from schemas.settings_kafka import KafkaSettings
from schemas.tables import NightRun


class Announcer(Protocol):
    """Where events go."""

    def send(self, events: Iterable[PosterPublished]) -> None:
        """Send all and return when all are acknowledged.

        Raises:
            ServerUnavailable: the broker is away.
        """

    def close(self) -> None:
        """Release connections."""


def announce(ledger: Ledger, run: NightRun, announcer: Announcer) -> int:
    """Send an event for each poster of the run that is not announced yet; returns how many."""
    if run.manifest_key is None:
        return 0
    sent = 0
    while posters := ledger.read_unannounced(run.run_id):
        at = datetime.now(UTC)
        announcer.send(
            PosterPublished(
                poster_id=poster.poster_id,
                user_id=poster.user_id,
                item_id=poster.item_id,
                variant=poster.variant,
                image_key=poster.image_key,
                manifest_key=run.manifest_key,
                propensity=poster.propensity,
                model_version=poster.model_version,
                occurred_at=at,
            )
            for poster in posters
        )
        reach("announced")
        ledger.mark_announced([poster.poster_id for poster in posters], at)
        sent += len(posters)
    return sent


def announce_rest(ledger: Ledger, run: NightRun, open_announcer: Callable[[], Announcer]) -> int:
    """Announce what is left of a run that readers are led to; returns how many events.

    Raises:
        ServerUnavailable: the broker is away; the same call again sends the rest.
    """
    if run.manifest_key is None or run.figures.get("announced"):
        return 0
    announced = 0
    if ledger.read_unannounced(run.run_id, page=1):
        announcer = open_announcer()
        try:
            announced = announce(ledger, run, announcer)
        finally:
            announcer.close()
    runs.mark_run_announced(ledger, run.run_id, "all")
    return announced


def catch_up(
    ledger: Ledger,
    day: date,
    own_run_id: str,
    open_announcer: Callable[[], Announcer],
    echo: Callable[[str], None],
) -> None:
    """Announce what runs until `day` could not, because Kafka was away; it keeps no night waiting."""
    waiting = [run for run in runs.read_unannounced_runs(ledger, day) if run.run_id != own_run_id]
    try:
        announced = sum(announce_rest(ledger, run, open_announcer) for run in waiting)
    except ServerUnavailable as error:
        echo(f"announcements of earlier runs wait: {error}")
        return
    if announced:
        echo(f"{counted(announced, 'announcement')} of earlier runs caught up")


class KafkaAnnouncer:
    """Announcer over kafka-python; connects at the first event."""

    def __init__(self, settings: KafkaSettings) -> None:
        from kafka import KafkaProducer
        from kafka.errors import KafkaError

        self._settings = settings
        self._error = KafkaError
        check_login(settings)
        try:
            self._producer = KafkaProducer(
                **kafka_options(settings),
                delivery_timeout_ms=settings.request_timeout_ms + 1000,
                max_block_ms=settings.request_timeout_ms,
                linger_ms=20,
                acks="all",
            )
        except KafkaError as error:
            raise self._away(error) from error

    def send(self, events: Iterable[PosterPublished]) -> None:
        """Send all, then wait for all."""
        topic = self._settings.topic_prefix + PUBLISHED
        timeout = self._settings.request_timeout_ms / 1000
        try:
            headers = [(name, value.encode()) for name, value in trace.headers().items()]
            futures = [
                self._producer.send(
                    topic, key=event.user_id.encode(), value=event.model_dump_json().encode(), headers=headers
                )
                for event in events
            ]
            self._producer.flush(timeout=timeout)
            for future in futures:
                future.get(timeout=timeout)
        except self._error as error:
            raise self._away(error) from error

    def close(self) -> None:
        """Release connections."""
        self._producer.close(timeout=5)

    def _away(self, error: Exception) -> ServerUnavailable:
        return ServerUnavailable(
            f"Kafka {self._settings.bootstrap_servers}: {type(error).__name__} {error} (setting kafka.bootstrap_servers)"
        )
