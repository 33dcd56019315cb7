"""Fault 18: erasure while a night runs, by two at once, killed in the middle; on real Postgres and S3.

The model is a test double.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import or_, select, text, update
from sqlalchemy.orm import Session

from generator.nightly.erasure_fence import check_claim
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Scope
from generator.nightly.rows import Chunk, PlannedTask, PlanTotals, Skip
from generator.storage.lease import lead
from generator.storage.objects import Store
from generator.storage.postgres import connect
from generator.upkeep.erase import erase_users
from generator.upkeep.unused_files import naming
from schemas import faultpoints
from schemas.errors import LockHeld
from schemas.manifest import PosterManifest
from schemas.settings import Settings
from schemas.tables import NightRun, Poster
from tests.support.night_world import NIGHT, Announcements, build, night, reader, set_user
from tests.support.upkeep_world import ask_to_erase, dies, proof_of, traces, unnamed

pytestmark = [pytest.mark.integration, pytest.mark.faults]
TOMORROW = date(2026, 3, 2)
USER = "u-erased"


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Two users, and one that is to be erased."""
    build(settings, tmp_path / "art", users=2, targets=1)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        set_user(session, USER, ["item1", "item3", "item5", "item6"], ["item9", "item10"])
    engine.dispose()
    yield settings
    faultpoints.handler = None


def at(point: str, work: Callable[[], object]) -> None:
    """Do something when a point is first reached, in the thread that reaches it."""
    done = threading.Event()

    def handler(reached: str) -> None:
        if reached == point and not done.is_set():
            done.set()
            work()

    faultpoints.handler = handler


def users_of(manifest: PosterManifest) -> set[str]:
    return {row["user_id"] for row in manifest.rows().to_pylist()}


@pytest.mark.parametrize(
    "point",
    ["planned", "answered", "stored", "composition stored", "finished", "judged", "manifest stored", "published"],
)
def test_a_user_who_is_erased_in_the_middle_of_a_night_does_not_come_back(world: Settings, point: str) -> None:
    """Fault 18: the request arrives, and is worked on, when the night has come to this point."""
    night(world, on=date(2026, 2, 28)).run(Scope(users=(USER,)), publish=True)
    told: list[str] = []
    hidden: list[set[str]] = []

    def erase() -> None:
        ask_to_erase(world, USER)
        told.append(erase_users(world))
        hidden.append({USER} & set(reader(world).withdrawn.user) or users_of(reader(world)))

    engine = connect(world.database)
    with Session(engine) as session, session.begin():
        set_user(session, USER, ["item1", "item3", "item5", "item7"], ["item9", "item10"])
    at(point, erase)
    announced = Announcements()
    night(world, announcements=announced).run(Scope())

    writes_its_set = point in {"judged", "manifest stored"}
    completed, proof = proof_of(world, USER)
    assert told
    assert completed is not writes_its_set, told
    assert ("hidden, erased when the set under way is written" in told[0]) == writes_its_set
    if writes_its_set:
        assert proof["waited_for"] == [run_id_of(NIGHT)]
        assert hidden == [{USER}], "readers do not wait for it"
        assert "1 user erased" in erase_users(world)
    assert traces(world, USER) == []
    assert users_of(reader(world)) == {"u0", "u1"}
    assert reader(world).withdrawn.user == frozenset()
    assert point == "published" or {event.user_id for event in announced.events} == {"u0", "u1"}
    store = Store(world.s3)
    assert all(store.exists(row["image_key"]) for row in reader(world).rows().to_pylist())
    night(world, on=TOMORROW).run(Scope())
    assert traces(world, USER) == []
    engine.dispose()


def test_a_plan_that_is_committed_after_an_erasure_leaves_the_user_out(world: Settings) -> None:
    """Fault 18: the request is completed between the plan's snapshot and its commit."""
    engine = connect(world.database)
    night(world).run(Scope())

    def chunks() -> Iterator[Chunk]:
        for user in ("u0", USER):
            task = PlannedTask(user, "item9", "f", "a", "m", "w", 1, 7, "{}")
            yield Chunk((task,), (Skip(user, "unchanged", "item8"),))
        ask_to_erase(world, USER)
        assert "1 user erased" in erase_users(world)

    with lead(engine, "night") as lease:
        assert Ledger(engine, lease).save_plan(TOMORROW, "m", {}, chunks()) == PlanTotals(1, 1)
    assert traces(world, USER) == []
    engine.dispose()


