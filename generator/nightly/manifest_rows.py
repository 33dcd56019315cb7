"""The rows of the night's manifest: every user's current posters, tonight's or an earlier night's.

`current_posters` names the task whose posters are shown. The rows are read in its order, page by page in one snapshot, so that
neither memory nor any one statement grows with the users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.select import propensities
from generator.nightly.taken_back import not_taken_back, with_stamp
from schemas.manifest import ITEM_SCHEMA, POSTER_SCHEMA
from schemas.tables import Item

PAGE_PAIRS = 10_000
"""Users' items read at once; some kilobytes each."""
PAGE_ITEMS = 50_000

Pair = tuple[str, str]

# Only a task of the same or a later date replaces what is current: a night of the past turns nothing back.
_DRAWN = text("""
INSERT INTO current_posters AS c (user_id, item_id, input_fingerprint, model_version, weights, run_id, logical_date)
SELECT t.user_id, t.item_id, t.input_fingerprint, t.model_version, t.weights, t.run_id, :logical_date
FROM night_tasks t
WHERE t.run_id = :run_id AND t.status = 'done'
  AND (t.user_id, t.item_id) > (:after_user, :after_item)
  AND (:is_last OR (t.user_id, t.item_id) <= (:until_user, :until_item))
ON CONFLICT (user_id, item_id) DO UPDATE SET
  input_fingerprint = excluded.input_fingerprint, model_version = excluded.model_version, weights = excluded.weights,
  run_id = excluded.run_id, logical_date = excluded.logical_date
WHERE c.logical_date <= excluded.logical_date
""")
# A plan that found a user's earlier posters to be right again (the input is what it was then) makes them current again, unless
# their night was rolled back.
_FOUND_AGAIN = text(
    with_stamp("""
UPDATE current_posters c
SET input_fingerprint = s.input_fingerprint, model_version = t.model_version, weights = s.weights, run_id = t.run_id,
    logical_date = :logical_date
FROM night_skips s CROSS JOIN LATERAL (
    SELECT t.model_version, t.run_id FROM night_tasks t JOIN night_runs r USING (run_id)
    WHERE t.user_id = s.user_id AND t.item_id = s.item_id AND t.input_fingerprint = s.input_fingerprint
      AND t.weights = s.weights AND t.status = 'done' AND r.status = 'published'
      AND NOT EXISTS (SELECT 1 FROM withdrawals w WHERE w.kind = 'night' AND w.subject = t.run_id AND w.lifted_at IS NULL)
    ORDER BY r.logical_date DESC LIMIT 1
) t
WHERE s.run_id = :run_id AND s.input_fingerprint IS NOT NULL
  AND c.user_id = s.user_id AND c.item_id = s.item_id AND c.logical_date <= :logical_date
  AND (c.input_fingerprint, c.weights) <> (s.input_fingerprint, s.weights)
""")
)
_PAGE_END = {
    "night_tasks": "SELECT user_id, item_id FROM night_tasks WHERE run_id = :run_id AND (user_id, item_id) > (:u, :i) "
    "ORDER BY user_id, item_id OFFSET :page - 1 LIMIT 1",
    "current_posters": "SELECT user_id, item_id FROM current_posters WHERE (user_id, item_id) > (:u, :i) "
    "ORDER BY user_id, item_id OFFSET :page - 1 LIMIT 1",
}
_SELECTED = {name: f"p.{name}" for name in POSTER_SCHEMA.names} | {
    "drawn_by_run": "c.run_id",
    # Most have none: an empty list is not worth parsing.
    "renditions": "CASE WHEN jsonb_array_length(p.renditions) = 0 THEN NULL ELSE p.renditions END",
    "withheld": "p.withheld",
}
_NAMES = list(_SELECTED)
# A task that was chosen for again has earlier variants under the same numbers: its own run's come first, then the newest.
# The page's bounds stand in both tables' conditions, else the join reads the other table from its start.
_ROWS = text(f"""
SELECT DISTINCT ON (c.user_id, c.item_id, p.variant)
  {", ".join(f"{column} AS {name}" for name, column in _SELECTED.items())}
FROM current_posters c
JOIN posters p ON p.user_id = c.user_id AND p.item_id = c.item_id AND p.input_fingerprint = c.input_fingerprint
  AND p.weights = c.weights
JOIN items i ON i.item_id = c.item_id
WHERE i.deleted_at IS NULL
  AND (c.user_id, c.item_id) > (:after_user, :after_item) AND (p.user_id, p.item_id) > (:after_user, :after_item)
  AND (:is_last OR ((c.user_id, c.item_id) <= (:until_user, :until_item)
                    AND (p.user_id, p.item_id) <= (:until_user, :until_item)))
  AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.user_id = c.user_id AND e.completed_at IS NULL)
  AND {not_taken_back("p", "c.run_id")}
ORDER BY c.user_id, c.item_id, p.variant, (p.run_id = c.run_id) DESC, p.created_at DESC
""")  # noqa: S608 - made of our own names
_SHARE = text("UPDATE posters SET propensity = :propensity WHERE poster_id = :poster_id")


