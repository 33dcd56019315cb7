"""Every part works with its rights of deploy/postgres/roles.sql, and with no others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
from pydantic import SecretStr
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from consumers import dead_letters, partitions
from consumers.outage import Outage
from consumers.postgres import postgres_connection
from generator.feedback import registry
from generator.metrics.collector import StoredMetrics
from generator.nightly.objections import set_objection
from generator.nightly.plan import Scope
from generator.nightly.status import status_of
from generator.nightly.withdraw import lift, withdraw
from generator.storage.postgres import connect
from generator.upkeep.erase import erase_users
from generator.upkeep.retention import upkeep
from schemas.errors import ServerUnavailable
from schemas.events import (
    CONSUMED,
    INTERACTIONS,
    CatalogItem,
    Erasure,
    Event,
    Objection,
    PosterFeedback,
    Recommendations,
)
from schemas.settings import Settings
from schemas.tables import Base
from tests.support.consume_world import click, consume, query, send, send_raw
from tests.support.night_world import build, night, reader
from tests.support.schedule_world import DAY, Clock, Commands, moments, running, scheduled, until

pytestmark = pytest.mark.integration

ROLES = Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql"
_numbers = itertools.count(1)

Login = Callable[[str], Settings]


@pytest.fixture
def login(settings: Settings) -> Iterator[Login]:
    """Settings of a login that has one of the roles, in this test's database."""
    connection = postgres_connection(settings.database, "pigeon-tests")
    connection.autocommit = True
    made: list[str] = []

    def create(role: str) -> Settings:
        name = f"test_login_{next(_numbers)}"
        with connection.cursor() as cursor:
            cursor.execute(ROLES.read_text())
            cursor.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret' IN ROLE {role}")
        made.append(name)
        url = make_url(settings.database.url.get_secret_value()).set(username=name, password="secret")
        own = SecretStr(url.render_as_string(hide_password=False))
        return settings.model_copy(update={"database": settings.database.model_copy(update={"url": own})})

    yield create
    with connection.cursor() as cursor:
        for name in made:
            cursor.execute(f"DROP ROLE {name}")  # it owns nothing
    connection.close()


def refused(settings: Settings, statement: str) -> bool:
    """Whether Postgres says that this login has no right to do it."""
    try:
        query(settings, statement)
    except psycopg2.errors.InsufficientPrivilege:
        return True
    return False


def happened() -> list[Event]:
    now = datetime.now(UTC) - timedelta(minutes=1)
    return [
        CatalogItem(item_id="i1", title="Heat", occurred_at=now),
        click(1, "u1", now),
        click(2, "u2", now),
        Recommendations(user_id="u1", item_ids=["i1"], occurred_at=now),
        PosterFeedback(
            event_id=click(3).event_id, poster_id="p", user_id="u1", item_id="i1", action="click", occurred_at=now
        ),
        Objection(user_id="u3", objects=True, occurred_at=now),
        Erasure(user_id="u2", occurred_at=now + timedelta(seconds=1)),
    ]


def test_a_consumer_stores_every_kind_of_event_and_erases(settings: Settings, login: Login) -> None:
    mine = login("pigeon_ingest")
    partitions.upkeep(settings.database, 1, 24)
    send(settings, happened())
    send_raw(settings, INTERACTIONS, [b"{"])
    summary = consume(mine, CONSUMED)
    assert (summary.records, summary.poison) == (8, 1)
    assert query(settings, "SELECT count(*) FROM dead_letters") == [(1,)]
    console = login("pigeon_night")
    assert dead_letters.drop(console, dead_letters.open_letters(console)) == 1
    assert query(settings, "SELECT user_id FROM user_histories") == [("u1",)]
    assert query(settings, "SELECT user_id FROM erasures") == [("u2",)]
    assert query(settings, "SELECT count(*) FROM consumer_offsets")[0][0] > 0
    assert refused(mine, "DELETE FROM posters")
    assert refused(mine, "SELECT 1 FROM model_versions")
    assert refused(mine, "CREATE TABLE mine (i int)")
    assert refused(mine, "DROP TABLE interactions")


