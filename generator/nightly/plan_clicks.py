"""Clicks on posters that a plan's histories take in, as SQL: which of them count, and whose.

A click counts for `history.drawn_days`, while the poster and its picture are there, and unless

- the user dismissed the poster afterwards,
- the poster, its picture, item, user or night was withdrawn, the picture was refused, or the item opted out of drawn posters,
- the picture's codes are another tokenizer's.

Of an item the newest click counts, of a user the newest few (`history.drawn_share`), looked for among some times as many.
Robots' clicks count for nothing; who is one is asked only about users who are planned again, for a robot that does nothing is left
as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from generator.nightly.clicked_posters import DrawnPicture, Seen
from generator.nightly.taken_back import not_taken_back
from generator.storage.showings import SHOWINGS, hygiene
from schemas.settings import Settings
from schemas.settings_loop import ClickSettings
from schemas.settings_s3 import S3Settings

CLICKS_PER_PICTURE = 4
"""Clicks that are looked at for each drawn picture that a history may have."""
FINGERPRINT = "CASE WHEN k.event_ids IS NULL THEN h.fingerprint ELSE md5(h.fingerprint || ' ' || k.event_ids) END"
"""SQL expression: fingerprint of the history `h` with the clicks `k`; without clicks it is the history's own."""

_ROBOTS = text(f"{SHOWINGS} SELECT user_id FROM robots")  # noqa: S608 - constants
# `<> 'impression'` names the partial index: of a user the newest clicks are read, and nothing of what was only shown.
CLICKS = f"""
LEFT JOIN LATERAL (
  SELECT string_agg(event_id::text, ',' ORDER BY place) AS event_ids,
         jsonb_agg(jsonb_build_array(item_id, occurred_at, picture_key, art_key, art_sha256) ORDER BY place) AS posters
  FROM (
    SELECT *, row_number() OVER (ORDER BY occurred_at DESC, event_id DESC) AS place
    FROM (
      SELECT DISTINCT ON (f.item_id) f.item_id, f.event_id, f.occurred_at, x.picture_key, x.art_key, x.art_sha256
      FROM (
        SELECT user_id, item_id, poster_id, event_id, occurred_at FROM poster_feedback
        WHERE user_id = h.user_id AND action <> 'impression' AND action = 'click' AND occurred_at >= :clicked_since
        ORDER BY occurred_at DESC, event_id DESC LIMIT :clicks_looked_at
      ) AS f
      JOIN posters p ON p.poster_id = f.poster_id AND p.user_id = f.user_id AND p.item_id = f.item_id AND p.withheld IS NULL
      JOIN pictures x ON x.picture_key = p.picture_key AND x.status = 'drawn' AND x.embedding IS NOT NULL
      JOIN night_runs r ON r.run_id = p.run_id AND r.settings #>> '{{served,tokenizer}}' = :tokenizer
      JOIN items i ON i.item_id = f.item_id AND i.attributes -> 'drawn_posters' IS DISTINCT FROM 'false'
      WHERE NOT EXISTS (SELECT FROM poster_feedback d WHERE d.user_id = f.user_id AND d.item_id = f.item_id
                        AND d.poster_id = f.poster_id AND d.action = 'dismiss' AND d.occurred_at >= f.occurred_at)
        AND {not_taken_back("p", "p.run_id")}
      ORDER BY f.item_id, f.occurred_at DESC, f.event_id DESC
    ) AS newest
  ) AS ranked
  WHERE place <= :most_drawn
) AS k ON true"""  # noqa: S608 - made of our own names
"""SQL join: the clicks `k` of the user of the history `h` that count, newest first; bound by `ClickRule.values`."""


@dataclass(frozen=True)
class ClickRule:
    """Which clicks the histories of one plan take in."""

    since: datetime
    tokenizer: str
    """Version of the tokenizer that the served codes are of."""
    most_drawn: int
    """Drawn pictures in a history at most."""
    s3: S3Settings
    robots: ClickSettings
    robots_since: datetime

    @classmethod
    def of(cls, settings: Settings, tokenizer: str, logical_date: date) -> ClickRule | None:
        """The rule of a night; None where histories take in no clicks."""
        most = settings.history.most_drawn(settings.night.history_length)
        if not most:
            return None
        day = datetime.combine(logical_date, time(), UTC)
        return cls(
            since=day - timedelta(days=settings.history.drawn_days),
            tokenizer=tokenizer,
            most_drawn=most,
            s3=settings.s3,
            robots=settings.clicks,
            robots_since=day - timedelta(days=settings.clicks.window_days),
        )

    def values(self) -> dict[str, Any]:
        """Bindings of `CLICKS`."""
        return {
            "clicked_since": self.since,
            "tokenizer": self.tokenizer,
            "most_drawn": self.most_drawn,
            "clicks_looked_at": CLICKS_PER_PICTURE * self.most_drawn,
        }

    def find_robots(self, session: Session, users: Sequence[str]) -> set[str]:
        """Those of these users who are robots, by the click model's rules."""
        if not users:
            return set()
        window = {"start": self.robots_since, "stop": datetime.max.replace(tzinfo=UTC)}
        return set(session.scalars(_ROBOTS, {**window, **hygiene(self.robots, users)}))

    def parse(self, posters: Sequence[Sequence[str]]) -> list[Seen[str, DrawnPicture]]:
        """A user's clicks from the column `posters`, newest first."""
        return [
            Seen(item_id, datetime.fromisoformat(at), DrawnPicture(key, self.s3.uri(file), sha256))
            for item_id, at, key, file, sha256 in posters
        ]


def parse_history(items: Sequence[str], moments: Sequence[str]) -> list[Seen[str, DrawnPicture]]:
    """A user's entries, newest first, each item once."""
    entries: dict[str, Seen[str, DrawnPicture]] = {}
    for item_id, at in zip(items, moments, strict=True):
        entries.setdefault(item_id, Seen(item_id, datetime.fromisoformat(at)))
    return list(entries.values())
