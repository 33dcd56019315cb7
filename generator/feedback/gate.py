"""The gate: a pure function of metrics and thresholds that decides whether a challenger may serve.

A metric is an estimate with an interval over users, and its worse bound is what counts: a challenger passes for what is sure, not
for what was lucky. Every check names its figure, its interval and its limit in one line. A metric that is missing or not finite
refuses, and so does a threshold that is not set: nothing passes because it was not looked at. One metric may be left open: an
off-policy value that rests on too little cannot be judged, which neither passes nor refuses; the canary decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from generator.feedback.intervals import Estimate
from schemas.settings_retrain import RetrainSettings

OK, OPEN = "ok: ", "open: "


@dataclass(frozen=True)
class NotJudged:
    """A metric that was looked at and rests on too little; `reason` has the numbers."""

    reason: str


Metric = Estimate | NotJudged | None


@dataclass(frozen=True)
class Check:
    """One metric against one threshold.

    `better`: what the worse bound must be; "within" looks at both; "not surely below" refuses only what is surely worse.
    """

    metric: str
    setting: str
    better: Literal["more than", "at most", "within", "not surely below"]
    unit: str = ""


CHECKS = (
    Check("accuracy", "gate_min_accuracy", "more than"),
    # A challenger that equals the champion has margin 0 everywhere: it must be better, not the same.
    Check("margin", "gate_min_margin", "more than", " nats"),
    Check("kl", "gate_max_kl", "at most", " nats"),
    Check("chosen_fall", "gate_max_chosen_fall", "at most", " nats"),
    Check("off_policy_gain", "gate_min_off_policy_gain", "not surely below"),
    Check("cs_drop", "gate_max_cs_drop", "at most", " points"),
    Check("cis_drop", "gate_max_cis_drop", "at most", " points"),
    Check("length_change", "gate_max_length_change", "within"),
    Check("user_diversity_drop", "gate_max_user_diversity_drop", "at most"),
    Check("answer_diversity_drop", "gate_max_answer_diversity_drop", "at most"),
    Check("information_drop", "gate_max_information_drop", "at most"),
)
OFFLINE = tuple(
    check for check in CHECKS if check.metric in {"accuracy", "margin", "kl", "chosen_fall", "off_policy_gain"}
)
"""Checks that need no server: a challenger that fails these is never loaded."""


@dataclass(frozen=True)
class Verdict:
    """Passed only if no check refused and one passed.

    One line of reason per check, in the order of `CHECKS`.
    """

    passed: bool
    reasons: tuple[str, ...]

    @property
    def refusal(self) -> str:
        """The failed checks in one line."""
        return "; ".join(reason for reason in self.reasons if not reason.startswith((OK, OPEN)))


def decide(metrics: Mapping[str, Metric], settings: RetrainSettings, checks: tuple[Check, ...] = CHECKS) -> Verdict:
    """Compare each metric's interval with its threshold.

    Args:
        metrics: accuracy (share of held-out feedback pairs whose chosen poster the challenger prefers more than the champion
            does), margin, kl and chosen_fall (nats per answer; the latter of log π of chosen answers), off_policy_gain (clicks
            per showing), cs_drop and cis_drop (points of 100·cosine that the challenger lost), length_change (share of the
            champion's), and what it lost of three diversities (shares).
        settings: the thresholds; None means "not set" and refuses.
        checks: which of them.
    """
    reasons = tuple(_judge(check, metrics.get(check.metric), getattr(settings, check.setting)) for check in checks)
    refused = any(not reason.startswith((OK, OPEN)) for reason in reasons)
    return Verdict(not refused and any(reason.startswith(OK) for reason in reasons), reasons)


def _judge(check: Check, metric: Metric, limit: float | None) -> str:
    if metric is None:
        return f"{check.metric} is missing"
    if limit is None or not math.isfinite(limit):
        return f"retrain.{check.setting} is not set, so {check.metric} cannot be judged"
    if isinstance(metric, NotJudged):
        return f"{OPEN}{check.metric} cannot be judged, the canary decides: {metric.reason}"
    if not math.isfinite(metric.value) or math.isnan(metric.low) or math.isnan(metric.high):
        return f"{check.metric} is {metric.value}" + ("" if math.isfinite(metric.value) else ", no finite number")
    sentence = (
        f"{check.metric} {metric.value:.4g}{check.unit} [{metric.low:.4g}, {metric.high:.4g}] of {metric.users} users, "
        f"{_demand(check, limit)}"
    )
    return f"{OK}{sentence}" if _passes(check, metric, limit) else sentence


def _passes(check: Check, metric: Estimate, limit: float) -> bool:
    return {
        "more than": metric.low > limit,
        "at most": metric.high <= limit,
        "within": -limit <= metric.low and metric.high <= limit,
        "not surely below": metric.high >= limit,
    }[check.better]


def _demand(check: Check, limit: float) -> str:
    return {
        "more than": f"the lower bound must be more than {limit:g}",
        "at most": f"the upper bound must be at most {limit:g}",
        "within": f"both bounds must be within ±{limit:g}",
        "not surely below": f"the upper bound must not be below {limit:g}",
    }[check.better]
