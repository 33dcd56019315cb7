"""Set-based SQL from the staged rows to the tables, idempotent, independent of the order of arrival.

But for a tombstone of an item that was never seen, which leaves nothing: its key is rather spelt wrongly.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from consumers import partitions
from consumers.write import histories
from schemas.events import CATALOG, ERASURE, FEEDBACK, INTERACTIONS, OBJECTION, RECOMMENDATIONS

ERASURE_LOCK = 7_046_003
"""Key of the lock that a transaction with erasures takes alone and others share: no event slips in beside it."""

_UNKNOWN_TOMBSTONES = """
DELETE FROM stage_items s WHERE s.deleted AND NOT EXISTS (SELECT FROM items i WHERE i.item_id = s.item_id)
  AND NOT EXISTS (SELECT FROM stage_items other WHERE other.item_id = s.item_id AND NOT other.deleted)
"""

_ITEMS = """
INSERT INTO items AS i (item_id, title, description, genres, image_uri, attributes, occurred_at, deleted_at)
SELECT DISTINCT ON (item_id) item_id, title, description, ARRAY(SELECT jsonb_array_elements_text(genres)), image_uri,
       attributes, occurred_at, CASE WHEN deleted THEN occurred_at END
FROM stage_items ORDER BY item_id, occurred_at DESC, seq DESC
ON CONFLICT (item_id) DO UPDATE
SET title = CASE WHEN EXCLUDED.deleted_at IS NULL THEN EXCLUDED.title ELSE i.title END,
    description = CASE WHEN EXCLUDED.deleted_at IS NULL THEN EXCLUDED.description ELSE i.description END,
    genres = CASE WHEN EXCLUDED.deleted_at IS NULL THEN EXCLUDED.genres ELSE i.genres END,
    image_uri = CASE WHEN EXCLUDED.deleted_at IS NULL THEN EXCLUDED.image_uri ELSE i.image_uri END,
    attributes = CASE WHEN EXCLUDED.deleted_at IS NULL THEN EXCLUDED.attributes ELSE i.attributes END,
    occurred_at = EXCLUDED.occurred_at, deleted_at = EXCLUDED.deleted_at, updated_at = now()
WHERE i.occurred_at IS NULL OR EXCLUDED.occurred_at >= i.occurred_at
"""

# An event that comes again is the same bytes, so the primary key (event id and time) knows it. The key is also looked for
# among the week around it, for producers that stamp a retry again, and a clamped event, stored under the time it came in, in all
# that is older. The lateral join keeps this to index probes of one or two months: an anti join would read the whole log.
_INTERACTIONS = """
WITH written AS (
  INSERT INTO interactions (event_id, occurred_at, claimed_at, user_id, item_id, kind, context)
  SELECT DISTINCT ON (s.event_id)
    s.event_id, s.occurred_at, s.claimed_at, s.user_id, s.item_id, s.kind, s.context
  FROM stage_interactions s LEFT JOIN LATERAL (
    SELECT true AS found FROM interactions i WHERE i.event_id = s.event_id AND i.occurred_at BETWEEN
      CASE WHEN s.claimed_at IS NULL THEN s.occurred_at - interval '7 days' ELSE '-infinity' END
      AND s.occurred_at + interval '7 days'
    LIMIT 1
  ) AS stored ON true
  WHERE stored.found IS NULL
  ORDER BY s.event_id, s.seq
  ON CONFLICT DO NOTHING
  RETURNING event_id, user_id, item_id, kind, occurred_at
)
INSERT INTO fresh_interactions (event_id, user_id, item_id, kind, occurred_at)
SELECT event_id, user_id, item_id, kind, occurred_at FROM written
"""

_RECOMMENDATIONS = """
INSERT INTO recommendations AS r (user_id, item_ids, occurred_at)
SELECT DISTINCT ON (user_id) user_id, ARRAY(SELECT jsonb_array_elements_text(item_ids)), occurred_at
FROM stage_recommendations ORDER BY user_id, occurred_at DESC, seq DESC
ON CONFLICT (user_id) DO UPDATE
SET item_ids = EXCLUDED.item_ids, occurred_at = EXCLUDED.occurred_at, updated_at = now()
WHERE EXCLUDED.occurred_at >= r.occurred_at
"""

_OBJECTIONS = """
INSERT INTO user_objections AS o (user_id, objects, occurred_at, reason)
SELECT DISTINCT ON (user_id) user_id, objects, occurred_at, reason
FROM stage_objections ORDER BY user_id, occurred_at DESC, seq DESC
ON CONFLICT (user_id) DO UPDATE
SET objects = EXCLUDED.objects, occurred_at = EXCLUDED.occurred_at, reason = EXCLUDED.reason, updated_at = now()
WHERE EXCLUDED.occurred_at >= o.occurred_at
"""

_FEEDBACK = """
INSERT INTO poster_feedback
  (event_id, poster_id, user_id, item_id, action, position, surface, propensity, request_id, occurred_at, claimed_at)
