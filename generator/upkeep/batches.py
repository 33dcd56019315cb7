"""Deleting by batches, or only counting what would go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.dialects.postgresql import insert

from generator.nightly.ledger import Ledger
from generator.storage.objects import Store
from schemas.settings import Settings
from schemas.tables import UpkeepProgress


@dataclass
class Upkeep:
    """What the kinds of retention share, and what they have removed (or would remove)."""

    settings: Settings
    store: Store
    ledger: Ledger
    dry_run: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    removed: Counter[str] = field(default_factory=Counter)
    """Rows and objects by kind."""
    runs_with_sets: list[str] = field(default_factory=list)
    """Runs whose sets stay in the bucket; known once old sets are gone."""

    def before(self, days: int) -> datetime:
        """The time so many days ago."""
        return self.now - timedelta(days=days)

    def delete_rows(self, kind: str, table: str, where: str, values: Mapping[str, Any]) -> None:
        """Delete a table's rows that fulfil a condition, `retention.batch_rows` in each transaction.

        `where` is SQL of ours, in which a row is x. Rows that are locked by others are left for the next time.
        """
        if self.dry_run:
            with self.ledger.reading() as session:
                count = session.scalar(text(f"SELECT count(*) FROM {table} x WHERE {where}"), dict(values))  # noqa: S608
                self.removed[kind] += count or 0
            return
        size = self.settings.retention.batch_rows
        found = f"SELECT x.ctid FROM {table} x WHERE {where} LIMIT :size FOR UPDATE SKIP LOCKED"  # noqa: S608
        statement = text(f"DELETE FROM {table} WHERE ctid = ANY(ARRAY({found})) RETURNING 1")  # noqa: S608
        while True:
            with self.ledger.writing() as session:
                gone = len(session.execute(statement, {**values, "size": size}).all())
            self.removed[kind] += gone
            if gone < size:
                return

    def get_progress(self, kind: str) -> UpkeepProgress:
        """How far earlier calls came with a kind; an empty one at first."""
        with self.ledger.reading() as session:
            return session.get(UpkeepProgress, kind) or UpkeepProgress(kind=kind)

    def save_progress(self, kind: str, *, until: datetime | None = None, place: str | None = None) -> None:
        """Go on from there at the next call; a dry run leaves no trace."""
        if self.dry_run:
            return
        values = {"until": until, "place": place, "updated_at": self.now}
        statement = insert(UpkeepProgress).values(kind=kind, **values)
        with self.ledger.writing() as session:
            session.execute(statement.on_conflict_do_update(index_elements=[UpkeepProgress.kind], set_=values))
