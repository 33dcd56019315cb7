"""Every Prometheus metric of the product, as deploy/observability/METRICS.md lists them.

python -m tests.support.metrics    write deploy/observability/METRICS.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

from prometheus_client.metrics import MetricWrapperBase

from schemas.runtime.metrics import Metric

PAGE = Path(__file__).parents[2] / "deploy" / "observability" / "METRICS.md"
PARTS = {
    "consumers.metrics": "`pigeon consume`, on `consumer.metrics_port`",
    "generator.nightly.schedule_watch": "`pigeon schedule`, on `schedule.metrics_port`: its jobs",
    "generator.metrics.names": "`pigeon schedule`, on `schedule.metrics_port`: nights and the loop, read from Postgres",
    "generator.web.metrics": "`pigeon serve`, at /metrics (role `read`) and on `web.metrics_port`",
    "schemas.manifest_metrics": "`pigeon serve`, and a recommender's own registry, by `schemas.manifest_metrics.ReaderMetrics`",
}
"""Module -> who shows its metrics, and where."""
HEAD = """# Metrics

Written by `python -m tests.support.metrics` from the code; a test compares them.
Units are at the ends of the names: `_seconds`, `_bytes`, `_timestamp_seconds` (Unix time), else a number of things.
Each of these processes also shows its own `process_resident_memory_bytes`, `process_cpu_seconds_total` and `process_open_fds`.

Nights, retraining and erasures are processes that end.
What they came to is in Postgres and is read at each scrape, at most every ten seconds.
A night stores what it has drawn every 30 seconds.

Logs are JSON with `PIGEON_LOG_FORMAT=json`.
Lines of a night have `run_id` and `night` from when it begins to draw; lines of a command that the scheduler has started have `trace_id`.
The trace comes from the environment's `TRACEPARENT` (W3C Trace Context).
It goes on to Triton (a gRPC header) and into the events of `posters.published.v1` (a record header).
"""


@dataclass(frozen=True)
class Shown:
    """A metric as a part has it."""

    part: str
    name: str
    kind: str
    labels: tuple[str, ...]
    help: str

    @property
    def scraped(self) -> tuple[str, ...]:
        """Names of its series in Prometheus."""
        if self.kind == "counter":
            return (f"{self.name}_total",)
        if self.kind == "histogram":
            return tuple(f"{self.name}_{end}" for end in ("bucket", "sum", "count"))
        return (self.name,)


def all_metrics() -> list[Shown]:
    """All, by part, in the order of the code."""
    return [one for name in PARTS for one in _of(import_module(name))]


def series() -> set[str]:
    """Names that a query may use."""
    return {name for one in all_metrics() for name in one.scraped}


def _of(module: ModuleType) -> Iterator[Shown]:
    for value in vars(module).values():
        if isinstance(value, MetricWrapperBase):
            labels = tuple(value._labelnames)
            yield Shown(module.__name__, value._name, value._type, labels, value._documentation)
        elif isinstance(value, Metric):
            yield Shown(module.__name__, value.name, "gauge", value.labels, value.help)
    if hasattr(module, "ALARMS"):
        yield Shown(module.__name__, module.ALARMS, "counter", ("alarm",), module.ALARMS_HELP)


def page() -> str:
    """The page, from the code."""
    lines = [HEAD.rstrip()]
    for part, where in PARTS.items():
        lines += ["", f"## {where}", "", "| name | type | labels | what |", "|---|---|---|---|"]
        for one in all_metrics():
            if one.part == part:
                name = one.scraped[0] if one.kind == "counter" else one.name
                lines.append(f"| `{name}` | {one.kind} | {', '.join(one.labels)} | {one.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
