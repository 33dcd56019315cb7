"""The one Prometheus registry of a process, and gauges that are read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import GaugeMetricFamily


@dataclass(frozen=True)
class Metric:
    """A gauge whose value is looked up when it is scraped, instead of being kept by the process."""

    name: str
    """With the unit at its end."""
    help: str
    labels: tuple[str, ...] = ()

    def family(self, *samples: tuple[tuple[str, ...], float]) -> GaugeMetricFamily:
        """The gauge with its samples: values of the labels, and the value."""
        from prometheus_client.core import GaugeMetricFamily

        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family


Samples = Iterator[tuple[Metric, tuple[str, ...], float]]
"""Values as they are read, in any order."""


@cache
def registry() -> CollectorRegistry:
    """Registry that every part's metrics join and /metrics shows; the same one at every call."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    made = CollectorRegistry()
    ProcessCollector(registry=made)  # process_resident_memory_bytes, process_cpu_seconds_total, ...
    return made
