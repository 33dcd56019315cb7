"""Every Prometheus metric of the web, by name and unit."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from schemas.runtime.metrics import registry

REGISTRY = registry()

REQUEST_SECONDS = Histogram(
    "pigeon_web_request_seconds",
    "Time to answer, by kind of page and class of the status (2xx, 4xx, ...).",
    ["page", "status"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
POSTERS = Counter(
    "pigeon_web_posters",
    "Posters handed out, by rung of the ladder; missing: unknown items.",
    ["source"],
    registry=REGISTRY,
)
FEEDBACK = Counter(
    "pigeon_web_feedback_events",
    "Events of feedback: accepted (Kafka has them) or not.",
    ["outcome"],
    registry=REGISTRY,
)
WAITING = Gauge("pigeon_web_feedback_waiting", "Events of feedback that wait for Kafka.", registry=REGISTRY)
REFUSED = Counter(
    "pigeon_web_refused", "Requests refused before they reached a page, by status.", ["status"], registry=REGISTRY
)
AUDITED = Counter("pigeon_web_changes", "Changes asked for at the console.", ["action", "outcome"], registry=REGISTRY)
