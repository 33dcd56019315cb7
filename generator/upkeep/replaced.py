"""Retention of what later nights replaced, of skips, and of runs that have nothing left.

Rows are found by the night that replaced them, not by their own age: a poster that is shown for a year is kept for a year. Each
run is looked through once, when it is as old as retention says and no set in the bucket was written before it: what earlier
runs had for its users' items is in no set any more. What is current stays, and whatever was replaced later. So the work grows
with the tasks of the nights that become old, not with the tables (deploy/decisions/0021-what-is-kept-and-for-how-long.md).

A poster that its user clicked stays as long as histories take the click in (`history.drawn_days`). What a run's look leaves for
that reason is looked at again when the clicks become too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Date, cast, func, select, text, update
from sqlalchemy.orm import Session

from generator.upkeep.batches import Upkeep
from schemas.faultpoints import reach
from schemas.tables import NightRun, NightTask

PAIRS_AT_ONCE = 500
"""Users' items of a run that one transaction looks at."""
CLICKED = "clicked"
"""Kind of `upkeep_progress`: how far clicks were looked through that had become too old."""

_NOT_CURRENT = """
  NOT EXISTS (
    SELECT FROM current_posters c WHERE c.user_id = x.user_id AND c.item_id = x.item_id
      AND c.input_fingerprint = x.input_fingerprint AND c.weights = x.weights
  )
"""
# `x` is a poster of one of the pairs. It may go when it is not what its pair is shown, and either a night that is itself old
# enough replaced it (since it was last made current again), or its run was never published and nothing newer can lead back to it.
_REPLACED = f"""
  {_NOT_CURRENT} AND NOT EXISTS (
    SELECT FROM poster_feedback f WHERE f.user_id = x.user_id AND f.item_id = x.item_id AND f.poster_id = x.poster_id
      AND f.action = 'click' AND f.occurred_at >= :clicked_since
  ) AND (
    EXISTS (
      SELECT FROM night_tasks s JOIN night_runs sr ON sr.run_id = s.run_id
      WHERE s.user_id = x.user_id AND s.item_id = x.item_id AND s.status = 'done' AND sr.status = 'published'
        AND sr.logical_date > r.logical_date AND sr.finished_at <= :until
        AND sr.finished_at >= coalesce(x.shown_again_at, '-infinity')
    )
    OR (x.run_id = :run_id AND r.status <> 'published' AND NOT EXISTS (
      SELECT FROM current_posters c JOIN night_runs cr ON cr.run_id = c.run_id
      WHERE c.user_id = x.user_id AND c.item_id = x.item_id AND coalesce(cr.finished_at, 'infinity') > :until
    ))
  )
"""  # noqa: S608 - our own words
_PAIRS = "unnest(CAST(:users AS text[]), CAST(:items AS text[])) AS pair (user_id, item_id)"
_OF_PAIR = "x.user_id = pair.user_id AND x.item_id = pair.item_id"
_POSTERS = text(f"""
DELETE FROM posters x USING {_PAIRS}, night_runs r
WHERE {_OF_PAIR} AND r.run_id = x.run_id AND {_REPLACED}
RETURNING x.picture_key
""")  # noqa: S608 - our own words
# Tasks without posters are of no use to the loop, nor does a night of that long ago go on with them.
_TASKS = text(f"""
DELETE FROM night_tasks x USING {_PAIRS}
WHERE {_OF_PAIR} AND CASE WHEN x.status <> 'done' THEN x.run_id = :run_id ELSE {_NOT_CURRENT} AND NOT EXISTS (
  SELECT FROM posters p WHERE p.user_id = x.user_id AND p.item_id = x.item_id
    AND p.input_fingerprint = x.input_fingerprint AND p.weights = x.weights
) END
RETURNING 1
""")  # noqa: S608
_ANSWERS = text(f"""
DELETE FROM answer_sets x USING {_PAIRS}
WHERE {_OF_PAIR} AND NOT EXISTS (
  SELECT FROM night_tasks t WHERE t.user_id = x.user_id AND t.item_id = x.item_id
    AND t.answers_fingerprint = x.answers_fingerprint AND t.weights = x.weights
) RETURNING 1
""")  # noqa: S608
# Posters that their runs' look left because they had been clicked.
_CLICKED_BEFORE = text("""
SELECT DISTINCT f.user_id, f.item_id
FROM poster_feedback f JOIN posters p ON p.poster_id = f.poster_id JOIN night_runs r ON r.run_id = p.run_id
WHERE f.action = 'click' AND f.occurred_at >= :since AND f.occurred_at < :until AND r.retired_at IS NOT NULL
""")
# Their files are looked at again when nobody has used them for a while (generator/upkeep/unused.py).
_LOOK_AGAIN = (
    text("UPDATE pictures SET last_used_at = now() WHERE picture_key = ANY(:keys)"),
    text("UPDATE compositions SET last_used_at = now() WHERE picture_key = ANY(:keys)"),
)


def retire_replaced(upkeep: Upkeep) -> None:
    """Delete what runs that are old enough had replaced, and what they left unfinished."""
    until = _replaced_until(upkeep)
    with upkeep.ledger.reading() as session:
        runs = session.scalars(
            select(NightRun.run_id)
            .where(
                NightRun.retired_at.is_(None),
                func.coalesce(NightRun.finished_at, NightRun.started_at) <= until,
            )
            .order_by(NightRun.logical_date, NightRun.run_id)
        ).all()
    if upkeep.dry_run:
        _retire(upkeep, _pages(upkeep, runs, until))
        return
    for run_id in runs:
        _retire(upkeep, _pages(upkeep, [run_id], until))
        with upkeep.ledger.writing() as session:
            session.execute(update(NightRun).where(NightRun.run_id == run_id).values(retired_at=func.now()))


