"""A plan's rows, by COPY and set-based statements; later plans rely on them once the run is published."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import date
from operator import attrgetter
from typing import Any

import psycopg2
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from generator.nightly.rows import Chunk, PlannedTask, Skip, UserPlan

COPY_CHARACTERS = 2**20
"""Characters that COPY reads at a time."""

SETTLED_AT_ONCE = 20_000
"""Users of a published run that one statement marks."""

_TASK_COLUMNS = tuple(one.name for one in fields(PlannedTask))
_SKIP_COLUMNS = tuple(one.name for one in fields(Skip))
_USER_COLUMNS = tuple(one.name for one in fields(UserPlan))

# A plan for a day of the past leaves the plans of later days alone.
_SAVE_USERS = text("""
INSERT INTO planned_users AS p (user_id, history_fingerprint, targets_fingerprint, drawing_fingerprint, items, targets,
                                skipped, plan_number, logical_date, run_id, planned_at)
SELECT r.*, :plan_number, :logical_date, :run_id, now()
FROM json_to_recordset(CAST(:rows AS json)) AS r (
  user_id text, history_fingerprint text, targets_fingerprint text, drawing_fingerprint text, items text[], targets bigint,
  skipped jsonb)
ORDER BY r.user_id
ON CONFLICT (user_id) DO UPDATE SET
  history_fingerprint = excluded.history_fingerprint, targets_fingerprint = excluded.targets_fingerprint,
  drawing_fingerprint = excluded.drawing_fingerprint, items = excluded.items, targets = excluded.targets,
  skipped = excluded.skipped, plan_number = excluded.plan_number, logical_date = excluded.logical_date,
  run_id = excluded.run_id, planned_at = excluded.planned_at
WHERE p.logical_date <= excluded.logical_date
""")
_SAVE_ITEMS = text("""
INSERT INTO planned_items (item_id, fingerprint)
SELECT key, value FROM json_each_text(CAST(:items AS json)) ORDER BY key
ON CONFLICT DO NOTHING
""")
_SAVE_CHANGED = text("""
UPDATE planned_items p SET fingerprint = c.value, changed_in = :plan_number
FROM json_each_text(CAST(:items AS json)) AS c WHERE p.item_id = c.key
""")
_FORGET = text("DELETE FROM planned_users WHERE user_id = ANY(:users) AND logical_date <= :logical_date")
_PAGE_END = text(
    "SELECT user_id FROM planned_users WHERE run_id = :run_id AND user_id > :after ORDER BY user_id OFFSET :page - 1 LIMIT 1"
)
_SETTLE = text("""
UPDATE planned_users p SET run_id = NULL
WHERE p.run_id = :run_id AND p.user_id > :after AND (CAST(:until AS text) IS NULL OR p.user_id <= :until)
  AND NOT EXISTS (SELECT 1 FROM night_tasks t
                  WHERE t.run_id = :run_id AND t.user_id = p.user_id AND t.status IN ('pending', 'failed'))
""")


def save_chunk(session: Session, run_id: str, logical_date: date, plan_number: int, chunk: Chunk) -> None:
    """Write the rows of some users."""
    _copy(session, "night_tasks", _TASK_COLUMNS, run_id, chunk.tasks)
    _copy(session, "night_skips", _SKIP_COLUMNS, run_id, chunk.skips)
    if chunk.changed:
        session.execute(_SAVE_CHANGED, {"items": json.dumps(dict(chunk.changed)), "plan_number": plan_number})
    if chunk.items:
        session.execute(_SAVE_ITEMS, {"items": json.dumps(dict(chunk.items))})
    if chunk.users:
        values = {"plan_number": plan_number, "logical_date": logical_date, "run_id": run_id}
        session.execute(_SAVE_USERS, {"rows": json.dumps([_user(user) for user in chunk.users]), **values})
    if chunk.forgotten:
        session.execute(_FORGET, {"users": list(chunk.forgotten), "logical_date": logical_date})


def settle(session: Session, run_id: str) -> None:
    """Let later plans rely on what was planned for the users of a published run; not where tasks failed."""
    after: str = ""
    while True:
        until = session.scalar(_PAGE_END, {"run_id": run_id, "after": after, "page": SETTLED_AT_ONCE})
        session.execute(_SETTLE, {"run_id": run_id, "after": after, "until": until})
        if until is None:
            return
        after = until


def _user(user: UserPlan) -> Mapping[str, Any]:
    return {column: getattr(user, column) for column in _USER_COLUMNS}


def _copy(session: Session, table: str, columns: tuple[str, ...], run_id: str, rows: Iterable[Any]) -> None:
    values = attrgetter(*columns)
    lines = [_line([run_id, *values(row)]) for row in rows]
    if not lines:
        return
    statement = f"COPY {table} (run_id, {', '.join(columns)}) FROM STDIN"
    raw: Any = session.connection().connection
    with raw.cursor() as cursor:
        try:
            cursor.copy_expert(statement, io.StringIO("".join(lines)), COPY_CHARACTERS)
        except psycopg2.Error as error:  # as SQLAlchemy tells of its own statements, so that an outage is known as one
            closed = bool(cursor.connection.closed)
            told = DBAPIError.instance(statement, None, error, psycopg2.Error, connection_invalidated=closed)
            assert isinstance(told, DBAPIError)  # noqa: S101 - only errors of other drivers are left as they are
            raise told from error


def _line(values: Sequence[str | int | None]) -> str:
    """A row in COPY's text format; plain values, the most of them, are looked at all at once."""
    if None not in values:
        words = [str(value) for value in values]
        all_words = "".join(words)
        if "\\" not in all_words and all_words.isprintable():
            return "\t".join(words) + "\n"
    return "\t".join([_field(value) for value in values]) + "\n"


def _field(value: str | int | None) -> str:
    """A value in COPY's text format."""
    if value is None:
        return r"\N"
    words = str(value)
    if "\\" in words:
        words = words.replace("\\", "\\\\")
    if not words.isprintable():  # tab, newline and carriage return are not
        words = words.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return words
