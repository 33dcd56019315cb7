"""COPY of a batch's rows into temporary tables, one per topic, from which set-based SQL goes on."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from consumers.write.decode import Row
from schemas.events import CATALOG, ERASURE, FEEDBACK, INTERACTIONS, OBJECTION, RECOMMENDATIONS

# Temporary table of each topic; `seq` is the record's place in the batch. Rows: consumers/write/decode.py.
TABLES: dict[str, tuple[str, str]] = {
    CATALOG: (
        "stage_items",
        "seq int, item_id text, title text, description text, genres jsonb, image_uri text, attributes jsonb, "
        "occurred_at timestamptz, deleted boolean",
    ),
    INTERACTIONS: (
        "stage_interactions",
        "seq int, event_id uuid, occurred_at timestamptz, claimed_at timestamptz, user_id text, item_id text, "
        "kind text, context jsonb",
    ),
    RECOMMENDATIONS: ("stage_recommendations", "seq int, user_id text, item_ids jsonb, occurred_at timestamptz"),
    FEEDBACK: (
        "stage_feedback",
        "seq int, event_id uuid, poster_id text, user_id text, item_id text, action text, position bigint, "
        "surface text, propensity real, request_id text, occurred_at timestamptz, claimed_at timestamptz",
    ),
    ERASURE: ("stage_erasures", "seq int, user_id text, requested_at timestamptz"),
    OBJECTION: ("stage_objections", "seq int, user_id text, objects boolean, occurred_at timestamptz, reason text"),
}


COPY_CHARACTERS = 2**20
"""Characters that COPY reads at a time.

Each read waits for the thread that decodes: at the default of 8 KiB that takes longer than the COPY itself.
"""


def create(cursor: Any) -> None:
    """Make the temporary tables; they live as long as the connection and are emptied by each commit."""
    for table, columns in TABLES.values():
        cursor.execute(f"CREATE TEMPORARY TABLE IF NOT EXISTS {table} ({columns}) ON COMMIT DELETE ROWS")
    # Interactions that were new to the log: what the histories are made of.
    cursor.execute(
        "CREATE TEMPORARY TABLE IF NOT EXISTS fresh_interactions (event_id uuid, user_id text, item_id text, kind text, "
        "occurred_at timestamptz) ON COMMIT DELETE ROWS"
    )


def encode(value: object) -> str:
    """One value in COPY's text format."""
    if value is None:
        return r"\N"
    if isinstance(value, str):
        if "\\" in value:
            value = value.replace("\\", "\\\\")
        if not value.isprintable():  # tab, newline and carriage return are not
            value = value.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if value is True or value is False:
        return "t" if value else "f"
    return str(value)


def line(seq: int, row: Row) -> str:
    """One row in COPY's text format, at its place in the batch."""
    # Plain text, the most of it, without a call.
    fields = [v if v.__class__ is str and v.isprintable() and "\\" not in v else encode(v) for v in row]
    return f"{seq}\t" + "\t".join(fields)


def copy(cursor: Any, topic: str, lines: Iterable[str]) -> None:
    """COPY lines into the topic's temporary table."""
    text = "\n".join([*lines, ""])
    cursor.copy_expert(f"COPY {TABLES[topic][0]} FROM STDIN", io.StringIO(text), COPY_CHARACTERS)
