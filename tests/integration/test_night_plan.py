"""What a night plans: what is new and nothing else, in pages, and not what was taken back.

On real Postgres and S3; the model is a test double.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import Engine, func, select, text, update
from sqlalchemy.orm import Session

from generator.nightly import plan_rows, withdraw
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Scope
from generator.nightly.status import status_of
from generator.serving.api import AnswerRequest, InferenceRejected
from generator.storage.postgres import connect
from schemas.errors import PartialFailure
from schemas.settings import Settings
from schemas.tables import (
    CurrentPosters,
    Item,
    ModelVersion,
    NightSkip,
    NightTask,
    PlannedItem,
    PlannedUser,
    Recommendation,
    UserHistory,
    UserObjection,
    Withdrawal,
)
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night, reader, set_item, set_user
from tests.support.picture_host import PictureHost

pytestmark = pytest.mark.integration
SECOND, THIRD, FOURTH = (NIGHT + timedelta(days=days) for days in (1, 2, 3))
WHY = {"reason": "a complaint", "actor": "ann"}


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Settings:
    """Users u0, u1, u2 with four liked items and two targets each; pictures are files of this machine."""
    build(settings, tmp_path / "art", users=3, targets=2)
    return settings


def changed(settings: Settings, **values: object) -> Settings:
    return settings.model_copy(update={"night": settings.night.model_copy(update=values)})


def run(settings: Settings, on: date, model: FakePigeon | None = None) -> set[tuple[str, str]]:
    """Run a night; returns (user, item) of its tasks."""
    night(settings, model, on=on).run(Scope())
    engine = connect(settings.database)
    with Session(engine) as session:
        rows = session.execute(select(NightTask.user_id, NightTask.item_id).where(NightTask.run_id == run_id_of(on)))
        found = {(user, item) for user, item in rows}
    engine.dispose()
    return found


def skipped(engine: Engine, on: date) -> dict[str, int]:
    return Ledger(engine).count_skips(run_id_of(on))


def written(engine: Engine, on: date) -> tuple[int, int]:
    """Rows of tasks and skips."""
    run_id = run_id_of(on)
    with Session(engine) as session:
        tables = (NightTask, NightSkip)
        tasks, skips = (session.scalar(select(func.count()).where(table.run_id == run_id)) for table in tables)
        return tasks or 0, skips or 0


def versions(engine: Engine) -> list[tuple[str, str]]:
    """Each planned user with the transaction that wrote the row."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT user_id, xmin::text FROM planned_users ORDER BY user_id"))
        return [(user, transaction) for user, transaction in rows]


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with PictureHost() as made:
        yield made


def put_on(host: PictureHost, settings: Settings, engine: Engine, tmp_path: Path, **images: object) -> Settings:
    """All pictures of the catalogue on a host that is asked every night."""
    for path in (tmp_path / "art").iterdir():
        host.pictures[f"/{path.name}"] = path.read_bytes()
    with Session(engine) as session, session.begin():
        for item in session.scalars(select(Item)):
            item.image_uri = host.url(f"/{item.item_id}.png")
    data = settings.model_dump()
    data["state_dir"] = tmp_path / "state"
    data["night"] |= {"outage_seconds": 0.5, "image_timeout_seconds": 2.0}
    data["images"] |= {"allowed_networks": ("127.0.0.0/8",), "fresh_seconds": 0.0, "attempts": 1, **images}
    return Settings.model_validate(data)


