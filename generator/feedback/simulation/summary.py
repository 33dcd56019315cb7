"""Figures of a simulation, with intervals over seeds.

Lifts are of the true click probability in the last nights over the frozen model with the same history rule, paired by seed; a
figure of fewer than two seeds has no interval. Intervals are bootstraps over seeds (generator/feedback/intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from generator.feedback.intervals import Estimate, UserBootstrap
from generator.feedback.simulation.arms import ARMS, BASELINE, ArmResult
from generator.feedback.simulation.world import Floats

LAST_NIGHTS = 3
CONFIDENCE = 0.95
Results = Mapping[str, Mapping[int, ArmResult]]
"""By arm and seed, of one strength."""


@dataclass(frozen=True)
class ArmFigures:
    """An arm at one strength, over all of its seeds."""

    arm: str
    seeds: int
    rate: Estimate
    """True click probability per showing, last nights."""
    lift: Estimate | None
    """Over the baseline; None for the baseline and where it was not run."""
    gap_closed: Estimate | None
    """Share of the oracle's lift."""
    regret: float | None
    """Clicks per 1,000 showings that the oracle has more, last nights."""
    explored: float
    """Share of all showings."""
    exploring_cost: float
    """Share of the expected clicks that first choices would have had more."""
    rates: tuple[float, ...]
    """By night."""
    retrains: dict[str, float]
    """What became of them, per retrain; see `_retrains`."""

    def as_json(self) -> dict[str, Any]:
        """As kept beside the plot."""
        return asdict(self)


def summarise(results: Results) -> list[ArmFigures]:
    """The figures of all arms of one strength."""
    return [_figures(name, results) for name in ARMS if results.get(name)]


def cost_of_exploring(results: Results) -> Estimate | None:
    """Share of its clicks that the loop lacks beside the one that never explores.

    Over all nights; None where one of both was not run.
    """
    both = sorted(results.get("loop", {}).keys() & results.get("loop_unexplored", {}).keys())
    if not both:
        return None
    with_it, without = (
        np.array([sum(results[arm][seed].rates) for seed in both]) for arm in ("loop", "loop_unexplored")
    )
    return _over_seeds(both, without - with_it, without)


def _figures(name: str, results: Results) -> ArmFigures:
    mine = results[name]
    seeds = sorted(mine)
    last = _last(mine, seeds)
    nights = [mine[seed] for seed in seeds]
    clicks = sum(sum(one.rates) * one.showings for one in nights)
    return ArmFigures(
        arm=name,
        seeds=len(seeds),
        rate=_over_seeds(seeds, last, np.ones(len(seeds))),
        lift=_lift(name, results),
        gap_closed=_gap(name, results),
        regret=_regret(name, results),
        explored=float(np.mean([sum(one.explored) / (len(one.rates) * one.showings) for one in nights])),
        exploring_cost=float(sum(sum(one.explored_loss) for one in nights) / clicks),
        rates=tuple(np.mean([one.rates for one in nights], axis=0).tolist()),
        retrains=_retrains(nights),
    )


def _lift(name: str, results: Results) -> Estimate | None:
    seeds = sorted(results[name].keys() & results.get(BASELINE, {}).keys())
    if name == BASELINE or not seeds:
        return None
    base = _last(results[BASELINE], seeds)
    return _over_seeds(seeds, _last(results[name], seeds) / base - 1, np.ones(len(seeds)))


def _gap(name: str, results: Results) -> Estimate | None:
    both = results.get(BASELINE, {}).keys() & results.get("oracle", {}).keys()
    seeds = sorted(results[name].keys() & both)
    if name in {BASELINE, "oracle"} or not seeds:
        return None
    base = _last(results[BASELINE], seeds)
    return _over_seeds(seeds, _last(results[name], seeds) / base - 1, _last(results["oracle"], seeds) / base - 1)


def _regret(name: str, results: Results) -> float | None:
    seeds = sorted(results[name].keys() & results.get("oracle", {}).keys())
    return float(1000 * (_last(results["oracle"], seeds) - _last(results[name], seeds)).mean()) if seeds else None


def _last(results: Mapping[int, ArmResult], seeds: Sequence[int]) -> Floats:
    found: Floats = np.array([np.mean(results[seed].rates[-LAST_NIGHTS:]) for seed in seeds])
    return found


def _over_seeds(seeds: Sequence[int], above: Floats, below: Floats) -> Estimate:
    """Mean of `above` over the mean of `below`; NaN bounds for fewer than two seeds."""
    found = UserBootstrap([f"{seed:09}" for seed in seeds], CONFIDENCE).ratio(above, below)
    return found if len(seeds) > 1 else Estimate(found.value, math.nan, math.nan, len(seeds))


def _retrains(nights: Sequence[ArmResult]) -> dict[str, float]:
    """What retrains came to.

    Shares of active click models and of promoted and refused challengers; pairs; showings that were used.
    """
    records = [record for one in nights for record in one.retrains]
    if not records:
        return {}
    shown = sum(len(one.rates) * one.showings for one in nights)
    return {
        "retrains": len(records),
        "click_models_active": _share(records, "click_model", "active"),
        "challengers_promoted": _share(records, "challenger", "promoted"),
        "challengers_refused": _share(records, "challenger", "refused"),
        "pairs_per_retrain": float(np.mean([record.get("pairs", 0) for record in records])),
        "pairs_per_1000_showings": 1000 * sum(record.get("pairs", 0) for record in records) / shown,
        "showings_used_per_1000": 1000 * sum(one.retrains[-1]["showings"] for one in nights if one.retrains) / shown,
    }


def _share(records: Sequence[Mapping[str, Any]], name: str, word: str) -> float:
    return float(np.mean([record.get(name) == word for record in records]))
