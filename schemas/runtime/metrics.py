"""The one Prometheus registry of a process, with the process's own figures in it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


@cache
def registry() -> CollectorRegistry:
    """Registry that every part's metrics join and /metrics shows; the same one at every call."""
    from prometheus_client import CollectorRegistry, ProcessCollector

    made = CollectorRegistry()
    ProcessCollector(registry=made)  # process_resident_memory_bytes, process_cpu_seconds_total, ...
    return made