def test_an_unchanged_night_downloads_nothing_and_writes_no_row_per_user(
    world: Settings, engine: Engine, host: PictureHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLAWS F24."""
    served = put_on(host, world, engine, tmp_path)
    assert len(run(served, NIGHT)) == 6
    before, downloads = versions(engine), sum(host.asked.values()) - host.unchanged
    host.asked.clear()
    host.unchanged = 0

    def decoded(data: bytes) -> Any:
        raise AssertionError("no picture is decoded")

    monkeypatch.setattr("generator.nightly.images.read", decoded)
    assert run(served, SECOND) == set()
    assert downloads == 10
    assert sum(host.asked.values()) == host.unchanged == 10, "each picture is asked about once, and has not changed"
    assert written(engine, SECOND) == (0, 0)
    assert versions(engine) == before
    assert skipped(engine, SECOND) == {"unchanged": 6}
    assert status_of(served, SECOND)["figures"]["skips"] == {"unchanged": 6}
    host.asked.clear()
    assert run(put_on(host, world, engine, tmp_path, fresh_seconds=3600.0), THIRD) == set()
    assert not host.asked, "nor is anybody asked about what was looked at lately"


def edit_item(session: Session, item_id: str, **values: object) -> None:
    session.execute(update(Item).where(Item.item_id == item_id).values(**values))


def repaint(tmp_path: Path, item_id: str) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "art" / f"{item_id}.png")


U0, U1, U2 = ({(f"u{n}", f"item{8 + (n + step) % 4}") for step in range(2)} for n in range(3))
ITEM9 = {("u0", "item9"), ("u1", "item9")}
"""Targets are items 8 to 11, histories items 0 to 5: u0 has item0, and item2 is in all three."""


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (lambda s, t: set_user(s, "u1", ["item0", "item5", "item6", "item7"]), U1),
        (lambda s, t: set_user(s, "u1", ["item1", "item2", "item3", "item4"], ["item9", "item11"]), {("u1", "item11")}),
        (lambda s, t: edit_item(s, "item0", title="Another title"), U0),
        (lambda s, t: edit_item(s, "item9", description="Another text"), ITEM9),
        (lambda s, t: edit_item(s, "item9", attributes={"synthetic": True, "year": 1994}), ITEM9),
        (lambda s, t: repaint(t, "item9"), ITEM9),
        (lambda s, t: repaint(t, "item2"), U0 | U1 | U2),
        (lambda s, t: edit_item(s, "item0", image_uri=f"file://{t}/art/item7.png"), U0),
        (lambda s, t: edit_item(s, "item7", title="In nobody's history"), set()),
    ],
    ids=["history", "targets", "title", "description", "year", "picture", "shared-picture", "address", "unused"],
)
def test_what_has_changed_is_drawn_and_nothing_else(
    world: Settings,
    engine: Engine,
    tmp_path: Path,
    change: Callable[[Session, Path], None],
    new: set[tuple[str, str]],
) -> None:
    assert run(world, NIGHT) == U0 | U1 | U2
    with Session(engine) as session, session.begin():
        change(session, tmp_path)
    assert run(world, SECOND) == new
    assert skipped(engine, SECOND).get("unchanged", 0) == 6 - len(new)
    assert run(world, THIRD) == set()
    assert written(engine, THIRD) == (0, 0)


def test_another_rule_for_pictures_or_another_choice_draws_for_all(
    world: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, NIGHT)
    model = FakePigeon()
    assert run(changed(world, policy="paper"), SECOND, model) == U0 | U1 | U2
    assert model.answered == [], "a changed choice is made from stored answers"
    assert run(changed(world, policy="paper", targets_per_user=1), THIRD) == set()
    assert written(engine, THIRD) == (0, 0), "the first targets are there"
    assert skipped(engine, THIRD) == {"unchanged": 3}
    monkeypatch.setattr("schemas.images.RULE_VERSION", 99)
    assert run(world, FOURTH) == U0 | U1 | U2


def test_an_event_that_changes_no_input_costs_a_look_and_no_task(world: Settings, engine: Engine) -> None:
    """A user plays the newest item again: another fingerprint of the history, the same pictures."""
    run(world, NIGHT)
    with Session(engine) as session, session.begin():
        session.execute(update(UserHistory).where(UserHistory.user_id == "u1").values(fingerprint="other"))
    before = versions(engine)
    assert run(world, SECOND) == set()
    assert written(engine, SECOND) == (0, 0)
    assert skipped(engine, SECOND) == {"unchanged": 6}
    assert {user for (user, old), (_, new) in zip(before, versions(engine), strict=True) if old != new} == {"u1"}


def test_a_user_whose_task_failed_is_planned_again_and_his_other_posters_stay(world: Settings, engine: Engine) -> None:
    def fault(request: AnswerRequest, attempt: int) -> None:
        if request.task_id.endswith("/u0/item8"):
            raise InferenceRejected("prompt too long")

    with pytest.raises(PartialFailure):
        night(world, FakePigeon(fault)).run(Scope())
    assert run(world, SECOND) == {("u0", "item8")}
    assert skipped(engine, SECOND) == {"unchanged": 5}
    assert run(world, THIRD) == set()
    assert len({(row["user_id"], row["item_id"]) for row in reader(world).rows().to_pylist()}) == 6


def test_a_night_that_was_never_published_leaves_its_users_to_the_next(world: Settings, engine: Engine) -> None:
    def fault(request: AnswerRequest, attempt: int) -> None:
        raise InferenceRejected("no")

    with pytest.raises(PartialFailure, match="nothing was published"):
        night(world, FakePigeon(fault)).run(Scope())
    assert run(world, SECOND) == U0 | U1 | U2


def test_a_connection_that_breaks_while_tasks_are_copied_is_waited_out(
    world: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, broken = plan_rows._copy, list[int]()

    def breaking(session: Session, table: str, columns: tuple[str, ...], run_id: str, rows: tuple[Any, ...]) -> None:
        if rows and not broken:
            broken.append(session.scalar(text("SELECT pg_backend_pid()")) or 0)
            with engine.connect() as connection:
                connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": broken[0]})
        copy(session, table, columns, run_id, rows)

    monkeypatch.setattr(plan_rows, "_copy", breaking)
    assert run(world, NIGHT) == U0 | U1 | U2
    assert len(broken) == 1
    assert written(engine, NIGHT) == (6, 0)


def test_who_and_what_is_left_out_stays_counted_by_reason(world: Settings, engine: Engine, tmp_path: Path) -> None:
    art = tmp_path / "art"
    with Session(engine) as session, session.begin():
        set_item(session, "nopic", art, image_uri=None)
        set_user(session, "few", ["item1", "item2"])
        set_user(session, "picky", ["item1", "item2", "item3"], ["nopic", "unknown", "item9"])
    run(world, NIGHT)
    reasons = {"too little history": 1, "item without image": 1, "item unknown": 1}
    assert skipped(engine, NIGHT) == reasons
    assert run(world, SECOND) == set()
    assert skipped(engine, SECOND) == {"unchanged": 7, **reasons}
    assert written(engine, SECOND) == (0, 0)
    with Session(engine) as session, session.begin():
        set_item(session, "unknown", art, image_uri=f"file://{art}/item7.png")
    assert run(world, THIRD) == {("picky", "unknown")}
    assert skipped(engine, THIRD) == {"unchanged": 7, "too little history": 1, "item without image": 1}


def test_nobody_draws_for_users_and_items_that_are_taken_back(world: Settings, engine: Engine, tmp_path: Path) -> None:
    with Session(engine) as session, session.begin():
        session.add(UserObjection(user_id="u0", objects=True, occurred_at=datetime(2026, 2, 1, tzinfo=UTC)))
        session.add(Withdrawal(kind="user", subject="u1", **WHY))
        set_user(session, "u3", ["item1", "item2", "item3"], ["item8", "item9", "item10", "item11"])
        set_item(session, "item10", tmp_path / "art", attributes={"drawn_posters": False})
    withdraw.withdraw(world, "item", "item11", **WHY)
    assert run(world, NIGHT) == {("u3", "item8"), ("u3", "item9")}
    reasons = {
        "user objects to drawn posters": 1,
        "user withdrawn": 1,
        "item opted out of drawn posters": 2,
        "item withdrawn": 2,
        "no target left": 1,
    }
    assert skipped(engine, NIGHT) == reasons
    assert run(world, SECOND) == set()
    assert skipped(engine, SECOND) == {"unchanged": 2, **reasons}
    assert written(engine, SECOND) == (0, 0)
    with Session(engine) as session, session.begin():
        session.execute(update(UserObjection).values(objects=False))
        set_item(session, "item10", tmp_path / "art")
    withdraw.lift(world, "user", "u1", **WHY)
    withdraw.lift(world, "item", "item11", **WHY)
    assert run(world, THIRD) == U0 | U1 | U2 | {("u3", "item10"), ("u3", "item11")}


def test_an_objection_after_a_plan_ends_it_and_its_end_begins_again(world: Settings, engine: Engine) -> None:
    run(world, NIGHT)
    with Session(engine) as session, session.begin():
        session.add(UserObjection(user_id="u0", objects=True, occurred_at=datetime(2026, 2, 1, tzinfo=UTC)))
    assert run(world, SECOND) == set()
    assert [user for user, _ in versions(engine)] == ["u1", "u2"]
    with Session(engine) as session, session.begin():
        session.execute(update(UserObjection).values(objects=False))
        edit_item(session, "item0", title="Another title")
    assert run(world, THIRD) == U0, "what changed meanwhile is seen"


def test_a_night_of_the_past_leaves_the_plans_of_later_days_alone(world: Settings, engine: Engine) -> None:
    run(world, SECOND)
    with Session(engine) as session, session.begin():
        set_user(session, "u0", ["item0", "item5", "item6", "item7"])
    before = versions(engine)
    run(world, NIGHT)
    assert written(engine, NIGHT) == (6, 0)
    assert versions(engine) == before
    assert run(world, THIRD) == set(), "the night of the past has drawn it"
    assert written(engine, THIRD) == (0, 2), "its posters become current by a row each"
    with Session(engine) as session:
        query = select(CurrentPosters.run_id).where(CurrentPosters.user_id == "u0")
        assert set(session.scalars(query)) == {run_id_of(NIGHT)}


def test_a_model_version_that_draws_for_other_users_is_noticed_in_sql(world: Settings, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        for number in range(40):
            set_user(session, f"ü{number}", ["item1", "item2", "item3"], ["item9"])
        for number, state in ((1, "champion"), (2, "canary")):
            version = ModelVersion(version=f"nano-{number}", number=number, state=state, base_sha256="b", metrics={})
            version.adapter_sha256 = str(number)
            session.add(version)

    def shared(share: float) -> Settings:
        return world.model_copy(update={"retrain": world.retrain.model_copy(update={"canary_share": share})})

    def canary_users(on: date) -> set[str]:
        with Session(engine) as session:
            query = select(NightTask.user_id).where(NightTask.run_id == run_id_of(on))
            return set(session.scalars(query.where(NightTask.model_version == "nano-2")))

    run(shared(0.3), NIGHT)
    first = canary_users(NIGHT)
    assert 0 < len(first) < 43
    assert run(shared(0.3), SECOND) == set()
    assert written(engine, SECOND) == (0, 0), "Postgres gives each user the drawer that we give"
    run(shared(0.6), THIRD)
    more = canary_users(THIRD)
    assert more
    assert not more & first
    assert len(first | more) < 43


@pytest.mark.parametrize("size", [1, 2])
def test_pages_of_any_size_make_the_same_plan(
    world: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    for name in ("plan.USERS_AT_ONCE", "plan_users.USERS_JUDGED_AT_ONCE", "plan_users.USERS_COUNTED_AT_ONCE"):
        monkeypatch.setattr(f"generator.nightly.{name}", size)
    monkeypatch.setattr("generator.nightly.plan_items.ITEMS_KEPT", size)
    monkeypatch.setattr("generator.nightly.plan_items.ITEMS_AT_ONCE", size)
    monkeypatch.setattr("generator.nightly.plan_rows.SETTLED_AT_ONCE", size)
    with Session(engine) as session, session.begin():
        set_user(session, "cold", ["item1", "item2", "item3"])
    assert run(world, NIGHT) == U0 | U1 | U2 | {("cold", f"item{n}") for n in (0, 4, 5)}
    assert run(world, SECOND) == set()
    assert skipped(engine, SECOND) == {"unchanged": 9}
    assert written(engine, SECOND) == (0, 0)


def test_popular_targets_are_chosen_again_within_a_week(world: Settings, engine: Engine) -> None:
    """A user without recommendations gets other targets, though nothing of the user is new."""
    with Session(engine) as session, session.begin():
        set_user(session, "cold", ["item1", "item2", "item3"])
    first = run(changed(world, targets_per_user=1), NIGHT)
    with Session(engine) as session, session.begin():
        for number in range(5):
            set_user(session, f"w{number}", ["item6", "item6", "item6"])
    new = [run(changed(world, targets_per_user=1), NIGHT + timedelta(days=1 + day)) for day in range(7)]
    assert ("cold", "item6") not in first
    assert [pairs for pairs in new if pairs] == [{("cold", "item6")}]


def test_a_target_whose_picture_host_is_away_waits_and_a_history_leaves_the_user_as_he_is(
    world: Settings, engine: Engine, host: PictureHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FLAWS F4: an outage is no property of the picture, so no older picture comes in its place."""
    monkeypatch.setattr("generator.nightly.image_hosts.FIRST_WAIT_SECONDS", 0.02)
    served = put_on(host, world, engine, tmp_path, away_share=1.0)
    assert len(run(served, NIGHT)) == 6
    (tmp_path / "art" / "new.png").write_bytes(b"")
    repaint(tmp_path, "new")
    with PictureHost() as other, Session(engine) as session:
        other.pictures = {f"/{n}.png": (tmp_path / "art" / "new.png").read_bytes() for n in (0, 9)}
        for number in (0, 9):  # item0 is in the history of u0, item9 a target of u0 and u1
            edit_item(session, f"item{number}", image_uri=other.url(f"/{number}.png"))
        session.commit()
        other.down = True
        shown = {(row["user_id"], row["item_id"]) for row in reader(served).rows().to_pylist()}
        for day in (SECOND, THIRD):
            assert run(served, day) == set()
            assert skipped(engine, day) == {"unchanged": 3, "picture host away": 2}
        assert {(row["user_id"], row["item_id"]) for row in reader(served).rows().to_pylist()} == shown
        other.down = False
        assert run(served, FOURTH) == U0 | {("u1", "item9")}


def test_an_erased_user_has_no_plan(world: Settings, engine: Engine) -> None:
    run(world, NIGHT)
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO erasures (user_id, requested_at) VALUES ('u0', now())"))
    run(world, SECOND)
    assert skipped(engine, SECOND) == {"unchanged": 4, "user is to be forgotten": 1}
    assert [user for user, _ in versions(engine)] == ["u1", "u2"]
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(NightSkip)) == 0, "no row names him again"


def test_a_plan_is_remembered_with_the_items_that_it_looked_at(world: Settings, engine: Engine) -> None:
    run(world, NIGHT)
    with Session(engine) as session:
        row = session.get_one(PlannedUser, "u0")
        items = set(session.scalars(select(PlannedItem.item_id)))
        recommended = session.get_one(Recommendation, "u0").item_ids
    assert row.items == ["item3", "item2", "item1", "item0", *recommended]
    assert (row.targets, row.skipped, row.run_id) == (2, {}, None)
    assert items == {f"item{n}" for n in (*range(6), *range(8, 12))}