def test_of_two_erasures_at_once_one_works_and_the_other_says_so(world: Settings) -> None:
    """Fault 18: the scheduler's and an operator's."""
    night(world).run(Scope())
    ask_to_erase(world, USER)
    refused: list[LockHeld] = []

    def second() -> None:
        with pytest.raises(LockHeld, match="the erasure is led by") as caught:
            erase_users(world)
        refused.append(caught.value)

    at("clean copies stored", second)
    assert "1 user erased" in erase_users(world)
    assert len(refused) == 1
    assert traces(world, USER) == []


@pytest.mark.parametrize(
    ("point", "count"), [("fenced", 1), ("clean copies stored", 1), ("pointer flipped", 1), ("file deleted", 3)]
)
def test_an_erasure_that_is_killed_is_finished_by_the_next(world: Settings, point: str, count: int) -> None:
    """Fault 18: SIGKILL at its points."""
    night(world).run(Scope())
    before = len([row for row in reader(world).rows().to_pylist() if row["user_id"] != USER])
    ask_to_erase(world, USER)
    dies(world, "erase", point, count=count)
    assert not proof_of(world, USER)[0]
    live = reader(world)
    shown = live.rows().to_pylist()
    assert len([row for row in shown if row["user_id"] != USER]) == before, "readers have a whole set meanwhile"
    assert USER in live.withdrawn.user
    assert "1 user erased" in erase_users(world)
    assert traces(world, USER) == []
    assert unnamed(world) == set()
    assert len(reader(world).rows()) == before
    completed, proof = proof_of(world, USER)
    assert completed
    assert proof["reports_deleted"]


def test_a_dead_nights_claim_keeps_nobody_waiting_and_a_night_thought_dead_publishes_nothing(world: Settings) -> None:
    """Fault 18: a night died while it wrote its set; or it only lost its session."""
    night(world).run(Scope())
    engine = connect(world.database)
    with Session(engine) as session, session.begin():
        session.execute(update(NightRun).values(figures=NightRun.figures.op("||")({"publishing": True})))
    ask_to_erase(world, USER)
    assert "1 user erased" in erase_users(world)
    assert traces(world, USER) == []
    with Session(engine) as session, pytest.raises(LockHeld, match="took the process of night-20260301 for dead"):
        check_claim(session, run_id_of(NIGHT))
    engine.dispose()


def test_in_a_bucket_with_versions_the_older_ones_go_too(world: Settings) -> None:
    """Fault 18: what was deleted before, and what is rewritten now, is in no version."""
    store = Store(world.s3)
    store.s3.put_bucket_versioning(Bucket=world.s3.bucket, VersioningConfiguration={"Status": "Enabled"})
    night(world).run(Scope())
    mine = {row["image_key"] for row in reader(world).rows().to_pylist() if row["user_id"] == USER}
    ask_to_erase(world, USER)
    erase_users(world)
    completed, proof = proof_of(world, USER)
    assert completed
    assert (proof["bucket_versions"], proof["versions_left"]) == ("on", [])
    bodies = {}
    for page in store.s3.get_paginator("list_object_versions").paginate(Bucket=world.s3.bucket):
        for version in page.get("Versions", []):
            got = store.s3.get_object(Bucket=world.s3.bucket, Key=version["Key"], VersionId=version["VersionId"])
            bodies[version["Key"], version["VersionId"]] = got["Body"].read()
    assert bodies
    shared = {row["image_key"] for row in reader(world).rows().to_pylist()}
    assert not {key for key, _ in bodies} & (mine - shared)
    assert [key for (key, _), body in bodies.items() if USER.encode() in body] == []


def test_the_rows_of_a_file_are_found_by_index(world: Settings) -> None:
    """F19: nothing that an erasure asks per file reads a table from end to end."""
    engine = connect(world.database)
    query = select(Poster.poster_id).where(or_(*naming("posters/x.webp"))).limit(1)
    compiled = query.compile(engine)
    values = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in compiled.construct_params().items()
    }
    with engine.connect() as connection:
        connection.execute(text("SET enable_seqscan = off"))
        rows = connection.exec_driver_sql(f"EXPLAIN {compiled}", values)
        plan = "\n".join(row[0] for row in rows)
    for index in ("ix_posters_image_key", "ix_posters_art_key", "ix_posters_renditions"):
        assert index in plan, plan
    engine.dispose()
