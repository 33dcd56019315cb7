"""`user_histories`: each user's newest N items, merged set-wise with what is new.

An item counts by the newest positive interaction with it. The order is (occurred_at, event_id), newest first, so it does not
depend on the order of arrival: reordered, late and doubled events end in the same rows. An item that is no longer among the newest
N has N others that are newer, and those only get newer. Sound under concurrency: rows are locked, in user order, before they are
read.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

# An empty history is older than any event; it is merged with at least one in the same transaction.
_MAKE = """
INSERT INTO user_histories (user_id, entries, fingerprint, interaction_count, last_occurred_at)
SELECT DISTINCT user_id, jsonb '[]', '', 0, timestamptz '-infinity'
FROM fresh_interactions WHERE kind = ANY(%(kinds)s) ORDER BY user_id
ON CONFLICT DO NOTHING
"""

# Every row conflicts with the one that is there, which is what finds and locks it: by index whatever the statistics say. (As a
# join this took minutes when Postgres had last counted the table while it was empty.)
# EXCLUDED holds what is added: all of a user's entries, newest first, their number and their latest time.
# As a rule a user's events come in order and are of new items: those go before the history as they are. Only where some are not,
# or are known, everything is taken apart, distinguished by event id, and the newest of each item is kept.
# Known ones: the log's months are dropped by retention, a history's entries are not, so an event that comes again after that is
# fresh to the log and known to the history. The history's own entry comes first and stays.
# `k.entries` is a copy (|| '[]'), so that a long history is decompressed once.
_MERGE = """
INSERT INTO user_histories AS h (user_id, entries, fingerprint, interaction_count, last_occurred_at)
SELECT user_id,
       jsonb_agg(
         jsonb_build_object('event_id', event_id, 'item_id', item_id, 'kind', kind, 'occurred_at', occurred_at)
         ORDER BY occurred_at DESC, event_id DESC
       ), '', count(*), max(occurred_at)
FROM fresh_interactions WHERE kind = ANY(%(kinds)s) GROUP BY user_id ORDER BY user_id
ON CONFLICT (user_id) DO UPDATE
SET (entries, fingerprint, interaction_count, last_occurred_at, updated_at) = (
  SELECT m.entries,
         md5(btrim(replace(jsonb_path_query_array(m.entries, '$[*].event_id')::text, '", "', ','), '["]')),
         h.interaction_count + m.events, m.newest, now()
  FROM (SELECT h.entries || '[]' AS entries OFFSET 0) AS k
  CROSS JOIN LATERAL (
    SELECT (EXCLUDED.entries -> -1 ->> 'occurred_at')::timestamptz > h.last_occurred_at
           AND cardinality(added.items) = EXCLUDED.interaction_count
           AND NOT jsonb_path_query_array(k.entries, '$[*].item_id') ?| added.items
           AND NOT jsonb_path_query_array(k.entries, '$[*].event_id') ?| added.events AS in_order
    FROM (
      SELECT array_agg(DISTINCT entry ->> 'item_id') AS items, array_agg(entry ->> 'event_id') AS events
      FROM jsonb_array_elements(EXCLUDED.entries) AS e (entry)
    ) AS added
    OFFSET 0
  ) AS fresh
  CROSS JOIN LATERAL (
    SELECT CASE WHEN EXCLUDED.interaction_count + jsonb_array_length(k.entries) <= %(size)s THEN joined.entries
             ELSE jsonb_path_query_array(joined.entries, '$[0 to $last]', jsonb_build_object('last', %(size)s - 1))
           END AS entries, EXCLUDED.interaction_count AS events, EXCLUDED.last_occurred_at AS newest
    FROM (SELECT EXCLUDED.entries || k.entries AS entries OFFSET 0) AS joined
    WHERE fresh.in_order
    UNION ALL
    SELECT sorted.* FROM (
      SELECT jsonb_agg(entry ORDER BY at DESC, id DESC), max(total) - jsonb_array_length(k.entries), max(at)
      FROM (
        SELECT entry, id, at, total
        FROM (
          SELECT DISTINCT ON (entry ->> 'item_id') entry, id, at, total
          FROM (
            SELECT entry, id, at, count(*) OVER () AS total
            FROM (
              SELECT DISTINCT ON (id) entry, (entry ->> 'event_id')::uuid AS id, (entry ->> 'occurred_at')::timestamptz AS at
              FROM jsonb_array_elements(k.entries || EXCLUDED.entries) WITH ORDINALITY AS e (entry, place)
              ORDER BY id, place
            ) AS once
          ) AS counted
          ORDER BY entry ->> 'item_id', at DESC, id DESC
        ) AS newest
        ORDER BY at DESC, id DESC LIMIT %(size)s
      ) AS ranked
    ) AS sorted
    WHERE NOT fresh.in_order
  ) AS m
)
"""


def merge(cursor: Any, positive_kinds: tuple[str, ...], size: int) -> int:
    """Merge this transaction's fresh interactions into histories; returns how many users changed."""
    values = {"kinds": list(positive_kinds), "size": size}
    cursor.execute(_MAKE, values)
    cursor.execute(_MERGE, values)
    return int(cursor.rowcount)


# What is left of a history after an erasure: entries later than it whose event is still in the log.
_SHRINK = """
WITH kept AS (
  SELECT h.user_id, e.entry, e.place
  FROM user_histories h JOIN stage_erasures s USING (user_id) JOIN erasures x USING (user_id)
  CROSS JOIN LATERAL jsonb_array_elements(h.entries) WITH ORDINALITY AS e (entry, place)
  WHERE (e.entry ->> 'occurred_at')::timestamptz > x.requested_at
    AND EXISTS (SELECT FROM interactions i WHERE i.user_id = h.user_id
                AND i.occurred_at = (e.entry ->> 'occurred_at')::timestamptz
                AND i.event_id = (e.entry ->> 'event_id')::uuid)
), merged AS (
  SELECT user_id, jsonb_agg(entry ORDER BY place) AS entries,
         md5(string_agg(entry ->> 'event_id', ',' ORDER BY place)) AS fingerprint,
         max((entry ->> 'occurred_at')::timestamptz) AS last_occurred_at
  FROM (SELECT DISTINCT user_id, entry, place FROM kept) AS once GROUP BY user_id
)
UPDATE user_histories h
SET entries = m.entries, fingerprint = m.fingerprint, last_occurred_at = m.last_occurred_at, updated_at = now(),
    interaction_count = (SELECT count(*) FROM interactions i WHERE i.user_id = h.user_id AND i.kind = ANY(%(kinds)s))
FROM merged m WHERE h.user_id = m.user_id
RETURNING h.user_id
"""


def count_other_kinds(cursor: Any, positive_kinds: tuple[str, ...]) -> Counter[str]:
    """The fresh interactions that enter no history, by kind."""
    cursor.execute(
        "SELECT kind, count(*) FROM fresh_interactions WHERE kind <> ALL(%s) GROUP BY kind", (list(positive_kinds),)
    )
    return Counter({str(kind): int(count) for kind, count in cursor})


def erase_entries(cursor: Any, positive_kinds: tuple[str, ...]) -> int:
    """Delete erased entries from the histories of this transaction's erasures.

    Returns how many histories were deleted whole.
    """
    cursor.execute(_SHRINK, {"kinds": list(positive_kinds)})
    kept = [user for (user,) in cursor]
    cursor.execute(
        "DELETE FROM user_histories WHERE user_id IN (SELECT user_id FROM stage_erasures) AND user_id <> ALL(%s)",
        (kept,),
    )
    return int(cursor.rowcount)
