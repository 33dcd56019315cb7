"""Small SVG charts in the page's own colours, light or dark; no library that a night would load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 40, 18, 8, 34
GRID = 3
"""Steps between the lines of a chart."""
BINS = 24


@dataclass(frozen=True)
class Line:
    """A line of a chart: its points, and the class that colours it."""

    name: str
    colour: str
    points: tuple[tuple[float, float], ...]


def bars(values: Sequence[float | None], labels: Sequence[str], name: str) -> str:
    """One bar for each night, the last one marked; a night without a value has none."""
    high = max((value for value in values if value is not None), default=0) or 1
    step = 160 / max(1, len(values))
    parts = []
    for place, (value, label) in enumerate(zip(values, labels, strict=True)):
        if value is None:
            continue
        height = max(1.0, 44 * value / high)
        mark = "now" if place == len(values) - 1 else "then"
        parts.append(
            f'<rect class="{mark}" x="{place * step + 1:.1f}" y="{46 - height:.1f}" width="{step - 2:.1f}" '
            f'height="{height:.1f}" rx="1.5"><title>{escape(label)}: {number(value)}</title></rect>'
        )
    words = ", ".join(
        f"{label} {number(value)}" for value, label in zip(values, labels, strict=True) if value is not None
    )
    return _svg(160, 48, f"{name}: {words or 'no values'}", "".join(parts))


def lines(series: Sequence[Line], x_title: str, name: str) -> str:
    """Lines over a shared x, with an axis of round numbers."""
    points = [point for line in series for point in line.points]
    if not points:
        return ""
    x_low, x_high = _padded([x for x, _ in points])
    y_low, y_high = _padded([y for _, y in points])
    frame = _Frame(x_low, x_high, y_low, y_high)
    parts = [frame.axes(x_title, sorted({x for x, _ in points}))]
    for line in series:
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        dots = "".join(f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>' for x, y in line.points)
        parts.append(f'<g class="{line.colour}"><polyline points="{path}"/>{dots}</g>')
    return _svg(WIDTH, HEIGHT, name, "".join(parts))


def histogram(kept: Sequence[float], refused: Sequence[float], x_title: str, name: str) -> str:
    """How many values fall into each of equal ranges; refused ones stand on the kept ones."""
    both = [*kept, *refused]
    if not both:
        return ""
    low, high = _padded(both)
    step = (high - low) / BINS
    counts = [_counted(values, low, step) for values in (kept, refused)]
    highest = max(one + other for one, other in zip(*counts, strict=True))
    frame = _Frame(low, high, 0, GRID * -(-highest // GRID))  # whole numbers at the lines
    parts = [frame.axes(x_title, [low + (high - low) * place / 4 for place in range(5)])]
    for place, (one, other) in enumerate(zip(*counts, strict=True)):
        parts += [
            frame.bar(low + place * step, step, 0, one, "a"),
            frame.bar(low + place * step, step, one, other, "b"),
        ]
    return _svg(WIDTH, HEIGHT, name, "".join(parts))


def number(value: float) -> str:
    """A number for people: thousands with commas, small ones with two figures."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{round(value):,}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class _Frame:
    """The plane of a chart in the units of its values."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y_low) / (self.y_high - self.y_low)

    def axes(self, x_title: str, ticks: Sequence[float]) -> str:
        parts = []
        for place in range(GRID + 1):
            value = self.y_low + (self.y_high - self.y_low) * place / GRID
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
        foot = HEIGHT - BOTTOM + 15
        parts += [
            f'<text x="{self.x(value):.1f}" y="{foot}" text-anchor="middle">{number(value)}</text>' for value in ticks
        ]
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_title)}</text>')
        return "".join(parts)

    def bar(self, x: float, width: float, foot: float, height: float, colour: str) -> str:
        if not height:
            return ""
        left, right = self.x(x), self.x(x + width)
        top, bottom = self.y(foot + height), self.y(foot)
        return (
            f'<rect class="{colour}" x="{left + 0.5:.1f}" y="{top:.1f}" width="{right - left - 1:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )


def _counted(values: Sequence[float], low: float, step: float) -> list[int]:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int((value - low) / step))] += 1
    return counts


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.04 or max(1e-6, abs(high) * 0.01)
    return low - room, high + room


def _svg(width: int, height: int, name: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">{inside}</svg>'
