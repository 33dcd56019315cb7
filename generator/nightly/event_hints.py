"""Events that are of no use to a night, in words: by their kind, or of items that no catalogue has.

Both look at a part of the tables only: a hint costs the same however much is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.nightly.wording import counted, counts_of

EVENTS_LOOKED_AT = 20_000
HISTORIES_LOOKED_AT = 2_000

_KINDS = text("""
SELECT kind, count(*) FROM (SELECT lower(kind) AS kind FROM interactions LIMIT :most) AS sampled
WHERE kind <> ALL (:kinds) GROUP BY kind ORDER BY count(*) DESC, kind LIMIT 5
""")
_UNKNOWN = text("""
SELECT count(*), min(item_id) FROM (
  SELECT DISTINCT entry ->> 'item_id' AS item_id
  FROM (SELECT entries FROM user_histories LIMIT :most) AS sampled, jsonb_array_elements(entries) AS e (entry)
) AS clicked
WHERE NOT EXISTS (SELECT FROM items i WHERE i.item_id = clicked.item_id)
""")


def event_hints(session: Session, positive_kinds: Sequence[str]) -> list[str]:
    """A line for each thing that is worth a word; none as a rule."""
    return [*_other_kinds(session, positive_kinds), *_unknown_items(session)]


def _other_kinds(session: Session, positive_kinds: Sequence[str]) -> list[str]:
    rows = session.execute(_KINDS, {"most": EVENTS_LOOKED_AT, "kinds": list(positive_kinds)})
    kinds = {f"of kind {kind!r}": int(count) for kind, count in rows}
    if not kinds:
        return []
    return [
        f"events that enter no history, of {EVENTS_LOOKED_AT} at most that were looked at: {counts_of(kinds)}; "
        f"consumer.positive_kinds has {', '.join(positive_kinds)}"
    ]


def _unknown_items(session: Session) -> list[str]:
    count, example = session.execute(_UNKNOWN, {"most": HISTORIES_LOOKED_AT}).one()
    if not count:
        return []
    be = "is" if count == 1 else "are"
    return [
        f"{counted(count, 'clicked item')} {be} not in the catalogue, for example {example!r} "
        f"(of {HISTORIES_LOOKED_AT} histories at most): are the ids the same in both? `pigeon catalog import`"
    ]
