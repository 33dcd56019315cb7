"""A simulation's plot as SVG: lift over the baseline by night and arm, a panel per strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from generator.feedback.simulation.arms import BASELINE
from generator.feedback.simulation.summary import ArmFigures

COLOURS = {
    "official": "#8c8c8c",
    "frozen": "#b07d2b",
    "loop": "#1667b7",
    "loop_unexplored": "#2f9e63",
    "oracle": "#8a3ffc",
}
PANEL, GAP, TOP, HEIGHT, LEFT, FOOT = 250, 54, 34, 230, 52, 92
LINES = 4
"""Steps between the lines of a panel's grid."""


def plot(figures: Mapping[float, Sequence[ArmFigures]], title: str) -> str:
    """The plot as SVG text; arms that the baseline's nights can be compared with."""
    panels = {strength: _lifts(arms) for strength, arms in sorted(figures.items(), reverse=True)}
    panels = {strength: lifts for strength, lifts in panels.items() if lifts}
    width = LEFT + len(panels) * (PANEL + GAP)
    parts = [f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>']
    for place, (strength, lifts) in enumerate(panels.items()):
        parts.append(_panel(LEFT + place * (PANEL + GAP), f"strength {strength:g}", lifts))
    parts.append(_legend({name for lifts in panels.values() for name in lifts}))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + FOOT}" role="img" '
        f'aria-label="{escape(_words(panels, title))}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _lifts(arms: Sequence[ArmFigures]) -> dict[str, list[float]]:
    """Lift by night, by arm."""
    base = next((one.rates for one in arms if one.arm == BASELINE), None)
    if base is None:
        return {}
    return {
        one.arm: [rate / own - 1 for rate, own in zip(one.rates, base, strict=True)]
        for one in arms
        if one.arm in COLOURS
    }


def _panel(left: float, name: str, lifts: Mapping[str, Sequence[float]]) -> str:
    values = [0.0, *(value for row in lifts.values() for value in row)]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.01
    low, high = low - room, high + room
    nights = max((len(row) for row in lifts.values()), default=1)

    def across(night: int) -> float:
        return left + PANEL * (night + 0.5) / nights

    def down(value: float) -> float:
        return TOP + HEIGHT * (high - value) / (high - low)

    parts = [f'<text x="{left}" y="{TOP - 4}">{escape(name)}</text>']
    for number in range(LINES + 1):
        value = low + (high - low) * number / LINES
        parts.append(_rule(left, down(value), "#e3e3e3"))
        parts.append(
            f'<text x="{left - 5}" y="{down(value) + 4:.1f}" text-anchor="end" fill="#555">{value:+.0%}</text>'
        )
    parts.append(_rule(left, down(0), "#222"))
    for arm, row in lifts.items():
        points = " ".join(f"{across(night):.1f},{down(value):.1f}" for night, value in enumerate(row))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"/>')
    foot = TOP + HEIGHT + 16
    parts += [
        f'<text x="{across(night):.1f}" y="{foot}" text-anchor="middle" fill="#555">{night + 1}</text>'
        for night in range(0, nights, max(1, nights // 5))
    ]
    parts.append(f'<text x="{left + PANEL / 2}" y="{foot + 15}" text-anchor="middle" fill="#555">night</text>')
    return "".join(parts)


def _rule(left: float, y: float, colour: str) -> str:
    return f'<line x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}"/>'


def _legend(names: set[str]) -> str:
    parts, x, y = [], LEFT, TOP + HEIGHT + 58
    for name in [arm for arm in COLOURS if arm in names]:
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{COLOURS[name]}" stroke-width="3"/>'
        )
        parts.append(f'<text x="{x + 23}" y="{y}">{escape(name)}</text>')
        x += 40 + 8 * len(name)
    parts.append(f'<text x="{LEFT}" y="{y + 22}" fill="#555">lift over {BASELINE}, by night, mean over seeds</text>')
    return "".join(parts)


def _words(panels: Mapping[float, Mapping[str, Sequence[float]]], title: str) -> str:
    """The plot's end in words, for who cannot see it."""
    ends = [
        f"strength {strength:g}: " + ", ".join(f"{arm} {row[-1]:+.0%}" for arm, row in lifts.items())
        for strength, lifts in panels.items()
    ]
    return f"{title}. Last night: {'; '.join(ends)}"
