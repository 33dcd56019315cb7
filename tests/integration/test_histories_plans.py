"""What the consumer writes and the night's planner reads goes by index on a log of a million events, whatever its size."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any, cast
from uuid import uuid4

import pytest
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from consumers import partitions
from consumers.write import upsert
from generator.nightly.frozen_prompt import ServedVersions
from generator.nightly.images import CatalogImages
from generator.nightly.plan import Planner, Scope
from generator.nightly.plan_clicks import ClickRule
from generator.nightly.plan_users import _JUDGES, Criteria, PlanUsers
from generator.storage.postgres import connect as connect_night
from schemas.events import Erasure, Interaction
from schemas.settings import DatabaseSettings, Settings, load_settings
from tests.conftest import TEMPLATE
from tests.support.ingest_world import POSITIVE, connect, stage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]  # a million rows, on busy machines
START = datetime(2026, 11, 20, tzinfo=UTC)
MONTH = re.compile(r"interactions_\d{4}_\d{2}")
MONTHS = [partitions.add_months(date(2026, 1, 1), number) for number in range(12)]
FILL = (
    """INSERT INTO interactions (event_id, occurred_at, user_id, item_id, kind)
       SELECT md5(n::text)::uuid, timestamptz '2026-01-01Z' + n * interval '31 seconds',
              'u' || n * 7919 % 100000, 'i' || n * 104729 % 20000, 'click' FROM generate_series(1::bigint, 1000000) n""",
    """INSERT INTO user_histories (user_id, entries, fingerprint, interaction_count, last_occurred_at)
       SELECT 'u' || n, jsonb_build_array(jsonb_build_object('event_id', md5(n::text)::uuid, 'item_id', 'i' || n % 20000,
              'kind', 'click', 'occurred_at', '2026-06-01T00:00:00Z')), md5(n::text), 1, '2026-06-01Z'
       FROM generate_series(0, 99999) n""",
    """INSERT INTO recommendations (user_id, item_ids, occurred_at)
       SELECT 'u' || n, ARRAY['i' || n % 20000], '2026-06-01Z' FROM generate_series(0, 99999) n""",
    "INSERT INTO items (item_id, title) SELECT 'i' || n, 't' FROM generate_series(0, 19999) n",
    """INSERT INTO poster_feedback (event_id, poster_id, user_id, item_id, action, occurred_at)
       SELECT md5(n::text)::uuid, 'p' || n, 'u' || n, 'i', 'click', '2026-06-01Z' FROM generate_series(0, 99999) n""",
    """INSERT INTO night_runs (run_id, logical_date, status, model_version, fencing_token)
       SELECT 'r' || n, date '2026-01-01' + n, 'published', 'nano-1', 1 FROM generate_series(0, 2) n""",
    """INSERT INTO night_tasks (run_id, user_id, item_id, status, input_fingerprint, model_version, adapter_version, seed)
       SELECT 'r' || n % 3, 'u' || n / 3, 'i', 'done', '', 'nano-1', 1, 1 FROM generate_series(0, 299999) n""",
    "INSERT INTO items (item_id, title) VALUES ('i', 't')",
    """UPDATE night_runs SET settings = '{"served": {"tokenizer": "t"}}'""",
    """INSERT INTO pictures (picture_key, drawing_version, tokens, status, art_key, art_sha256, embedding)
       VALUES ('k', 'd', '{1}', 'drawn', 'art/s.png', 's', '{1}')""",
    """INSERT INTO posters (poster_id, run_id, user_id, item_id, variant, input_fingerprint, model_version, alpha, seed, tokens,
                            picture_key, art_key, art_sha256, image_key, image_sha256, width, height, look, cs, cis_reference,
                            cis_history, score, propensity, safety)
       SELECT 'p' || n, 'r0', 'u' || n, 'i', 0, '', 'nano-1', 0, 1, '{1}', 'k', 'art/s.png', 's', 'posters/s.webp', 's', 1, 1, '',
              0, 0, 0, 0, 1, 'unchecked' FROM generate_series(0, 99999) n""",
    """INSERT INTO planned_users (user_id, history_fingerprint, targets_fingerprint, drawing_fingerprint, planned_at)
       SELECT 'u' || n, 'of before', '', '', now() FROM generate_series(0, 99999) n""",
)


@pytest.fixture(scope="module")
def filled(shared_settings: Settings, template_database: str) -> Iterator[DatabaseSettings]:
    """A database of a million interactions of a hundred thousand users in twelve months, analysed."""
    name = "a_million"
    server = connect(shared_settings.database)
    server.autocommit = True
    with server.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    settings = DatabaseSettings.model_validate({"url": f"{template_database}/{name}"})
    connection = connect(settings.model_copy(update={"statement_timeout_seconds": 600.0}))
    connection.autocommit = True
    with connection.cursor() as cursor:
        partitions.make(cursor, MONTHS)
        for statement in FILL:
            cursor.execute(statement)
        cursor.execute("ANALYZE")
    connection.close()
    yield settings
    with server.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    server.close()


class Explaining:
    """A cursor that has each statement explained before it is executed."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self.plans: list[dict[str, Any]] = []

    def execute(self, statement: str, values: Any = None) -> None:
        if any(verb in statement for verb in ("INSERT", "UPDATE", "DELETE", "FOR UPDATE")):
            self._cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
            self.plans.append(self._cursor.fetchone()[0][0]["Plan"])
        self._cursor.execute(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


def scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(table, index) of every scan in a plan, months as one.

    The index is "" where a table is read from end to end.
    """
    below = [scan for child in plan.get("Plans", []) for scan in scans(child)]
    if plan["Node Type"] == "Bitmap Index Scan":
        below.append(("", plan["Index Name"]))
    elif plan["Node Type"].endswith("Scan") and "Relation Name" in plan:
        bitmap = "".join(index for table, index in below if not table)
        below.append((plan["Relation Name"], plan.get("Index Name", bitmap)))
    below += [(plan["Relation Name"], arbiter) for arbiter in plan.get("Conflict Arbiter Indexes", [])]
    return ((MONTH.sub("interactions", table), MONTH.sub("interactions", index)) for table, index in below)


def by_index(plans: list[dict[str, Any]], *large: str) -> set[tuple[str, str]]:
    """(table, index) of all scans of `large` tables, none of which is read from end to end."""
    found = {scan for plan in plans for scan in scans(plan) if scan[0] in large}
    assert not [table for table, index in found if not index], json.dumps(plans)
    return found


def applied(settings: DatabaseSettings, events: list[Any]) -> list[dict[str, Any]]:
    """The plans of one batch, which is not kept."""
    connection = connect(settings)
    with connection.cursor() as cursor:
        staged = stage(cursor, events)
        explaining = Explaining(cursor)
        upsert.apply(explaining, staged, POSITIVE, 50)
    connection.close()
    return explaining.plans


@pytest.mark.parametrize("count", [1, 5_000])
def test_a_batch_of_interactions_goes_by_index(filled: DatabaseSettings, count: int) -> None:
    events = [
        Interaction(
            event_id=uuid4(),
            user_id=f"u{n * 31 % 100_000}",
            item_id="i1",
            kind="click",
            occurred_at=START + timedelta(minutes=n),
        )
        for n in range(count)
    ]
    assert by_index(applied(filled, events), "interactions", "user_histories") == {
        ("interactions", "interactions_pkey"),
        ("user_histories", "pk_user_histories"),
    }


@pytest.fixture
def counted_while_empty(filled: DatabaseSettings) -> Iterator[None]:
    """Statistics as autovacuum leaves them when it comes by while the first batch is not committed.

    Pages without rows.
    """
    connection = connect(filled)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("UPDATE pg_class SET reltuples = 0 WHERE relname ~ '^(pk_)?(user_histories|erasures)$'")
        yield
        cursor.execute("ANALYZE user_histories, erasures")
    connection.close()


@pytest.mark.usefixtures("counted_while_empty")
def test_a_batch_goes_by_index_where_the_histories_pass_for_none(filled: DatabaseSettings) -> None:
    """Joined with such a table, a batch took until its statement timeout."""
    events = [
        Interaction(event_id=uuid4(), user_id=f"u{n * 31 % 100_000}", item_id="i1", kind="click", occurred_at=START)
        for n in range(5_000)
    ]
    assert by_index(applied(filled, events), "interactions", "user_histories") == {
        ("interactions", "interactions_pkey"),
        ("user_histories", "pk_user_histories"),
    }


def test_an_erasure_goes_by_index(filled: DatabaseSettings) -> None:
    events = [Erasure(user_id=f"u{n * 31}", occurred_at=datetime(2026, 6, 2, tzinfo=UTC)) for n in range(20)]
    large = ("interactions", "user_histories", "poster_feedback", "recommendations")
    assert by_index(applied(filled, events), *large) == {
        ("interactions", "interactions_user_id_occurred_at_idx"),
        ("user_histories", "pk_user_histories"),
        ("poster_feedback", "ix_poster_feedback_user_id_item_id"),
        ("recommendations", "pk_recommendations"),
    }


@pytest.mark.parametrize("users", [None, ("u7", "u77")])
def test_the_planner_reads_by_index(filled: DatabaseSettings, users: tuple[str, ...] | None) -> None:
    """But for the one statement that counts what is popular: it reads every history, once a night."""
    statements: list[tuple[str, Any]] = []
    engine = connect_night(filled)
    event.listen(engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    settings = load_settings(database=filled, night={"min_history": 1})
    with Session(engine) as session:
        planner = Planner(
            session, settings, cast(CatalogImages, None), ServedVersions("v1", "d1", "b1"), date(2026, 12, 1)
        )  # no item has a picture
        chunks = list(islice(planner.chunks(Scope(users=users)), 6))
        assert sum(len(chunk.skips) for chunk in chunks) > 0
        raw = cast(Any, session.connection().connection.cursor())
        plans = []
        for statement, values in statements:
            if "jsonb_array_elements" not in statement:
                raw.execute(f"EXPLAIN (FORMAT JSON) {statement}", values)
                plans.append(raw.fetchone()[0][0]["Plan"])
    engine.dispose()
    assert by_index(plans, "user_histories", "recommendations", "planned_users", "items", "night_tasks") == {
        ("user_histories", "pk_user_histories"),
        ("recommendations", "pk_recommendations"),
        ("planned_users", "pk_planned_users"),
        ("items", "pk_items"),
        ("night_tasks", "ix_night_tasks_user_id_item_id"),
    }


def actual(plan: dict[str, Any], table: str) -> float:
    """Rows of a table that a plan came across."""
    own = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    here = own if plan.get("Relation Name") == table else 0
    return here + sum(actual(child, table) for child in plan.get("Plans", []))


@pytest.mark.parametrize("clicks", [False, True], ids=["catalogue", "clicked"])
def test_a_page_of_users_reads_no_other_rows_wherever_it_is(filled: DatabaseSettings, clicks: bool) -> None:
    """A merge join used to read each joined table from its start, more for every page."""
    rule = ClickRule.of(load_settings(), "t", date(2026, 8, 1)) if clicks else None
    engine = connect_night(filled)
    with Session(engine) as session:
        pages = PlanUsers(session)._bounds("", None, 1000, only=None)
        after, until = list(islice(pages, 80))[-1]
        values = {
            **Criteria(date(2026, 12, 1), "drawing").values(),
            **(rule.values() if rule else {}),
            "only": None,
            "newest_change": 1,
            "after": after,
            "until": until,
        }
        explained = text(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {_JUDGES[clicks].text}")
        (plan,) = session.execute(explained, values).scalar_one()
    engine.dispose()
    for table in ("user_histories", "recommendations", "planned_users"):
        assert actual(plan["Plan"], table) == 1000, json.dumps(plan)
    if clicks:
        assert ("poster_feedback", "ix_poster_feedback_reactions") in scans(plan["Plan"])
        assert actual(plan["Plan"], "posters") == 1000, json.dumps(plan)
        assert actual(plan["Plan"], "poster_feedback") <= 2000, "the clicks, and what else was done with their items"
