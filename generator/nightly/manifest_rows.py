"""What the night's manifest holds: tonight's posters and those of earlier nights that stay, with near-duplicates withheld."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.select import COPY_OF_OTHER_USER, ImageHash, OtherUsersArt, propensities
from schemas.settings import NightSettings
from schemas.tables import Poster

# The posters that are current for each (user, item): of the latest night, this one included, that drew them or found them
# unchanged. Users to be forgotten and deleted items are left out. The order is the manifest's.
_CURRENT = text("""
WITH confirmed AS (
    SELECT t.user_id, t.item_id, t.input_fingerprint, t.model_version, r.logical_date, true AS drawn
    FROM night_tasks t JOIN night_runs r USING (run_id)
    WHERE t.status = 'done' AND (r.run_id = :run_id OR (r.status = 'published' AND r.logical_date < :logical_date))
    UNION ALL
    SELECT s.user_id, s.item_id, s.input_fingerprint, s.model_version, r.logical_date, false
    FROM night_skips s JOIN night_runs r USING (run_id)
    WHERE s.input_fingerprint IS NOT NULL
      AND (r.run_id = :run_id OR (r.status = 'published' AND r.logical_date < :logical_date))
), latest AS (
    SELECT DISTINCT ON (user_id, item_id) * FROM confirmed ORDER BY user_id, item_id, logical_date DESC
)
SELECT p.*, p.run_id AS drawn_by_run, l.drawn AND l.logical_date = :logical_date AS tonight
FROM latest l
JOIN posters p USING (user_id, item_id, input_fingerprint, model_version)
JOIN items i USING (item_id)
WHERE i.deleted_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.user_id = l.user_id AND e.completed_at IS NULL)
ORDER BY p.user_id COLLATE "C", p.item_id COLLATE "C", p.variant
""")


@dataclass(frozen=True)
class ManifestRows:
    """Rows of the manifest, and how they came about."""

    rows: list[dict[str, Any]]
    drawn: int
    carried: int
    withheld: int


def select_manifest_rows(ledger: Ledger, run_id: str, logical_date: date, settings: NightSettings) -> ManifestRows:
    """Decide what is in the manifest, and record what is withheld. The same tasks give the same answer every time."""
    with ledger.writing() as session:
        rows = [
            dict(row) for row in session.execute(_CURRENT, {"run_id": run_id, "logical_date": logical_date}).mappings()
        ]
        carried = [row for row in rows if not row["tonight"] and row["withheld"] is None]
        tonight = [row for row in rows if row["tonight"]]
        _judge(session, carried, tonight, settings)
    kept = [row for row in rows if row["withheld"] is None]
    drawn = sum(row["tonight"] for row in kept)
    return ManifestRows(kept, drawn, len(kept) - drawn, len(tonight) - drawn)


def _judge(
    session: Session, carried: list[dict[str, Any]], tonight: list[dict[str, Any]], settings: NightSettings
) -> None:
    """Withhold tonight's posters that look like another user's of the same item; carried ones have precedence."""
    others = OtherUsersArt(settings.near_duplicate_distance)
    for row in carried:
        others.remember(row["item_id"], row["user_id"], ImageHash.parse(row["look"]))
    tasks: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in tonight:
        tasks[row["user_id"], row["item_id"]].append(row)
    for variants in tasks.values():
        for row in variants:
            granted = others.grant(row["item_id"], row["user_id"], ImageHash.parse(row["look"]))
            _change(session, row, "withheld", None if granted else COPY_OF_OTHER_USER)
        shown = [row for row in variants if row["withheld"] is None]
        for row, propensity in zip(shown, propensities([r["score"] for r in shown], settings.exploration), strict=True):
            if abs(row["propensity"] - propensity) > 1e-6:
                _change(session, row, "propensity", propensity)


def _change(session: Session, row: dict[str, Any], column: str, value: Any) -> None:
    if row[column] != value:
        row[column] = value
        session.execute(update(Poster).where(Poster.poster_id == row["poster_id"]).values({column: value}))
