"""What a build has read of its source, in one SQLite file, so that memory does not grow with it.

A build that was killed finds here which parts are done, and goes on with the rest.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import InputError

COMMIT_ROWS = 50_000
"""Rows between two commits while a source is read."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, title TEXT NOT NULL, description TEXT NOT NULL, image_uri TEXT, image TEXT, problem TEXT
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS clicks (
    user_id TEXT NOT NULL, item_id TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (user_id, item_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS given (
    number INTEGER PRIMARY KEY, user_id TEXT NOT NULL, at INTEGER NOT NULL, history TEXT NOT NULL, reference TEXT NOT NULL,
    target_codes TEXT, target_uri TEXT, target_image TEXT, split TEXT
);
CREATE TABLE IF NOT EXISTS images (sha256 TEXT PRIMARY KEY, png BLOB NOT NULL) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS usable AS
    SELECT c.user_id, c.at, c.item_id FROM clicks c JOIN items i USING (item_id) WHERE i.image IS NOT NULL;
CREATE VIEW IF NOT EXISTS clicked AS SELECT * FROM items WHERE item_id IN (SELECT item_id FROM clicks);
CREATE VIEW IF NOT EXISTS wanted AS
    SELECT image_uri AS uri FROM items WHERE image IS NULL AND problem IS NULL AND image_uri IS NOT NULL AND (
        item_id IN (SELECT item_id FROM clicks)
        OR item_id IN (SELECT reference FROM given) OR item_id IN (SELECT value FROM given, json_each(given.history)))
    UNION SELECT target_uri FROM given WHERE target_uri IS NOT NULL AND target_image IS NULL;
"""


class ItemRow(NamedTuple):
    """An item as its source has it."""

    item_id: str
    title: str
    description: str
    image_uri: str | None


class Click(NamedTuple):
    """A positive interaction; `at` in microseconds since 1970, UTC."""

    user_id: str
    item_id: str
    at: int


class GivenWindow(NamedTuple):
    """A window that its source gives as it is to be learned."""

    user_id: str
    at: int
    history: tuple[str, ...]
    reference: str
    target_codes: tuple[int, ...] | None
    target_uri: str | None
    split: str | None


class Scratch:
    """The scratch file of one build; another source or another request starts over."""

    def __init__(self, path: Path, request: str) -> None:
        """Open the file, or begin it again where it is of another `request`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.db = self._open()
        if self.fact("request") not in (None, request):
            self.db.close()
            path.unlink()
            self.db = self._open()
        self.set_fact("request", request)
        self.db.commit()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.executescript(SCHEMA)
        return db

    def close(self) -> None:
        self.db.close()

    def delete(self) -> None:
        """Delete the file: the data set is there."""
        self.db.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def fact(self, name: str) -> str | None:
        """A remembered text, None where there is none."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        self.db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def counts(self, name: str) -> Counter[str]:
        """Counts by reason that a part of the build left behind."""
        return Counter(json.loads(self.fact(name) or "{}"))

    @contextmanager
    def part(self, name: str) -> Iterator[Counter[str] | None]:
        """A part of the build and its counts; None where it was done before.

        What it wrote is committed when it ends, and rolled back when it is killed.
        """
        if self.fact(f"done:{name}"):
            yield None
            return
        counts: Counter[str] = Counter()
        with self.db:  # commits at its end, and rolls back whatever ends it before
            yield counts
            self.set_fact(f"counts:{name}", json.dumps(counts))
            self.set_fact(f"done:{name}", "1")

    def add_items(self, rows: Iterable[ItemRow]) -> int:
        """Store items, a later row in the place of an earlier one; returns how many rows."""
        before = self.db.total_changes
        self.db.executemany(
            "INSERT INTO items (item_id, title, description, image_uri) VALUES (?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET "
            "title = excluded.title, description = excluded.description, image_uri = excluded.image_uri",
            rows,
        )
        return self.db.total_changes - before

    def add_clicks(self, rows: Iterable[Click]) -> int:
        """Store clicks, of a user's several with one item the first in time; returns how many rows."""
        before = self.db.total_changes
        self.db.executemany(
            "INSERT INTO clicks VALUES (?, ?, ?) ON CONFLICT (user_id, item_id) DO UPDATE SET at = min(at, excluded.at)",
            rows,
        )
        return self.db.total_changes - before

    def add_given(self, rows: Iterable[GivenWindow]) -> int:
        """Store windows as they are given, in their order."""
        before = self.db.total_changes
        self.db.executemany(
            "INSERT INTO given (user_id, at, history, reference, target_codes, target_uri, split) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    row.user_id,
                    row.at,
                    json.dumps(row.history),
                    row.reference,
                    None if row.target_codes is None else json.dumps(row.target_codes),
                    row.target_uri,
                    row.split,
                )
                for row in rows
            ),
        )
        return self.db.total_changes - before

    def one(self, query: str, *values: Any) -> Any:
        """The first column of a query's only row."""
        return self.db.execute(query, values).fetchone()[0]

    def erase(self, users: Iterable[str]) -> int:
        """Delete what is here of users; returns how many rows."""
        before = self.db.total_changes
        rows = [(user,) for user in users]
        self.db.executemany("DELETE FROM clicks WHERE user_id = ?", rows)
        self.db.executemany("DELETE FROM given WHERE user_id = ?", rows)
        self.db.commit()
        return self.db.total_changes - before


@contextmanager
def clear_disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk into a line that says what to do.

    Raises:
        InputError: a file cannot be written.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        raise InputError(f"{folder}: {error}; free some space and run it again, it goes on where it was") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{folder}: the scratch file is damaged ({error}); run it again with --fresh") from error
    except OSError as error:
        if error.errno is None or (error.filename is None and error.strerror is None):
            raise
        where = error.filename or folder
        raise InputError(
            f"{where}: {error.strerror}; free some space or give another folder, and run it again"
        ) from error
