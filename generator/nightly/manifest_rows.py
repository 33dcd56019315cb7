"""The posters in the night's manifest: tonight's, and those of earlier nights that stay current."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sqlalchemy import text

from generator.nightly.ledger import Ledger
from generator.nightly.rows import ManifestRow, PosterRow

# The posters that are current for each (user, item): of the latest night, this one included, that drew them or found them
# unchanged. Users to be erased and deleted items are left out. The order is the manifest's.
_CURRENT = text("""
WITH confirmed AS (
    SELECT t.user_id, t.item_id, t.input_fingerprint, t.weights, r.logical_date, true AS drawn
    FROM night_tasks t JOIN night_runs r USING (run_id)
    WHERE t.status = 'done' AND (r.run_id = :run_id OR (r.status = 'published' AND r.logical_date < :logical_date))
    UNION ALL
    SELECT s.user_id, s.item_id, s.input_fingerprint, s.weights, r.logical_date, false
    FROM night_skips s JOIN night_runs r USING (run_id)
    WHERE s.input_fingerprint IS NOT NULL
      AND (r.run_id = :run_id OR (r.status = 'published' AND r.logical_date < :logical_date))
), latest AS (
    SELECT DISTINCT ON (user_id, item_id) * FROM confirmed ORDER BY user_id, item_id, logical_date DESC
)
SELECT p.*, l.drawn AND l.logical_date = :logical_date AS tonight
FROM latest l
JOIN posters p USING (user_id, item_id, input_fingerprint, weights)
JOIN items i USING (item_id)
WHERE i.deleted_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.user_id = l.user_id AND e.completed_at IS NULL)
ORDER BY p.user_id COLLATE "C", p.item_id COLLATE "C", p.variant
""")


@dataclass(frozen=True)
class ManifestRows:
    """Posters of the manifest in its order, and how many of tonight's are not in it."""

    rows: tuple[ManifestRow, ...]
    withheld: int

    @property
    def drawn(self) -> int:
        """Posters drawn tonight."""
        return sum(row.tonight for row in self.rows)

    @property
    def carried(self) -> int:
        """Posters of earlier nights."""
        return len(self.rows) - self.drawn


def select_manifest_rows(ledger: Ledger, run_id: str, logical_date: date) -> ManifestRows:
    """Decide what is in the manifest."""
    with ledger.reading() as session:
        found = session.execute(_CURRENT, {"run_id": run_id, "logical_date": logical_date}).mappings()
        rows = [ManifestRow(PosterRow.parse(dict(row)), row["tonight"], row["withheld"]) for row in found]
    kept = tuple(row for row in rows if row.withheld is None)
    return ManifestRows(kept, sum(row.tonight and row.withheld is not None for row in rows))
