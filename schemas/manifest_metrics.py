"""A reader's figures for Prometheus: how old its set is, and what went wrong.

    from prometheus_client import REGISTRY
    from schemas.manifest_metrics import ReaderMetrics

    REGISTRY.register(ReaderMetrics(posters))

Costs nothing while posters are read: the reader's state is looked at when it is scraped. Needs prometheus-client, which a
recommender that has a registry has.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from schemas.manifest import Alarm, PosterManifest
from schemas.manifest_withdrawn import WithdrawnKind
from schemas.runtime.metrics import Metric

SET_DATE = Metric(
    "pigeon_reader_set_date_timestamp_seconds",
    "Logical date of the set that answers, as its midnight in UTC; 0 while nothing has been published.",
)
SET_POSTERS = Metric("pigeon_reader_set_posters", "Posters in the set that answers.")
WITHDRAWN = Metric("pigeon_reader_withdrawn", "Withdrawals that the reader knows.", ("kind",))
ALARMS = "pigeon_reader_alarms"
"""Name of the counter of what went wrong; Prometheus shows it with _total."""
ALARMS_HELP = "What went wrong when the reader looked for a newer set; answers come from the last whole one."

ALL = (SET_DATE, SET_POSTERS, WITHDRAWN)
"""The gauges, in the order above."""


class ReaderMetrics(Collector):
    """A Prometheus collector over a reader."""

    def __init__(self, reader: PosterManifest) -> None:
        self._reader = reader

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names only."""
        return (metric.family() for metric in ALL)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The reader's state now."""
        ref, withdrawn = self._reader.current, self._reader.withdrawn
        yield SET_DATE.family(((), _midnight(ref.logical_date) if ref else 0.0))
        yield SET_POSTERS.family(((), float(ref.posters if ref else 0)))
        kinds = get_args(WithdrawnKind)
        yield WITHDRAWN.family(*(((kind,), float(len(getattr(withdrawn, kind)))) for kind in kinds))
        alarms = CounterMetricFamily(ALARMS, ALARMS_HELP, labels=("alarm",))
        for alarm in get_args(Alarm):
            alarms.add_metric((alarm,), self._reader.alarms[alarm])
        yield alarms


def _midnight(day: str) -> float:
    return datetime.combine(date.fromisoformat(day), time(), tzinfo=UTC).timestamp()
