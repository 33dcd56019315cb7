"""Users page by page: in SQL, who is as an earlier plan left him, and of the others what a plan needs.

No statement reads more than one page of users. The page's bounds stand in the condition of every table that is joined, else a
merge join would read that table from its start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from generator.nightly.clicked_posters import DrawnPicture, with_clicks
from generator.nightly.frozen_prompt import share_prefix
from generator.nightly.plan_clicks import CLICKS, FINGERPRINT, ClickRule, parse_history
from schemas.tables import PlannedItem, UserHistory

USERS_JUDGED_AT_ONCE = 5_000
USERS_COUNTED_AT_ONCE = 5_000
POPULAR_ITEMS = 1_000
POPULAR_DAYS = 7
"""Days for which a user without recommendations keeps the popular items that were chosen; a part of them changes each day."""

ERASED = "user is to be forgotten"
OBJECTS = "user objects to drawn posters"
WITHDRAWN = "user withdrawn"
UNCHANGED = "unchanged"

# Where there are no recommendations, targets are popular items, chosen again every POPULAR_DAYS, on a day of the user's own.
_TARGETS = f"""
CASE WHEN r.item_ids IS NULL OR cardinality(r.item_ids) = 0
  THEN 'popular ' || ((:day + ('x' || left(md5(h.user_id), 4))::bit(16)::int % {POPULAR_DAYS}) / {POPULAR_DAYS})
  ELSE md5(r.item_ids::text) END
"""
# `share` of frozen_prompt.py, for the users that the canary draws for.
_SHARE = """
('x' || left(encode(sha256(CAST(:canary AS bytea) || int8send(octet_length(h.user_id))
                           || convert_to(h.user_id, 'UTF8')), 'hex'), 13))::bit(52)::bigint / 4503599627370496.0
"""
_DRAWING = f"CASE WHEN :canary_share > 0 AND {_SHARE} < :canary_share THEN :canary_drawing ELSE :drawing END"
_BOUNDS = "{0}.user_id > :after AND {0}.user_id <= :until"
# Materialized, else Postgres works each state out for every place in which it is named.
_JUDGE = f"""
WITH judged AS MATERIALIZED (
  SELECT h.user_id, p.user_id IS NOT NULL AS planned, p.targets, p.skipped,
    CASE
      WHEN e.user_id IS NOT NULL THEN :erased
      WHEN o.user_id IS NOT NULL THEN :objects
      WHEN EXISTS (SELECT 1 FROM withdrawals w WHERE w.kind = 'user' AND w.subject = h.user_id AND w.lifted_at IS NULL)
        THEN :withdrawn
      WHEN p.run_id IS NULL AND p.history_fingerprint = {{fingerprint}} AND p.logical_date <= :date
        AND p.targets_fingerprint = {_TARGETS} AND p.drawing_fingerprint = {_DRAWING}
        AND (p.plan_number >= :newest_change
             OR NOT EXISTS (SELECT 1 FROM planned_items c WHERE c.item_id = ANY (p.items) AND c.changed_in > p.plan_number))
        AND (NOT :some_changed OR NOT EXISTS (SELECT 1 FROM unnest(p.items) AS i (item_id)
                                              WHERE i.item_id = ANY (CAST(:changed AS text[]))))
        THEN :unchanged
    END AS state
  FROM user_histories h
  LEFT JOIN recommendations r ON r.user_id = h.user_id AND {_BOUNDS.format("r")}
  LEFT JOIN planned_users p ON p.user_id = h.user_id AND {_BOUNDS.format("p")}
  LEFT JOIN erasures e ON e.user_id = h.user_id AND e.completed_at IS NULL AND {_BOUNDS.format("e")}
  LEFT JOIN user_objections o ON o.user_id = h.user_id AND o.objects AND {_BOUNDS.format("o")}
  {{joined}}
  WHERE {_BOUNDS.format("h")} AND (CAST(:only AS text[]) IS NULL OR h.user_id = ANY (CAST(:only AS text[])))
)
SELECT state, CASE WHEN state = :unchanged THEN skipped END AS skipped, count(*) AS users,
       CASE WHEN state = :unchanged THEN sum(targets) ELSE 0 END AS targets,
       array_agg(user_id ORDER BY user_id) FILTER (WHERE state IS NULL OR (state <> :unchanged AND planned)) AS user_ids
FROM judged GROUP BY 1, 2"""  # noqa: S608 - made of our own names
# Of the histories only the items: fifty entries with their times and ids are ten times as much to decode.
_USERS = "{0}.user_id = ANY (CAST(:users AS text[]))"
_READ = f"""
SELECT h.user_id, jsonb_path_query_array(h.entries, '$[*].item_id') AS history, r.item_ids, {{fingerprint}} AS fingerprint,
       {_TARGETS} AS targets_fingerprint{{columns}}
