"""Histories made again from the log, by today's rule and size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from consumers.postgres import connected
from consumers.write.upsert import ERASURE_LOCK
from schemas.settings import Settings

USERS_AT_ONCE = 500

# The rows are locked by a statement of its own: the next one then sees what was written until it has them.
_LOCK = """
SELECT user_id FROM user_histories WHERE user_id > %(after)s ORDER BY user_id LIMIT %(page)s FOR UPDATE
"""
# What the history has and the log has lost to retention is kept.
_REBUILD = """
WITH known AS (
  SELECT h.user_id, e.entry, (e.entry ->> 'event_id')::uuid AS id, (e.entry ->> 'occurred_at')::timestamptz AS at, 0 AS source
  FROM user_histories h CROSS JOIN LATERAL jsonb_array_elements(h.entries) AS e (entry) WHERE h.user_id = ANY(%(users)s)
  UNION ALL
  SELECT i.user_id,
         jsonb_build_object('event_id', i.event_id, 'item_id', i.item_id, 'kind', i.kind, 'occurred_at', i.occurred_at),
         i.event_id, i.occurred_at, 1
  FROM interactions i WHERE i.user_id = ANY(%(users)s) AND i.kind = ANY(%(kinds)s)
), newest AS (
  SELECT DISTINCT ON (user_id, entry ->> 'item_id') user_id, entry, id, at FROM known
  ORDER BY user_id, entry ->> 'item_id', at DESC, id DESC, source
), ranked AS (
  SELECT user_id, entry, id, at, row_number() OVER (PARTITION BY user_id ORDER BY at DESC, id DESC) AS place FROM newest
), made AS (
  SELECT user_id, jsonb_agg(entry ORDER BY place) AS entries,
         md5(string_agg(entry ->> 'event_id', ',' ORDER BY place)) AS fingerprint, max(at) AS last_occurred_at
  FROM ranked WHERE place <= %(size)s GROUP BY user_id
)
UPDATE user_histories h
SET entries = m.entries, fingerprint = m.fingerprint, last_occurred_at = m.last_occurred_at, updated_at = now()
FROM made m WHERE h.user_id = m.user_id AND h.fingerprint <> m.fingerprint
"""


@dataclass
class Rebuilt:
    """What a rebuild did, in users."""

    users: int = 0
    changed: int = 0


def rebuild(settings: Settings) -> Rebuilt:
    """Make every history again, page by page; consumers may go on meanwhile, and it may be done again.

    Raises:
        ServerUnavailable: Postgres is away; what is done is kept.
    """
    done = Rebuilt()
    after: str | None = ""
    with connected(settings.database, "pigeon-histories") as connection:
        while after is not None:
            with connection, connection.cursor() as cursor:
                after = _page(cursor, settings, after, done)
    return done


def _page(cursor: Any, settings: Settings, after: str, done: Rebuilt) -> str | None:
    cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", (ERASURE_LOCK,))
    cursor.execute(_LOCK, {"after": after, "page": USERS_AT_ONCE})
    users: list[str] = [user for (user,) in cursor]
    if not users:
        return None
    consumer = settings.consumer
    cursor.execute(_REBUILD, {"users": users, "kinds": list(consumer.positive_kinds), "size": consumer.history_size})
    done.users += len(users)
    done.changed += cursor.rowcount
    return users[-1]
