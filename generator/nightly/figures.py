"""The night in figures: what a run came to, and what a night to come will need."""

from __future__ import annotations

from typing import Any

from generator.nightly import runs
from generator.nightly.ledger import Ledger
from generator.nightly.runs import Rates
from generator.nightly.sessions import sessions_of, total_of
from generator.nightly.tally import Tally
from generator.nightly.wording import counted


def run_figures(ledger: Ledger, run_id: str, drawn: int, carried: int, withheld: int) -> dict[str, Any]:
    """The run's funnel, the sessions of all processes that worked on it, and their sum."""
    run = runs.get_by_id(ledger, run_id)
    stored = run.figures if run else {}
    figures: dict[str, Any] = {
        "tasks": ledger.count_tasks(run_id),
        "reasons": ledger.count_reasons(run_id),
        "skips": ledger.count_skips(run_id),
        "posters_drawn": drawn,
        "posters_carried": carried,
        "posters_withheld": withheld,
        "sessions": stored.get("sessions", []),
    }
    if "history" in stored:
        figures["history"] = stored["history"]
    if figures["sessions"]:
        figures["last_session"] = figures["sessions"][-1]
        figures["total"] = total_figures(stored)
    return figures


def total_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """The sum over a run's sessions, by the same names as one session has; empty where there is none."""
    sessions = sessions_of(figures)
    total, seconds = total_of(sessions)
    return total.figures(seconds) if sessions else {}


def history_words(figures: dict[str, Any]) -> str:
    """How many pictures of histories were clicked posters; empty where a run does not tell."""
    counts = figures.get("history")
    if not counts:
        return ""
    return f"{counted(counts['pictures'], 'picture')}, {counts['drawn']} of them posters that the users had clicked"


def session_words(figures: dict[str, Any], tally: Tally) -> str:
    """What this process drew, for the night's last line."""
    seconds = figures["last_session"]["seconds"] if tally.finished and "last_session" in figures else 0.0
    rate = tally.finished / max(seconds, 1e-9) if tally.finished else 0.0
    return (
        f"{counted(tally.finished, 'task')} in {seconds:.1f} s ({rate:.2f}/s), {tally.refused} refused, "
        f"{tally.failed} failed; {tally.words()}; {tally.uploaded_bytes / 2**20:.1f} MiB uploaded"
    )


def estimate(tasks: int, rates: Rates, price_per_hour: float | None = None) -> str:
    """What so many tasks will need if they go as those of the last nights did.

    Args:
        tasks: tasks to be drawn.
        rates: what the last nights needed.
        price_per_hour: price of an hour of drawing, in any currency; without one no cost is told.
    """
    if not tasks:
        return "estimate: nothing to draw"
    if not rates.tasks:
        return "estimate: none, there is no earlier night to estimate from"
    pictures = tasks * rates.pictures / rates.tasks
    seconds = tasks * rates.seconds / rates.tasks
    cost = f" for {cost_words(seconds, price_per_hour)}" if price_per_hour is not None else ""
    return (
        f"estimate: about {counted(round(pictures), 'picture')} in {duration_words(seconds)} of drawing{cost} "
        f"({rates.pictures / rates.tasks:.2f} pictures and {rates.seconds / rates.tasks:.2f} s per task in the last "
        f"{counted(rates.nights, 'night')})"
    )


def duration_words(seconds: float) -> str:
    """A duration for people: seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"


def cost_words(seconds: float, price_per_hour: float) -> str:
    """What drawing costs at a price, without a currency: the price has none either."""
    return f"{seconds / 3600 * price_per_hour:,.2f} (night.price_per_hour is {price_per_hour:g})"
