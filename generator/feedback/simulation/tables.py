"""A simulation's figures as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from generator.feedback.intervals import Estimate
from generator.feedback.simulation.arms import ARMS
from generator.feedback.simulation.summary import ArmFigures


def table(figures: Mapping[float, Sequence[ArmFigures]], exploring: Mapping[float, Estimate | None]) -> str:
    """The table of all strengths, the strongest first, and the legend of its arms."""
    head = (
        "| strength | arm | clicks per 1,000 showings | lift | of the oracle's gap | explored | active click models | pairs per "
        "retrain | promoted, refused |\n|---|---|---|---|---|---|---|---|---|\n"
    )
    rows = [_row(strength, one) for strength in sorted(figures, reverse=True) for one in figures[strength]]
    costs = [
        f"At strength {strength:g} exploring costs {_percent(cost, plain=True)} of the clicks."
        for strength, cost in sorted(exploring.items(), reverse=True)
        if cost is not None
    ]
    names = [name for name in ARMS if any(one.arm == name for rows in figures.values() for one in rows)]
    legend = [f"- {name}: {ARMS[name]}." for name in names]
    return head + "\n".join(rows) + "\n\n" + "\n".join([*costs, *([""] if costs else []), *legend]) + "\n"


def _row(strength: float, one: ArmFigures) -> str:
    learned = one.retrains
    cells = [
        f"{strength:g}",
        one.arm,
        f"{1000 * one.rate.value:.1f}",
        _percent(one.lift),
        _percent(one.gap_closed, plain=True),
        f"{one.explored:.1%}" if one.explored else "",
        f"{learned['click_models_active']:.0%}" if learned else "",
        f"{learned['pairs_per_retrain']:,.0f}" if learned else "",
        f"{learned['challengers_promoted']:.0%}, {learned['challengers_refused']:.0%}" if learned else "",
    ]
    return f"| {' | '.join(cells)} |"


def _percent(found: Estimate | None, *, plain: bool = False) -> str:
    if found is None:
        return ""
    sign = "" if plain else "+"
    if math.isnan(found.low):
        return f"{found.value:{sign}.1%}"
    return f"{found.value:{sign}.1%} [{found.low:{sign}.1%}, {found.high:{sign}.1%}]"