@dataclass
class ManifestCounts:
    """How the rows of a manifest came about."""

    drawn: int = 0
    carried: int = 0
    withheld: int = 0
    """Tonight's that are in no manifest."""


def make_current(ledger: Ledger, run_id: str, logical_date: date) -> None:
    """Make a run's posters the current ones of their users and items, in one transaction.

    Repeating it changes nothing.
    """
    with ledger.writing() as session:
        for bounds in _ranges(session, "night_tasks", {"run_id": run_id}):
            session.execute(_DRAWN, {**bounds, "run_id": run_id, "logical_date": logical_date})
        session.execute(_FOUND_AGAIN, {"run_id": run_id, "logical_date": logical_date})


def count_pairs(session: Session) -> int:
    """Users' items that have current posters, shown or not."""
    return int(session.execute(text("SELECT count(*) FROM current_posters")).scalar_one())


def manifest_pages(
    session: Session, ledger: Ledger, run_id: str, exploration: float, counts: ManifestCounts
) -> Iterator[pa.Table]:
    """The manifest's rows as tables of POSTER_SCHEMA, in the session's snapshot; `counts` is added to.

    Where a variant of a task is no longer shown, the others' propensities are worked out, and stored, again.
    """
    for bounds in _ranges(session, "current_posters", {}):
        rows = session.execute(_ROWS, bounds).all()
        tonight = sum(row.drawn_by_run == run_id for row in rows)
        if any(row.withheld is not None for row in rows):
            rows = [row for row in rows if row.withheld is None]
        drawn = sum(row.drawn_by_run == run_id for row in rows)
        counts.drawn += drawn
        counts.withheld += tonight - drawn
        counts.carried += len(rows) - drawn
        columns: dict[str, list[Any]] = {}
        if rows:
            columns = {name: list(values) for name, values in zip(_NAMES, zip(*rows, strict=True), strict=True)}
            columns["renditions"] = [others or [] for others in columns["renditions"]]
        changed = _share_again(columns, exploration) if columns else []
        if changed:
            with ledger.writing() as writing:
                writing.execute(_SHARE, changed)
        yield pa.table({name: columns.get(name, []) for name in POSTER_SCHEMA.names}, schema=POSTER_SCHEMA)


def item_pages(session: Session) -> Iterator[pa.Table]:
    """The catalogue's own pictures, the last rung of the reader's ladder, as tables of ITEM_SCHEMA."""
    after = ""
    while True:
        rows = session.execute(
            select(Item.item_id, Item.image_uri)
            .where(Item.deleted_at.is_(None), Item.item_id > after)
            .order_by(Item.item_id)
            .limit(PAGE_ITEMS)
        ).all()
        if not rows:
            return
        yield pa.table({"item_id": [r.item_id for r in rows], "image_uri": [r.image_uri for r in rows]}, ITEM_SCHEMA)
        after = rows[-1].item_id


def _share_again(columns: dict[str, list[Any]], exploration: float) -> list[dict[str, str | float]]:
    """Correct the propensities of tasks where they do not sum to 1; the new ones by poster."""
    pairs = list(zip(columns["user_id"], columns["item_id"], strict=True))
    starts = [0, *(n for n in range(1, len(pairs)) if pairs[n] != pairs[n - 1])]
    shares = columns["propensity"]
    sums = np.add.reduceat(np.array(shares), starts)
    changed: list[dict[str, str | float]] = []
    for task in np.flatnonzero(abs(sums - 1) > 1e-5).tolist():
        place = slice(starts[task], starts[task + 1] if task + 1 < len(starts) else len(pairs))
        # As the night shares them: most to the variant that the policy prefers, the first of those shown.
        wanted = propensities([-variant for variant in columns["variant"][place]], exploration)
        for poster_id, share, before in zip(columns["poster_id"][place], wanted, shares[place], strict=True):
            if abs(share - before) > 1e-6:
                changed.append({"poster_id": poster_id, "propensity": share})
        shares[place] = wanted
    return changed


def _ranges(session: Session, table: str, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Bounds of consecutive pages of (user, item)."""
    after: Pair = ("", "")
    while True:
        given = {**values, "u": after[0], "i": after[1], "page": PAGE_PAIRS}
        end = session.execute(text(_PAGE_END[table]), given).one_or_none()
        until: Pair = (end.user_id, end.item_id) if end else ("", "")
        yield {
            "after_user": after[0],
            "after_item": after[1],
            "until_user": until[0],
            "until_item": until[1],
            "is_last": end is None,
        }
        if end is None:
            return
        after = until
