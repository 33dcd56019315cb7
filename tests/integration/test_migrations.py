"""Migrations on a real Postgres.

From empty to head and back, no drift, one migrator at a time, bounded waits.
"""

from __future__ import annotations

import threading
from datetime import date
from typing import Any

import psycopg2
import pytest

from consumers import partitions
from consumers.postgres import postgres_connection
from migrations import database
from schemas.errors import InputError, Refused, ServerUnavailable
from schemas.settings import DatabaseSettings

pytestmark = pytest.mark.integration


def connect(settings: DatabaseSettings) -> Any:
    connection = postgres_connection(settings, "pigeon-tests")
    connection.autocommit = True
    return connection


def tables(settings: DatabaseSettings) -> set[str]:
    connection = connect(settings)
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        found = {name for (name,) in cursor}
    connection.close()
    return found


def test_from_empty_to_head_and_back(empty: DatabaseSettings):
    with pytest.raises(InputError, match="pigeon db upgrade"):
        database.check(empty)
    assert database.upgrade(empty) == ("base", database.head())
    assert database.check(empty) == database.head()
    assert database.upgrade(empty) == (database.head(), database.head())
    partitions.upkeep(empty, ahead_months=2, retention_months=12)
    assert database.check(empty) == database.head(), "partitions are no drift"
    database.downgrade(empty, "base")
    assert tables(empty) == {"alembic_version"}
    database.upgrade(empty)
    assert database.check(empty) == database.head()


def test_drift_is_named(empty: DatabaseSettings):
    database.upgrade(empty)
    connection = connect(empty)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE items DROP COLUMN title")
    connection.close()
    with pytest.raises(Refused, match=r"add_column items items\.title"):
        database.check(empty)


def test_an_unknown_revision_is_an_input_error(empty: DatabaseSettings):
    with pytest.raises(InputError, match="nowhere"):
        database.upgrade(empty, "nowhere")


def test_two_migrators_at_once_take_turns(empty: DatabaseSettings):
    outcomes: list[tuple[str, str]] = []
    threads = [threading.Thread(target=lambda: outcomes.append(database.upgrade(empty))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    head = database.head()
    assert sorted(outcomes) == sorted([("base", head), (head, head)])


def test_a_busy_table_is_not_waited_for_without_bound(empty: DatabaseSettings):
    database.upgrade(empty)
    reader = connect(empty)
    reader.autocommit = False
    with reader.cursor() as cursor:
        for name in sorted(tables(empty) - {"alembic_version"}):  # whichever the newest migration changes
            cursor.execute(f"LOCK TABLE {name} IN ACCESS SHARE MODE")
    with pytest.raises(ServerUnavailable, match="lock timeout"):
        database.downgrade(empty, "base")
    reader.close()
    database.upgrade(empty)
    assert database.check(empty) == database.head(), "the failed step left nothing behind"


def test_upkeep_makes_months_ahead_and_drops_old_ones(empty: DatabaseSettings):
    database.upgrade(empty)
    made, dropped = partitions.upkeep(empty, 2, 12, today=date(2026, 11, 23))
    assert (made, dropped) == (["interactions_2026_11", "interactions_2026_12", "interactions_2027_01"], [])
    assert partitions.upkeep(empty, 2, 12, today=date(2026, 11, 23)) == ([], [])
    made, dropped = partitions.upkeep(empty, 0, 1, today=date(2027, 2, 1))
    assert (made, dropped) == (["interactions_2027_02"], ["interactions_2026_11", "interactions_2026_12"])
    assert "interactions_2026_11" not in tables(empty)


def test_upkeep_ends_what_an_interrupted_one_began(empty: DatabaseSettings):
    database.upgrade(empty)
    partitions.upkeep(empty, 1, 12, today=date(2026, 11, 1))
    reader, detacher = connect(empty), connect(empty)
    reader.autocommit = False
    with reader.cursor() as cursor:  # holds the partition, so that detaching it must wait, and gives up half-way
        cursor.execute("SELECT * FROM interactions")
    with detacher.cursor() as cursor:
        cursor.execute("SET lock_timeout = 300; SET statement_timeout = 1000")
        with pytest.raises((psycopg2.errors.QueryCanceled, psycopg2.errors.LockNotAvailable)):
            cursor.execute("ALTER TABLE interactions DETACH PARTITION interactions_2026_11 CONCURRENTLY")
    reader.close()
    with detacher.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_inherits WHERE inhdetachpending")
        assert cursor.fetchone() == (1,)
    detacher.close()
    _, dropped = partitions.upkeep(empty, 0, 1, today=date(2027, 1, 1))
    assert dropped == ["interactions_2026_11"]
