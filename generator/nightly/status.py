"""A night in figures, for `pigeon night status`."""

from __future__ import annotations

from datetime import date
from typing import Any

from generator.nightly import click_models, runs
from generator.nightly.figures import history_words, total_figures
from generator.nightly.ledger import EVERYBODY, Ledger
from generator.nightly.wording import counted
from generator.storage.postgres import connect
from schemas.errors import InputError
from schemas.settings import Settings
from schemas.tables import NightRun


def status_of(settings: Settings, day: date | None, run_id: str | None = None) -> dict[str, Any]:
    """A run in figures, by its id, or the night of a day; the latest night when neither is given.

    Raises:
        InputError: there is no such run.
    """
    engine = connect(settings.database)
    try:
        ledger = Ledger(engine)
        run = find_run(ledger, day, run_id)
        return {
            "run_id": run.run_id,
            "logical_date": run.logical_date.isoformat(),
            "scope": run.scope,
            "status": run.status,
            "model_version": run.model_version,
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "tasks": ledger.count_tasks(run.run_id),
            "reasons": ledger.count_reasons(run.run_id),
            "skips": ledger.count_skips(run.run_id),
            "figures": run.figures,
            "clicks": click_models.read_status(ledger, run.settings),
            "manifest_key": run.manifest_key,
            "manifest_sha256": run.manifest_sha256,
            "report_key": run.report_key,
            "error": run.error,
            "other_runs": runs.read_others(ledger, run),
        }
    finally:
        engine.dispose()


def find_run(ledger: Ledger, day: date | None, run_id: str | None = None) -> NightRun:
    """A run by its id, or the night of a day; the latest night when neither is given.

    Raises:
        InputError: there is no such run.
    """
    of_day = ledger.get_run(day) if day else ledger.get_latest_run()
    run = runs.get_by_id(ledger, run_id) if run_id else of_day
    if run is None:
        missing = f"no run {run_id}" if run_id else f"no night of {day}"
        raise InputError(missing if run_id or day else "no night yet: `pigeon night run` starts one")
    return run


def words(found: dict[str, Any]) -> str:
    """The same as lines of text."""
    tasks = found["tasks"]
    lines = [
        f"{'night' if found['scope'] == EVERYBODY else 'trial'} of {found['logical_date']} ({found['run_id']}): "
        f"{found['status']}, model {found['model_version']}",
        f"  tasks    {sum(tasks.values())}: "
        + (", ".join(f"{n} {name}" for name, n in sorted(tasks.items())) or "none"),
    ]
    lines += [f"           {count} {reason}" for reason, count in found["reasons"].items()]
    lines.append(f"  skipped  {sum(found['skips'].values())}")
    lines += [f"           {count} {reason}" for reason, count in found["skips"].items()]
    figures = found["figures"]
    if "posters_drawn" in figures:
        lines.append(
            f"  posters  {figures['posters_drawn']} drawn, {figures['posters_carried']} carried over, "
            f"{figures['posters_withheld']} withheld"
        )
    if histories := history_words(figures):
        lines.append(f"  history  {histories}")
    session = total_figures(figures)
    if session:
        lines.append(
            f"  pictures {session['pictures_drawn']} drawn ({session['pictures_drawn_per_poster']:.2f} per poster kept), "
            f"{session['pictures_reused']} reused; {session['distinct_answers_per_task']:.2f} distinct answers per task"
        )
    lines += [
        f"  {'chosen by' if place == 0 else '':9}{line}"
        for place, line in enumerate(click_models.status_words(found["clicks"]))
    ]
    lines += [
        f"  triton   {one['address']}: {counted(one['requests'], 'request')} answered, {one['failures']} not"
        + (f"; not used: {one['problem']}" if one["problem"] else "")
        for one in session.get("servers", [])
    ]
    lines += [
        f"  {name:8} {found[key]}"
        for name, key in (("manifest", "manifest_key"), ("report", "report_key"))
        if found[key]
    ]
    if found["error"]:
        lines.append(f"  error    {found['error']}")
    lines += [f"  also     {run_id}: {status}" for run_id, status in found["other_runs"].items()]
    return "\n".join(lines)