FROM user_histories h LEFT JOIN recommendations r ON r.user_id = h.user_id AND {_USERS.format("r")}
{{joined}}
WHERE {_USERS.format("h")} ORDER BY h.user_id"""  # noqa: S608 - made of our own names
# Where histories take in no clicks, the statements read nothing of them.
_WITHOUT = {"fingerprint": "h.fingerprint", "columns": "", "joined": ""}
_WITH = {
    "fingerprint": FINGERPRINT,
    "columns": """, k.posters,
       CASE WHEN k.posters IS NOT NULL THEN jsonb_path_query_array(h.entries, '$[*].occurred_at') END AS moments""",
    "joined": CLICKS,
}
_JUDGES, _READS = (
    tuple(text(statement.format(**words)) for words in (_WITHOUT, _WITH)) for statement in (_JUDGE, _READ)
)
"""Statements without clicks and with them."""
_PAGE = text("""
SELECT max(user_id), count(*) FROM (
  SELECT user_id FROM user_histories
  WHERE user_id > :after AND (CAST(:stop AS text) IS NULL OR user_id <= :stop)
    AND (CAST(:only AS text[]) IS NULL OR user_id = ANY (CAST(:only AS text[])))
  ORDER BY user_id LIMIT :page
) AS page
""")
_POPULAR = text("""
SELECT entry ->> 'item_id', count(*) FROM user_histories h, jsonb_array_elements(h.entries) AS entry
WHERE h.user_id > :after AND h.user_id <= :until GROUP BY 1
""")
# Who was drawn for, or refused: drawing it again would give the same. A poster that is not current any more, but would be
# right again, is found here.
_DRAWN = text("""
SELECT t.user_id, t.item_id, t.input_fingerprint, t.weights,
       bool_or(t.status = 'done') AND bool_and(c.user_id IS NULL) AS found_again
FROM night_tasks t
JOIN night_runs r ON r.run_id = t.run_id AND r.status = 'published' AND r.logical_date <= :date AND r.run_id <> :run_id
LEFT JOIN current_posters c ON c.user_id = t.user_id AND c.item_id = t.item_id
  AND c.input_fingerprint = t.input_fingerprint AND c.weights = t.weights
WHERE t.user_id = ANY (CAST(:users AS text[])) AND t.weights = ANY (CAST(:weights AS text[]))
  AND t.status IN ('done', 'refused')
GROUP BY 1, 2, 3, 4
""")


@dataclass(frozen=True, slots=True)
class UserInput:
    """A user who has to be planned."""

    user_id: str
    history: tuple[str, ...]
    """Item ids, newest first, each once; those of clicked posters among them."""
    recommended: tuple[str, ...]
    """Empty where there are no recommendations."""
    history_fingerprint: str
    targets_fingerprint: str
    drawn: Mapping[str, DrawnPicture] = field(default_factory=dict)
    """Items of the history that the user saw as a drawn picture."""


@dataclass(frozen=True)
class Judged:
    """Of a page of users, who has to be planned, and what is counted of the others."""

    users: tuple[str, ...] = ()
    counted: Counter[str] = field(default_factory=Counter)
    """Users and targets, by reason."""
    forgotten: tuple[str, ...] = ()
    """Users with an earlier plan, for which nobody draws now."""


@dataclass(frozen=True)
class Criteria:
    """What a user's plan must have been made from to be as it would be made now."""

    logical_date: date
    drawing: str
    """Fingerprint of what draws for the most."""
    canary: str | None = None
    """Version of the canary, if there is one, and with it what draws for its users."""
    canary_share: float = 0.0
    canary_drawing: str = ""
    changed: Sequence[str] = ()
    """Items that have changed since the last plan."""

    def values(self) -> dict[str, Any]:
        """As the statement wants them."""
        return {
            "date": self.logical_date,
            "day": self.logical_date.toordinal(),
            "drawing": self.drawing,
            "canary": share_prefix(f"canary {self.canary}"),
            "canary_share": self.canary_share if self.canary else 0.0,
            "canary_drawing": self.canary_drawing,
            "some_changed": bool(self.changed),
            "changed": list(self.changed),
            "erased": ERASED,
            "objects": OBJECTS,
            "withdrawn": WITHDRAWN,
            "unchanged": UNCHANGED,
        }


