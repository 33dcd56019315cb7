"""The night in figures: what a process drew, what the run came to, what a night to come needs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from generator.nightly import runs
from generator.nightly.drawing import Drawing
from generator.nightly.ledger import Ledger
from generator.nightly.runs import Rates
from generator.nightly.tally import Tally
from generator.nightly.wording import counted


def session_figures(drawing: Drawing, started_at: datetime, seconds: float) -> dict[str, Any]:
    """What one process drew of a run, until it was done, stopped or met an error."""
    return {"started_at": started_at.isoformat(), **drawing.tally.figures(seconds)}


def run_figures(ledger: Ledger, run_id: str, drawn: int, carried: int, withheld: int) -> dict[str, Any]:
    """The run's funnel, and the sessions of all processes that drew for it."""
    run = runs.get_by_id(ledger, run_id)
    sessions = run.figures.get("sessions", []) if run else []
    figures: dict[str, Any] = {
        "tasks": ledger.count_tasks(run_id),
        "reasons": ledger.count_reasons(run_id),
        "skips": ledger.count_skips(run_id),
        "posters_drawn": drawn,
        "posters_carried": carried,
        "posters_withheld": withheld,
        "sessions": sessions,
    }
    if sessions:
        figures["last_session"] = sessions[-1]
    return figures


def session_words(figures: dict[str, Any], tally: Tally) -> str:
    """What this process drew, for the night's last line."""
    seconds = figures["last_session"]["seconds"] if tally.finished and "last_session" in figures else 0.0
    rate = tally.finished / max(seconds, 1e-9) if tally.finished else 0.0
    return (
        f"{counted(tally.finished, 'task')} in {seconds:.1f} s ({rate:.2f}/s), {tally.refused} refused, "
        f"{tally.failed} failed; {tally.words()}; {tally.uploaded_bytes / 2**20:.1f} MiB uploaded"
    )


def estimate(tasks: int, rates: Rates) -> str:
    """What so many tasks will need if they go as those of the last nights did."""
    if not tasks:
        return "estimate: nothing to draw"
    if not rates.tasks:
        return "estimate: none, no night with figures has been published yet"
    pictures = tasks * rates.pictures / rates.tasks
    seconds = tasks * rates.seconds / rates.tasks
    duration = f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.1f} minutes"
    return (
        f"estimate: about {round(pictures):,} pictures in {duration} "
        f"({rates.pictures / rates.tasks:.2f} pictures and {rates.seconds / rates.tasks:.2f} s per task in the last "
        f"{counted(rates.nights, 'night')})"
    )