def retire_clicked(upkeep: Upkeep) -> None:
    """Delete replaced posters whose clicks histories take in no longer, and that only waited for that."""
    since, until = upkeep.get_progress(CLICKED).until, _clicked_until(upkeep)
    if since is not None:
        with upkeep.ledger.reading() as session:
            pairs = session.execute(_CLICKED_BEFORE, {"since": since, "until": until}).all()
        pages = (pairs[start : start + PAIRS_AT_ONCE] for start in range(0, len(pairs), PAIRS_AT_ONCE))
        replaced_until = _replaced_until(upkeep)
        _retire(upkeep, (_values(upkeep, "", replaced_until, [(user, item) for user, item in page]) for page in pages))
    upkeep.save_progress(CLICKED, until=until)


def _replaced_until(upkeep: Upkeep) -> datetime:
    """Time until which a night must have replaced what goes.

    It is old enough, and older than the oldest set in the bucket.
    """
    settings = upkeep.settings
    days = max(settings.retention.replaced_days, settings.retrain.window_days)
    with upkeep.ledger.reading() as session:
        oldest = session.scalar(
            select(func.min(NightRun.finished_at)).where(NightRun.run_id.in_(upkeep.runs_with_sets))
        )
    return min(upkeep.before(days), oldest or upkeep.now)


def _clicked_until(upkeep: Upkeep) -> datetime:
    """Time until which clicks are too old for histories.

    It is a day more than the setting, for nights count from their date's beginning.
    """
    return upkeep.before(upkeep.settings.history.drawn_days + 1)


def _pages(upkeep: Upkeep, runs: Sequence[str], until: datetime) -> Iterator[dict[str, Any]]:
    """Values of the statements for pages of the runs' users' items."""
    for run_id in runs:
        after = ("", "")
        while pairs := _pairs(upkeep, run_id, after):
            after = pairs[-1]
            yield _values(upkeep, run_id, until, pairs)


def _values(upkeep: Upkeep, run_id: str, until: datetime, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the statements are bound to, for some users' items."""
    users, items = ([pair[place] for pair in pairs] for place in (0, 1))
    taken_in = upkeep.settings.history.drawn_share > 0
    clicked = {"clicked_since": _clicked_until(upkeep) if taken_in else datetime.max.replace(tzinfo=UTC)}
    return {"run_id": run_id, "until": until, "users": users, "items": items, **clicked}


def _retire(upkeep: Upkeep, pages: Iterable[dict[str, Any]]) -> None:
    """Delete what has been replaced of each page, in a transaction of its own."""
    if upkeep.dry_run:
        # All in one transaction that comes to nothing: what one page would delete, the next must not count again.
        with upkeep.ledger.writing() as session:
            for given in pages:
                _retire_pairs(upkeep, session, given)
            session.rollback()
        return
    for given in pages:
        with upkeep.ledger.writing() as session:
            _retire_pairs(upkeep, session, given)
        reach("rows retired")


def _pairs(upkeep: Upkeep, run_id: str, after: tuple[str, str]) -> list[tuple[str, str]]:
    """The next users' items of a run's tasks."""
    with upkeep.ledger.reading() as session:
        rows = session.execute(
            select(NightTask.user_id, NightTask.item_id)
            .where(
                NightTask.run_id == run_id,
                text("(user_id, item_id) > (:user, :item)").bindparams(user=after[0], item=after[1]),
            )
            .order_by(NightTask.user_id, NightTask.item_id)
            .limit(PAIRS_AT_ONCE)
        )
        return [(user, item) for user, item in rows]


def _retire_pairs(upkeep: Upkeep, session: Session, given: dict[str, Any]) -> None:
    pictures = session.scalars(_POSTERS, given).all()
    upkeep.removed["posters"] += len(pictures)
    upkeep.removed["tasks"] += len(session.execute(_TASKS, given).all())
    upkeep.removed["answers"] += len(session.execute(_ANSWERS, given).all())
    keys = sorted({key for key in pictures if key})
    for statement in _LOOK_AGAIN if keys else ():
        session.execute(statement, {"keys": keys})


def drop_skips(upkeep: Upkeep) -> None:
    """Delete the skips of old runs, run by run: the key begins with it."""
    cutoff = upkeep.before(upkeep.settings.retention.skips_days)
    with upkeep.ledger.reading() as session:
        old = select(NightRun.run_id).where(
            NightRun.logical_date < cast(cutoff, Date),
            func.coalesce(NightRun.finished_at, NightRun.started_at) < cutoff,
        )
        runs = session.scalars(old.order_by(NightRun.run_id)).all()
    for run_id in runs:
        upkeep.delete_rows("skips", "night_skips", "x.run_id = :run_id", {"run_id": run_id})


def drop_runs(upkeep: Upkeep) -> None:
    """Delete old runs that nothing is left of; a run with a current poster has a task."""
    days = max(upkeep.settings.retention.runs_days, upkeep.settings.retention.replaced_days)
    upkeep.delete_rows(
        "runs",
        "night_runs",
        "x.retired_at IS NOT NULL AND x.logical_date < CAST(:cutoff AS date) AND x.retired_at < :cutoff "
        "AND NOT EXISTS (SELECT FROM night_tasks t WHERE t.run_id = x.run_id) "
        "AND NOT EXISTS (SELECT FROM posters p WHERE p.run_id = x.run_id) "
        "AND NOT EXISTS (SELECT FROM night_skips s WHERE s.run_id = x.run_id)",
        {"cutoff": upkeep.before(days)},
    )