class PlanUsers:
    """Reads users in one session, a snapshot.

    `only`: these users, instead of all; `clicks`: which clicks on posters histories take in, None: none.
    """

    def __init__(self, session: Session, only: Sequence[str] | None = None, clicks: ClickRule | None = None) -> None:
        self._session = session
        self._only = list(only) if only is not None else None
        self._clicks = clicks
        self._judge, self._read = (pair[clicks is not None] for pair in (_JUDGES, _READS))
        self._rule = clicks.values() if clicks else {}

    def judge(self, criteria: Criteria, limit: int | None) -> Iterator[Judged]:
        """All users, page by page in the order of their ids.

        With a limit they begin at another user on every day, so that all have their turn.
        """
        start = self._start(criteria.logical_date, limit) if limit is not None else ""
        yield from self._pages(criteria, start, None)
        if start:
            yield from self._pages(criteria, "", start)

    def read(self, user_ids: Sequence[str], logical_date: date) -> list[UserInput]:
        """What is planned of these users is planned from."""
        values = {"users": list(user_ids), "day": logical_date.toordinal(), **self._rule}
        rows = self._session.execute(self._read, values).all()
        if self._clicks is None:
            return [_input(row, _once(row.history)) for row in rows]
        robots = self._clicks.find_robots(self._session, [row.user_id for row in rows if row.posters])
        return [_with_clicks(row, self._clicks, robots) for row in rows]

    def drawn_before(
        self, user_ids: Sequence[str], weights: Sequence[str], run_id: str, logical_date: date
    ) -> dict[tuple[str, str, str, str], bool]:
        """What published runs drew or refused for these users, up to this date.

        (user, item, fingerprint, weights) -> whether its posters are right again, though others are current.
        """
        values = {"users": list(user_ids), "weights": list(weights), "run_id": run_id, "date": logical_date}
        return {
            (user, item, fingerprint, of): again
            for user, item, fingerprint, of, again in self._session.execute(_DRAWN, values)
        }

    def popular(self) -> list[str]:
        """Items by how many histories have them: targets for users without recommendations."""
        counts = Counter[str]()
        for after, until in self._bounds("", None, USERS_COUNTED_AT_ONCE, only=None):
            page = self._session.execute(_POPULAR, {"after": after, "until": until})
            counts.update({row[0]: row[1] for row in page})
        return sorted(counts, key=lambda item: (-counts[item], item))[:POPULAR_ITEMS]

    def unknown(self, wanted: Sequence[str]) -> list[str]:
        """Those without a history."""
        query = select(UserHistory.user_id).where(UserHistory.user_id.in_(wanted))
        return sorted(set(wanted) - set(self._session.scalars(query)))

    def _pages(self, criteria: Criteria, start: str, stop: str | None) -> Iterator[Judged]:
        newest = self._session.scalar(select(func.max(PlannedItem.changed_in))) or 0
        values = {**criteria.values(), **self._rule, "only": self._only, "newest_change": newest}
        for after, until in self._bounds(start, stop, USERS_JUDGED_AT_ONCE, only=self._only):
            yield _judged(self._session.execute(self._judge, {**values, "after": after, "until": until}))

    def _bounds(self, start: str, stop: str | None, size: int, *, only: list[str] | None) -> Iterator[tuple[str, str]]:
        """Bounds of consecutive pages of users: above the first, up to the second."""
        after = start
        while True:
            values = {"after": after, "stop": stop, "only": only, "page": size}
            until, count = self._session.execute(_PAGE, values).one()
            if not count:
                return
            yield after, until
            after = until

    def _start(self, day: date, limit: int) -> str:
        """The user that a limited run begins after: `limit` further on every day."""
        users = select(UserHistory.user_id)
        if self._only is not None:
            users = users.where(UserHistory.user_id.in_(self._only))
        count = self._session.scalar(select(func.count()).select_from(users.subquery())) or 0
        place = day.toordinal() * limit % max(1, count)
        before = users.order_by(UserHistory.user_id).offset(place - 1).limit(1)
        return (self._session.scalar(before) or "") if place else ""


def _judged(groups: Any) -> Judged:
    users: list[str] = []
    forgotten: list[str] = []
    counted = Counter[str]()
    for group in groups:
        if group.state is None:
            users += group.user_ids
        elif group.state == UNCHANGED:
            counted[UNCHANGED] += int(group.targets)
            counted.update({reason: count * group.users for reason, count in group.skipped.items()})
        else:
            counted[group.state] += group.users
            forgotten += group.user_ids or ()
    return Judged(tuple(users), +counted, tuple(forgotten))


def _input(row: Any, history: tuple[str, ...], drawn: Mapping[str, DrawnPicture] | None = None) -> UserInput:
    recommended = _once(row.item_ids or ())
    return UserInput(row.user_id, history, recommended, row.fingerprint, row.targets_fingerprint, drawn or {})


def _with_clicks(row: Any, rule: ClickRule, robots: Collection[str]) -> UserInput:
    """A user whose clicks on posters are part of the history, unless a robot made them."""
    if row.posters is None or row.user_id in robots:
        return _input(row, _once(row.history))
    merged = with_clicks(parse_history(row.history, row.moments), rule.parse(row.posters))
    drawn = {entry.item_id: entry.picture for entry in merged if entry.picture}
    return _input(row, tuple(entry.item_id for entry in merged), drawn)


def _once(item_ids: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item_ids))