def test_a_consumer_waits_where_the_owner_has_to_make_a_month(settings: Settings, login: Login) -> None:
    mine = login("pigeon_ingest").database
    with pytest.raises(ServerUnavailable, match="as the tables' owner"):
        partitions.upkeep(mine, 1, 24, today=date(2031, 5, 1))
    connection = postgres_connection(mine, "pigeon-tests")
    with connection, connection.cursor() as cursor, pytest.raises(Outage, match="pigeon db upkeep"):
        partitions.make(cursor, [date(2031, 5, 1)])
    connection.close()


def test_a_night_is_drawn_shown_taken_back_and_erased(settings: Settings, login: Login, tmp_path: Path) -> None:
    build(settings, tmp_path / "art", users=3, targets=2)
    partitions.upkeep(settings.database, 3, 24)
    mine = login("pigeon_night")
    night(mine).run(Scope())
    shown = reader(mine).rows().to_pylist()
    assert {row["user_id"] for row in shown} == {"u0", "u1", "u2"}
    poster = shown[0]["poster_id"]
    withdraw(mine, "poster", poster, reason="no")
    lift(mine, "poster", poster, reason="yes")
    set_objection(mine, "u2", objects=True, reason="asked")
    query(settings, "INSERT INTO erasures (user_id, requested_at, proof) VALUES ('u1', now(), '{}')")
    assert "1 user erased" in erase_users(mine)
    assert all(upkeep(mine))
    assert partitions.upkeep(mine.database, 3, 24) == ([], [])
    assert status_of(mine, None)["status"] == "published"
    engine = connect(mine.database)
    with Session(engine) as session, session.begin():
        registry.ensure_champion(session, "nano", "sha")
    engine.dispose()
    for statement in (
        "INSERT INTO interactions (event_id, occurred_at, user_id, item_id, kind) VALUES (gen_random_uuid(), now(), 'u', 'i', 'k')",
        "DELETE FROM user_histories",
        "UPDATE consumer_offsets SET next_offset = 0",
        "DELETE FROM erasures",
        "ALTER TABLE posters ADD COLUMN mine int",
        "CREATE TABLE mine (i int)",
    ):
        assert refused(mine, statement), statement


def test_a_scheduler_leads_and_takes_up_what_is_due(settings: Settings, login: Login) -> None:
    mine = scheduled(login("pigeon_night"))
    clock = Clock(DAY + timedelta(hours=2, minutes=1))
    commands = Commands(settings)
    with running(mine, commands, clock):
        until(lambda: moments(settings) and all(status == "done" for status, _ in moments(settings).values()))
    assert commands.nights == ["2026-03-02"]


def test_who_only_looks_sees_nights_and_figures_and_changes_nothing(
    settings: Settings, login: Login, tmp_path: Path
) -> None:
    build(settings, tmp_path / "art", users=1, targets=1)
    night(settings).run(Scope())
    mine = login("pigeon_read")
    assert status_of(mine, None)["status"] == "published"
    stored = StoredMetrics(mine)
    figures = {family.name: family.samples[0].value for family in stored.collect() if family.samples}
    stored.close()
    assert figures["pigeon_database_reachable"] == 1
    assert figures["pigeon_night_uploaded_bytes"] > 0
    for table in Base.metadata.tables:
        assert refused(mine, f"DELETE FROM {table}"), table  # noqa: S608 - our own names


def test_every_table_is_given_to_a_role(settings: Settings, login: Login) -> None:
    login("pigeon_night")
    given = query(
        settings,
        "SELECT DISTINCT table_name FROM information_schema.role_table_grants WHERE privilege_type = 'INSERT' "
        "AND grantee IN ('pigeon_ingest', 'pigeon_night')",
    )
    assert {name for (name,) in given} == set(Base.metadata.tables), "deploy/postgres/roles.sql forgets a table"
