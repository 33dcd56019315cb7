"""The funnel of a run, and the run beside the last nights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.report.charts import bars, number
from generator.nightly.sessions import sessions_of, total_of
from schemas.tables import NightRun

COMPARED_NIGHTS = 7


@dataclass(frozen=True)
class NightLine:
    """A night in the numbers that nights are compared by; None where it did not tell."""

    date: str
    drawn: float | None
    published: float | None
    refused: float | None
    unchanged: float | None
    failed: float | None
    pictures: float | None
    seconds: float | None
    rate: float | None
    """Tasks per second of drawing."""

    @classmethod
    def of(cls, date: str, figures: Mapping[str, Any]) -> NightLine:
        """A night from its figures; an empty one drew nothing, and what it published before stays."""
        if figures.get("empty"):
            return cls(date, 0, None, 0, None, 0, 0, 0, None)
        if "posters_drawn" not in figures:
            return cls(date, *(None,) * 8)
        tasks = figures["tasks"]
        total, seconds = total_of(sessions_of(figures))
        return cls(
            date,
            figures["posters_drawn"],
            figures["posters_drawn"] + figures["posters_carried"],
            tasks.get("refused", 0),
            figures["posters_carried"],
            tasks.get("failed", 0),
            total.pictures_drawn,
            round(seconds, 1),
            total.finished / seconds if seconds else None,
        )


COLUMNS = {
    "drawn": "posters drawn",
    "published": "posters published",
    "unchanged": "carried over unchanged",
    "refused": "tasks refused",
    "failed": "tasks failed",
    "pictures": "pictures drawn",
    "rate": "tasks per second",
    "seconds": "seconds of drawing",
}


@dataclass(frozen=True)
class Step:
    """A step of the funnel, with what is left out at it."""

    name: str
    count: int
    share: float
    """Share of the first step, in percent."""
    left_out: str


def read_last_nights(ledger: Ledger, run: NightRun) -> list[NightLine]:
    """The nights published before this run's date, the oldest first."""
    query = (
        select(NightRun.logical_date, NightRun.figures)
        .where(
            NightRun.status == "published",
            NightRun.scope == EVERYBODY,
            NightRun.logical_date < run.logical_date,
        )
        .order_by(NightRun.logical_date.desc())
        .limit(COMPARED_NIGHTS)
    )
    with ledger.reading() as session:
        return [NightLine.of(day.isoformat(), figures) for day, figures in reversed(session.execute(query).all())]


def charts_of(nights: Sequence[NightLine]) -> list[tuple[str, str, str]]:
    """Name, this night's value and chart of each number; this night is the last one."""
    days = [night.date[5:] for night in nights]
    found = []
    for name, title in COLUMNS.items():
        values = [getattr(night, name) for night in nights]
        found.append((title, "–" if values[-1] is None else number(values[-1]), bars(values, days, title)))
    return found


def table_of(nights: Sequence[NightLine]) -> list[tuple[str, list[str]]]:
    """A row of words for each night, the latest first."""
    return [
        (
            night.date,
            ["–" if value is None else number(value) for value in (getattr(night, name) for name in COLUMNS)],
        )
        for night in reversed(nights)
    ]


def funnel_of(figures: Mapping[str, Any]) -> list[Step]:
    """From what the plan looked at to the posters that readers get."""
    tasks, skips = figures["tasks"], figures["skips"]
    planned = sum(tasks.values())
    considered = planned + sum(skips.values())
    done = tasks.get("done", 0)
    open_tasks = tasks.get("pending", 0)
    lost = [
        f"{count:,} {word}"
        for word, count in (
            ("refused", tasks.get("refused", 0)),
            ("failed", tasks.get("failed", 0)),
            ("open", open_tasks),
        )
        if count
    ]
    steps = [
        ("users and items looked at", considered, ""),
        ("tasks planned", planned, f"{sum(skips.values()):,} left out by the plan" if skips else ""),
        ("tasks done", done, ", ".join(lost)),
    ]
    whole = max(1, considered)
    return [Step(name, count, 100 * count / whole, words) for name, count, words in steps]
