"""The gate: a pure function of metrics and thresholds that decides whether a challenger may serve.

Every check names its figure and its limit in one line. A metric that is missing or not finite refuses, and so does a threshold
that is not set: nothing passes because it was not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.settings import RetrainSettings


@dataclass(frozen=True)
class Check:
    """One metric against one threshold."""

    metric: str
    setting: str
    better: Literal["at least", "more than", "at most"]
    unit: str


CHECKS = (
    Check("accuracy", "gate_min_accuracy", "at least", ""),
    # A challenger that equals the champion has margin 0 everywhere: it must be better, not the same.
    Check("margin", "gate_min_margin", "more than", " nats"),
    Check("kl", "gate_max_kl", "at most", " nats"),
    Check("cs_drop", "gate_max_cs_drop", "at most", " points"),
    Check("cis_drop", "gate_max_cis_drop", "at most", " points"),
)


@dataclass(frozen=True)
class Verdict:
    """Passed only if every check did; one line of reason per check, in the order of `CHECKS`."""

    passed: bool
    reasons: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """The failed checks in one line."""
        return "; ".join(reason for reason in self.reasons if not reason.startswith("ok: "))


def decide(
    metrics: Mapping[str, float | None], settings: RetrainSettings, checks: tuple[Check, ...] = CHECKS
) -> Verdict:
    """Compare each metric with its threshold.

    Args:
        metrics: accuracy (share of held-out feedback pairs whose chosen poster the challenger prefers more than the champion
            does), margin and kl (nats per answer), cs_drop and cis_drop (points of 100·cosine that the challenger lost).
        settings: the thresholds; None means "not set" and refuses.
        checks: which of them; the first three need no server.
    """
    reasons = []
    for check in checks:
        value, limit = metrics.get(check.metric), getattr(settings, check.setting)
        if value is None or not math.isfinite(value):
            reasons.append(f"{check.metric} is missing" if value is None else f"{check.metric} is {value}")
            continue
        if limit is None or not math.isfinite(limit):
            reasons.append(f"retrain.{check.setting} is not set, so {check.metric} {value:.4g} cannot be judged")
            continue
        passed = {"at least": value >= limit, "more than": value > limit, "at most": value <= limit}[check.better]
        sentence = f"{check.metric} {value:.4g}{check.unit}, must be {check.better} {limit:g}"
        reasons.append(f"ok: {sentence}" if passed else sentence)
    return Verdict(bool(reasons) and all(reason.startswith("ok: ") for reason in reasons), tuple(reasons))
