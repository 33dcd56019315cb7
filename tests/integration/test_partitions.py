"""The months of the log: made when missing, dropped when old, and writers never notice."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from consumers import partitions
from consumers.outage import Outage
from schemas.events import Interaction
from schemas.settings import DatabaseSettings
from tests.support.ingest_world import connect, store

pytestmark = pytest.mark.integration
TODAY = date(2026, 11, 23)


@pytest.fixture
def database(database_url: str) -> DatabaseSettings:
    return DatabaseSettings.model_validate({"url": database_url})


@pytest.fixture
def connection(database: DatabaseSettings) -> Iterator[Any]:
    made = connect(database)
    yield made
    made.close()


def click(number: int, at: datetime) -> Interaction:
    return Interaction(
        event_id=UUID(int=number, version=4), user_id=f"u{number % 3}", item_id="i", kind="click", occurred_at=at
    )


def query(connection: Any, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with connection, connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def aged(connection: Any, since: str = "1970-01-01") -> None:
    """As if what is stored, dated `since` or later, had come in years ago."""
    query(connection, "UPDATE interactions SET ingested_at = '2020-01-01' WHERE occurred_at >= %s", since)


def months(connection: Any) -> dict[str, int]:
    """Rows of the log in each of its partitions."""
    return dict(query(connection, "SELECT tableoid::regclass::text, count(*) FROM interactions GROUP BY 1"))


def until(true: Any) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.02)


def test_retention_counts_from_when_events_came_in(database: DatabaseSettings, connection: Any) -> None:
    """Clicks of 1997 that were imported today stay; clicks that were stored in their own time go with it."""
    store(connection, [click(1, datetime(1997, 9, 20, tzinfo=UTC)), click(2, datetime(2023, 5, 4, tzinfo=UTC))])
    aged(connection, since="2020-01-01")
    _, dropped = partitions.upkeep(database, 1, 24, TODAY)
    assert dropped == ["interactions_2023_05"]
    assert months(connection) == {"interactions_1997": 1}
    assert query(connection, "SELECT sum(jsonb_array_length(entries)) FROM user_histories") == [(2,)], "a history stays"
    assert partitions.upkeep(database, 1, 24, TODAY) == ([], [])


def test_writers_go_on_while_a_month_is_being_detached(database: DatabaseSettings, connection: Any) -> None:
    """A reader of long standing keeps the detaching waiting.

    In that time batches are written, also to new months.
    """
    store(connection, [click(1, datetime(2023, 5, 4, tzinfo=UTC))])
    aged(connection)
    reader, other = connect(database), connect(database)
    with reader.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("SELECT count(*) FROM interactions")
        patient = database.model_copy(update={"lock_timeout_seconds": 120.0})
        upkeep = pool.submit(partitions.upkeep, patient, 0, 24, TODAY)
        until(lambda: query(other, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(1,)])
        for number in range(2, 22):
            written = store(connection, [click(number, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=17 * number))])
            assert written.rows == {"user.interactions.v1": 1}
        assert not upkeep.done(), "everything above was written while it waited"
        reader.rollback()
        made, dropped = upkeep.result(120)
    assert dropped == ["interactions_2023_05"]
    assert made == [], "the writer needed this month first"
    assert sum(months(connection).values()) == 20
    reader.close()
    other.close()


def test_a_writer_and_upkeep_for_many_months_at_once(database: DatabaseSettings, connection: Any) -> None:
    """A hundred batches into the months beside those that go.

    Every one of them is stored at its first try.
    """
    old = [datetime(2022 + n // 12, n % 12 + 1, 3, tzinfo=UTC) for n in range(24)]
    store(connection, [click(number, at) for number, at in enumerate(old)])
    aged(connection)
    stop, stored = threading.Event(), []

    def write() -> None:
        own = connect(database)
        while not stop.is_set() or len(stored) < 100:
            number = 1_000 + len(stored)
            stored.append(store(own, [click(number, datetime(2026, 1 + number % 10, 2, tzinfo=UTC))]))
        own.close()

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        try:
            _, dropped = partitions.upkeep(database, 3, 24, TODAY)
        finally:
            stop.set()
        writer.result(120)
    assert len(dropped) == 24
    left = months(connection)
    assert min(left) == "interactions_2026_01"
    assert sum(left.values()) == len(stored)


def detach_half_way(database: DatabaseSettings, name: str) -> None:
    """Leave a partition as an upkeep leaves it that ended while a reader kept it waiting."""
    reader, detacher = connect(database), connect(database.model_copy(update={"lock_timeout_seconds": 0.3}))
    detacher.autocommit = True
    with reader.cursor() as reading, detacher.cursor() as cursor:
        reading.execute("SELECT count(*) FROM interactions")
        with pytest.raises(Exception, match="lock timeout"):
            cursor.execute(f"ALTER TABLE interactions DETACH PARTITION {name} CONCURRENTLY")
    reader.close()
    detacher.close()


def test_a_detaching_that_was_interrupted_comes_first(database: DatabaseSettings, connection: Any) -> None:
    """Postgres detaches no other partition before that: an older month must not stand in the way for good."""
    store(connection, [click(1, datetime(2023, 5, 4, tzinfo=UTC)), click(2, datetime(2023, 4, 4, tzinfo=UTC))])
    aged(connection)
    detach_half_way(database, "interactions_2023_05")
    _, dropped = partitions.upkeep(database, 0, 24, TODAY)
    assert dropped == ["interactions_2023_05", "interactions_2023_04"]
    assert months(connection) == {}


@pytest.mark.parametrize("how", ["half-way", "whole"])
def test_an_event_of_a_month_that_is_leaving_waits(database: DatabaseSettings, connection: Any, how: str) -> None:
    store(connection, [click(1, datetime(2023, 5, 4, tzinfo=UTC))])
    aged(connection)
    if how == "half-way":
        detach_half_way(database, "interactions_2023_05")
    else:
        query(connection, "ALTER TABLE interactions DETACH PARTITION interactions_2023_05")
    late = click(2, datetime(2023, 5, 30, tzinfo=UTC))
    with pytest.raises(Outage, match="interactions_2023_05 is half-way out"):
        store(connection, [late])
    assert partitions.upkeep(database, 0, 24, TODAY)[1] == ["interactions_2023_05"]
    assert store(connection, [late]).partitions_made == 1
    assert months(connection) == {"interactions_2023_05": 1}


def test_an_event_that_came_in_while_its_month_left_brings_it_back(database: DatabaseSettings, connection: Any) -> None:
    store(connection, [click(1, datetime(2023, 5, 4, tzinfo=UTC))])
    aged(connection)
    writer = connect(database)
    with writer.cursor() as cursor, ThreadPoolExecutor(1) as pool:
        cursor.execute("SELECT count(*) FROM interactions")
        patient = database.model_copy(update={"lock_timeout_seconds": 120.0})
        upkeep = pool.submit(partitions.upkeep, patient, 0, 24, TODAY)
        until(lambda: query(connection, "SELECT count(*) FROM pg_inherits WHERE inhdetachpending") == [(1,)])
        # As a transaction that found the partition still there.
        cursor.execute(
            "INSERT INTO interactions_2023_05 SELECT gen_random_uuid(), occurred_at, 'u', 'i', 'click' FROM interactions_2023_05"
        )
        writer.commit()
        assert upkeep.result(120)[1] == []
    writer.close()
    assert months(connection) == {"interactions_2023_05": 2}
    assert partitions.upkeep(database, 0, 24, TODAY) == ([], [])


def test_two_members_that_need_the_same_month_make_it_once(database: DatabaseSettings, connection: Any) -> None:
    made = []
    both = threading.Barrier(2)

    def write(number: int) -> None:
        own = connect(database)
        both.wait(60)
        made.append(store(own, [click(number, datetime(2025, 2, 1, tzinfo=UTC))]).partitions_made)
        own.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(write, number) for number in (1, 2)]:
            done.result(120)
    assert sorted(made) == [0, 1]
    assert months(connection) == {"interactions_2025_02": 2}


def test_events_of_any_past_date_make_few_partitions(database: DatabaseSettings, connection: Any) -> None:
    """FLAWS F26: each month of 56 years had one, and every question without a time locked them all."""
    dice = random.Random(26)
    now = datetime.now(UTC)
    span = (now - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()
    store(connection, [click(number, now - timedelta(seconds=dice.random() * span)) for number in range(400)])
    made = months(connection)
    assert sum(made.values()) == 400
    recent = now.year - partitions.MONTHLY_YEARS
    assert all((len(name) == len("interactions_1970")) == (int(name[13:17]) < recent) for name in made)
    assert len(made) < 130
    aged(connection)
    _, dropped = partitions.upkeep(database, 0, 24)
    assert {name for name in made if int(name[13:17]) < recent} < set(dropped), "years go as months do"


def test_a_year_that_began_in_months_goes_on_in_months_and_a_whole_one_takes_all_of_its(
    database: DatabaseSettings, connection: Any
) -> None:
    """FLAWS F26: as time passes, and where the partitions are from an earlier release."""
    with connection, connection.cursor() as cursor:
        then, later = date(1999, 6, 1), date(2026, 11, 1)
        made = [
            *partitions.make(cursor, [date(1998, 12, 1)], then),
            *partitions.make(cursor, [date(1998, 11, 1), date(1997, 3, 1), date(1997, 4, 1)], later),
            *partitions.make(cursor, [date(1997, 5, 1)], then),
        ]
    assert [span.name for span in made] == ["interactions_1998_12", "interactions_1997", "interactions_1998_11"]