SELECT DISTINCT ON (event_id)
  event_id, poster_id, user_id, item_id, action, position, surface, propensity, request_id, occurred_at, claimed_at
FROM stage_feedback ORDER BY event_id, seq
ON CONFLICT DO NOTHING
"""

_RECORD_ERASURES = """
INSERT INTO erasures AS e (user_id, requested_at)
SELECT user_id, max(requested_at) FROM stage_erasures GROUP BY user_id ORDER BY user_id
ON CONFLICT (user_id) DO UPDATE SET requested_at = EXCLUDED.requested_at, completed_at = NULL
WHERE e.requested_at < EXCLUDED.requested_at
"""

# Rows older than the erasure by their own time or by when they came, whichever is earlier: clocks run ahead.
_ERASE = (
    """DELETE FROM interactions t USING erasures e WHERE e.user_id IN (SELECT user_id FROM stage_erasures)
       AND t.user_id = e.user_id AND least(t.occurred_at, t.ingested_at) <= e.requested_at""",
    """DELETE FROM poster_feedback t USING erasures e WHERE e.user_id IN (SELECT user_id FROM stage_erasures)
       AND t.user_id = e.user_id AND least(t.occurred_at, t.ingested_at) <= e.requested_at""",
    """DELETE FROM recommendations t USING erasures e WHERE e.user_id IN (SELECT user_id FROM stage_erasures)
       AND t.user_id = e.user_id AND least(t.occurred_at, t.updated_at) <= e.requested_at""",
    """DELETE FROM user_objections t USING erasures e WHERE e.user_id IN (SELECT user_id FROM stage_erasures)
       AND t.user_id = e.user_id AND least(t.occurred_at, t.updated_at) <= e.requested_at""",
)
# Events from before an erasure that come after it.
_ERASE_LATE = {
    INTERACTIONS: """DELETE FROM stage_interactions s USING erasures e
                     WHERE s.user_id = e.user_id AND s.occurred_at <= e.requested_at""",
    RECOMMENDATIONS: """DELETE FROM stage_recommendations s USING erasures e
                        WHERE s.user_id = e.user_id AND s.occurred_at <= e.requested_at""",
    FEEDBACK: """DELETE FROM stage_feedback s USING erasures e
                 WHERE s.user_id = e.user_id AND s.occurred_at <= e.requested_at""",
    OBJECTION: """DELETE FROM stage_objections s USING erasures e
                  WHERE s.user_id = e.user_id AND s.occurred_at <= e.requested_at""",
}

_PROOF = """
UPDATE erasures e SET proof = e.proof || jsonb_build_object('consumer', jsonb_build_object(
  'erased_at', now(), 'transaction', pg_current_xact_id()::text))
