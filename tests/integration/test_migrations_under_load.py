"""The previous release writes while the newest migrations run, and works on their schema."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from consumers import partitions
from consumers.postgres import postgres_connection
from migrations import database
from schemas.settings import DatabaseSettings
from tests.support.recorded_statements import FILE

pytestmark = pytest.mark.integration
LANDED = "0008"
"""Revision of the release whose statements are recorded in tests/golden/statements.json."""
WRITERS = 3
_WRITES = (
    "INSERT INTO items (item_id, title) VALUES (%(id)s, 'Heat') ON CONFLICT (item_id) DO UPDATE SET updated_at = now()",
    "INSERT INTO interactions (event_id, occurred_at, user_id, item_id, kind) VALUES (gen_random_uuid(), now(), %(id)s, 'i', 'click')",
    """INSERT INTO poster_feedback (event_id, poster_id, user_id, item_id, action, occurred_at)
       VALUES (gen_random_uuid(), 'p', %(id)s, 'i', 'click', now())""",
    """INSERT INTO dead_letter_actions (topic, topic_id, partition, "offset", action) VALUES (%(id)s, '', 0, 0, 'dropped')""",
    """INSERT INTO consumer_offsets AS o (group_id, topic, partition, next_offset, owner, owner_epoch)
       VALUES ('pigeon', %(writer)s, 0, 1, 'w', 1)
       ON CONFLICT (group_id, topic, partition) DO UPDATE SET next_offset = o.next_offset + 1""",
)


class Writer(threading.Thread):
    """Commits a row of each table at a time, as a member of the previous release, until it is stopped."""

    def __init__(self, settings: DatabaseSettings, name: str) -> None:
        super().__init__(name=name)
        self.committed = 0
        self.error: psycopg2.Error | None = None
        self._settings = settings
        self._stop_now = threading.Event()

    def run(self) -> None:
        connection = postgres_connection(self._settings, "pigeon-consumer")
        try:
            for number in itertools.count():
                with connection, connection.cursor() as cursor:
                    for statement in _WRITES:
                        cursor.execute(statement, {"id": f"{self.name}-{number}", "writer": self.name})
                self.committed += 1
                if self._stop_now.is_set():
                    return
        except psycopg2.Error as error:
            self.error = error
        finally:
            connection.close()

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


@pytest.fixture
def landed(empty: DatabaseSettings) -> DatabaseSettings:
    """A database as the previous release left it."""
    database.upgrade(empty, LANDED)
    partitions.upkeep(empty, 1, 12)
    return empty


@pytest.fixture
def writers(landed: DatabaseSettings) -> Iterator[list[Writer]]:
    started = [Writer(landed, f"w{number}") for number in range(WRITERS)]
    for one in started:
        one.start()
    yield started
    for one in started:
        one.stop()


def wait_for(writers: list[Writer], more: int) -> None:
    """Until each has committed that many more."""
    goals = [one.committed + more for one in writers]
    while any(one.is_alive() and one.committed < goal for one, goal in zip(writers, goals, strict=True)):
        threading.Event().wait(0.01)


def rows(settings: DatabaseSettings, statement: str) -> Any:
    connection = postgres_connection(settings, "pigeon-tests")
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()
    finally:
        connection.close()


def test_fault_15_two_migrators_while_the_previous_release_writes(
    landed: DatabaseSettings, writers: list[Writer]
) -> None:
    """Fault 15: under load, two at once.

    A writer that waited for a lock for longer than its lock timeout, 1 s, would fail.
    """
    wait_for(writers, 5)
    outcomes: list[tuple[str, str]] = []
    migrators = [threading.Thread(target=lambda: outcomes.append(database.upgrade(landed))) for _ in range(2)]
    for one in migrators:
        one.start()
    for one in migrators:
        one.join()
    wait_for(writers, 5)
    for one in writers:
        one.stop()
    head = database.head()
    assert sorted(outcomes) == sorted([(LANDED, head), (head, head)]), "one after the other"
    assert [one.error for one in writers] == [None] * WRITERS
    committed = sum(one.committed for one in writers)
    for table in ("items", "interactions", "poster_feedback", "dead_letter_actions"):
        assert rows(landed, f"SELECT count(*) FROM {table}") == [(committed,)], table  # noqa: S608 - our own names
    assert rows(landed, "SELECT sum(next_offset) FROM consumer_offsets") == [(committed,)]
    assert database.check(landed) == head


def test_fault_15_what_the_previous_release_sends_is_understood_by_the_new_schema(landed: DatabaseSettings) -> None:
    """Fault 15: the recorded statements of revision 0008, parsed by Postgres at the newest revision."""
    database.upgrade(landed)
    recorded: dict[str, list[str]] = json.loads(FILE.read_text())
    refused: list[str] = []
    for sender, statements in recorded.items():
        connection = postgres_connection(landed, "pigeon-tests")
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in sorted(statements, key=lambda one: not one.startswith("CREATE TEMPORARY")):
                temporary = statement.startswith("CREATE TEMPORARY")
                try:
                    cursor.execute(statement if temporary else f"PREPARE sent AS {statement}")
                    cursor.execute("SELECT 1" if temporary else "DEALLOCATE sent")
                except psycopg2.Error as error:
                    refused.append(f"{sender}: {error}\n{statement}")
        connection.close()
    assert not refused, "\n\n".join(refused)
