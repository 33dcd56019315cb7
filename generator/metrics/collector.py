"""The collector that reads all of these metrics when they are scraped, with short timeouts."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy.orm import Session

from generator.metrics import loop, names, nights, stores
from generator.nightly.ledger import Ledger
from generator.storage.postgres import connect, plain_errors
from schemas.errors import PigeonError
from schemas.runtime.metrics import Metric, Samples, registry
from schemas.settings import DatabaseSettings, Settings

log = structlog.get_logger("pigeon.metrics")

TIMEOUT_SECONDS = 5.0
"""Seconds for a connection, and for each statement; Prometheus itself gives up after ten."""
KEPT_SECONDS = 10.0
"""Seconds for which a reading is shown again instead of asking Postgres."""

Found = dict[Metric, list[tuple[tuple[str, ...], float]]]


class StoredMetrics(Collector):
    """A Prometheus collector.

    What Postgres cannot be asked is missing, and `pigeon_database_reachable` is 0.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine = connect(_impatient(settings.database))
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._found: Found = {}
        self._problem = ""

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names only, so that joining the registry asks nobody."""
        return (metric.family() for metric in names.ALL)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Every metric that has a value now."""
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_SECONDS:
                self._found = self._read()
                self._read_at = time.monotonic()
            found = self._found
        return (metric.family(*samples) for metric, samples in found.items())

    def close(self) -> None:
        """Release the connections; a later scrape would open new ones."""
        self._engine.dispose()

    def _read(self) -> Found:
        found: Found = {}
        _add(found, stores.disk(self._settings.state_dir))
        problem = ""
        try:
            with plain_errors(self._engine), Session(self._engine) as session:
                ledger, now = Ledger(self._engine), datetime.now(UTC)
                _add(found, nights.read(ledger, session))
                _add(found, loop.read(session, self._settings, now))
                _add(found, stores.read(session, now))
        except PigeonError as error:
            problem = str(error)
            if problem != self._problem:
                log.warning("stored metrics cannot be read", error=problem)
        self._problem = problem
        found[names.REACHABLE] = [((), float(not problem))]
        return found


def register(settings: Settings) -> StoredMetrics:
    """Have /metrics of this process show them."""
    metrics = StoredMetrics(settings)
    registry().register(metrics)
    return metrics


def unregister(metrics: StoredMetrics) -> None:
    """Take them out of /metrics, and release the connections."""
    registry().unregister(metrics)
    metrics.close()


def _add(found: Found, samples: Samples) -> None:
    for metric, labels, value in samples:
        found.setdefault(metric, []).append((labels, float(value)))


def _impatient(settings: DatabaseSettings) -> DatabaseSettings:
    limits = {"connect_timeout_seconds": TIMEOUT_SECONDS, "statement_timeout_seconds": TIMEOUT_SECONDS, "pool_size": 1}
    return settings.model_copy(update=limits)