WHERE user_id IN (SELECT user_id FROM stage_erasures)
"""


@dataclass
class Written:
    """What one transaction did, in rows."""

    rows: dict[str, int] = field(default_factory=dict)  # by topic: inserted or updated
    duplicates: int = 0  # events that were stored already
    stale: int = 0  # catalogue rows, recommendations and objections older than what is stored
    unknown_tombstones: int = 0  # of items that are in no catalogue
    forgotten: int = 0  # events of users who had asked to be erased
    erased: int = 0  # stored rows deleted by erasures
    histories: int = 0
    other_kinds: Counter[str] = field(default_factory=Counter)  # new interactions that enter no history, by kind
    partitions_made: int = 0

    def add(self, other: Written) -> None:
        """Sum two transactions."""
        for topic, count in other.rows.items():
            self.rows[topic] = self.rows.get(topic, 0) + count
        for name in (
            "duplicates",
            "stale",
            "unknown_tombstones",
            "forgotten",
            "erased",
            "histories",
            "partitions_made",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.other_kinds.update(other.other_kinds)


def _make_months(cursor: Any) -> int:
    cursor.execute("SELECT DISTINCT date_trunc('month', occurred_at)::date FROM stage_interactions")
    months: list[date] = [month for (month,) in cursor]
    return len(partitions.make(cursor, months))


def _erase(cursor: Any, positive_kinds: tuple[str, ...]) -> int:
    cursor.execute(_RECORD_ERASURES)
    erased = 0
    for statement in _ERASE:
        cursor.execute(statement)
        erased += cursor.rowcount
    erased += histories.erase_entries(cursor, positive_kinds)
    cursor.execute(_PROOF)
    return erased


def _erase_late(cursor: Any, topic: str) -> int:
    cursor.execute(_ERASE_LATE[topic])
    return int(cursor.rowcount)


def apply(cursor: Any, staged: dict[str, int], positive_kinds: tuple[str, ...], history_size: int) -> Written:
    """Move the staged rows (`staged`: how many of each topic) into the tables."""
    result = Written()
    lock = "pg_advisory_xact_lock" if ERASURE in staged else "pg_advisory_xact_lock_shared"
    cursor.execute(f"SELECT {lock}(%s)", (ERASURE_LOCK,))
    if ERASURE in staged:
        result.erased = _erase(cursor, positive_kinds)
        result.rows[ERASURE] = staged[ERASURE]
    if CATALOG in staged:
        cursor.execute(_UNKNOWN_TOMBSTONES)
        result.unknown_tombstones = cursor.rowcount
        cursor.execute(_ITEMS)
        result.rows[CATALOG] = cursor.rowcount
        result.stale += staged[CATALOG] - result.unknown_tombstones - cursor.rowcount
    if INTERACTIONS in staged:
        forgotten = _erase_late(cursor, INTERACTIONS)
        result.partitions_made = _make_months(cursor)
        cursor.execute(_INTERACTIONS)
        result.rows[INTERACTIONS] = cursor.rowcount
        result.duplicates += staged[INTERACTIONS] - forgotten - cursor.rowcount
        result.forgotten += forgotten
        if cursor.rowcount:
            result.histories = histories.merge(cursor, positive_kinds, history_size)
            result.other_kinds = histories.count_other_kinds(cursor, positive_kinds)
    if RECOMMENDATIONS in staged:
        forgotten = _erase_late(cursor, RECOMMENDATIONS)
        cursor.execute(_RECOMMENDATIONS)
        result.rows[RECOMMENDATIONS] = cursor.rowcount
        result.stale += staged[RECOMMENDATIONS] - forgotten - cursor.rowcount
        result.forgotten += forgotten
    if FEEDBACK in staged:
        forgotten = _erase_late(cursor, FEEDBACK)
        cursor.execute(_FEEDBACK)
        result.rows[FEEDBACK] = cursor.rowcount
        result.duplicates += staged[FEEDBACK] - forgotten - cursor.rowcount
        result.forgotten += forgotten
    if OBJECTION in staged:
        forgotten = _erase_late(cursor, OBJECTION)
        cursor.execute(_OBJECTIONS)
        result.rows[OBJECTION] = cursor.rowcount
        result.stale += staged[OBJECTION] - forgotten - cursor.rowcount
        result.forgotten += forgotten
    return result
