"""The posters in the night's manifest: tonight's, and those of earlier nights that stay current.

Near-duplicates of another user's poster are withheld.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

from sqlalchemy import text, update
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.rows import ManifestRow, PosterRow
from generator.nightly.select import COPY_OF_OTHER_USER, ImageHash, OtherUsersArt, propensities
from schemas.settings import NightSettings
from schemas.tables import Poster

# The posters that are current for each (user, item): of the latest night, this one included, that drew them or found them
# unchanged. Users to be erased and deleted items are left out. The order is the manifest's.
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
SELECT p.*, l.drawn AND l.logical_date = :logical_date AS tonight
FROM latest l
JOIN posters p USING (user_id, item_id, input_fingerprint, model_version)
JOIN items i USING (item_id)
WHERE i.deleted_at IS NULL
  AND NOT EXISTS (SELECT 1 FROM erasures e WHERE e.user_id = l.user_id AND e.completed_at IS NULL)
ORDER BY p.user_id COLLATE "C", p.item_id COLLATE "C", p.variant
""")


# A float4 column and a float of ours are the same propensity up to this.
SAME_PROPENSITY = 1e-6


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


def select_manifest_rows(ledger: Ledger, run_id: str, logical_date: date, settings: NightSettings) -> ManifestRows:
    """Decide what is in the manifest and record what is withheld; repeating it changes nothing."""
    with ledger.writing() as session:
        found = session.execute(_CURRENT, {"run_id": run_id, "logical_date": logical_date}).mappings()
        before = [ManifestRow(PosterRow.parse(dict(row)), row["tonight"], row["withheld"]) for row in found]
        after = withhold_copies(before, settings)
        _record(session, before, after)
    kept = tuple(row for row in after if row.withheld is None)
    return ManifestRows(kept, sum(row.tonight and row.withheld is not None for row in after))


def withhold_copies(rows: Sequence[ManifestRow], settings: NightSettings) -> list[ManifestRow]:
    """The rows, tonight's withheld where they look like another user's of the same item.

    Carried ones have precedence, then the order of the rows. The propensities of what is left of a task add up to 1 again.
    """
    others = OtherUsersArt(settings.near_duplicate_distance)
    for row in rows:
        if not row.tonight and row.withheld is None:
            others.add(row.poster.item_id, row.poster.user_id, ImageHash.parse(row.poster.look))
    decided = [row if not row.tonight else _admit(others, row) for row in rows]
    shown: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(decided):
        if row.tonight and row.withheld is None:
            shown[row.poster.user_id, row.poster.item_id].append(place)
    for places in shown.values():
        scores = [decided[place].poster.score for place in places]
        for place, propensity in zip(places, propensities(scores, settings.exploration), strict=True):
            poster = decided[place].poster
            if abs(poster.propensity - propensity) > SAME_PROPENSITY:
                decided[place] = replace(decided[place], poster=replace(poster, propensity=propensity))
    return decided


def _admit(others: OtherUsersArt, row: ManifestRow) -> ManifestRow:
    admitted = others.admit(row.poster.item_id, row.poster.user_id, ImageHash.parse(row.poster.look))
    return replace(row, withheld=None if admitted else COPY_OF_OTHER_USER)


def _record(session: Session, before: Sequence[ManifestRow], after: Sequence[ManifestRow]) -> None:
    changed = [
        {"poster_id": new.poster.poster_id, "withheld": new.withheld, "propensity": new.poster.propensity}
        for old, new in zip(before, after, strict=True)
        if new != old
    ]
    if changed:
        session.execute(update(Poster), changed)
