"""A retraining's window ends at a fixed moment, a rerun goes on with it.

Erasure reaches what it stored, in any order of events.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, func, select, text, update
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import erasure, registry
from generator.feedback.ports import RetrainContext
from generator.feedback.retrain import Window, retrain
from generator.storage.objects import Store
from schemas.settings import Settings, load_settings
from schemas.tables import Erasure, ModelVersion, PreferenceSnapshot, PreferenceSnapshotUser
from tests.support.loop_doubles import doubled_context, states
from tests.support.loop_world import DAY, filled, mine

pytestmark = pytest.mark.integration
UNTIL = datetime(2026, 11, 3, 5, tzinfo=UTC)


class Killed(BaseException):
    """Stands for a process that ends here."""


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


@pytest.fixture
def told(settings: Settings, engine: Engine, tmp_path: Path) -> tuple[RetrainContext, list[str]]:
    return doubled_context(settings, engine, tmp_path)


@pytest.fixture
def context(told: tuple[RetrainContext, list[str]]) -> RetrainContext:
    return told[0]


def until(context: RetrainContext, moment: datetime = UNTIL) -> str | None:
    return retrain(context, Window.until(moment, 28), min_pairs=5, promote="none").version


def snapshots(engine: Engine) -> list[PreferenceSnapshot]:
    with Session(engine, expire_on_commit=False) as session:
        return list(session.scalars(select(PreferenceSnapshot).order_by(PreferenceSnapshot.created_at)))


def die(context: RetrainContext) -> None:
    context.trainer.fail = Killed()
    with pytest.raises(Killed):
        until(context)
    context.trainer.fail = None


def erase(engine: Engine, user: str, requested_at: datetime, completed_at: datetime | None = None) -> None:
    with Session(engine) as session, session.begin():
        session.merge(Erasure(user_id=user, requested_at=requested_at, completed_at=completed_at, proof={}))


def forget(context: RetrainContext, policy: erasure.AdapterPolicy = "keep") -> list[str]:
    with Session(context.engine) as session, session.begin():
        erased, adapters = erasure.erase_users(session, context.store, dry_run=False, policy=policy)
    return [*(one.snapshot_id for one in erased), *(f"{one.version}: {one.policy}" for one in adapters)]


def test_a_window_of_today_ends_now_and_one_of_the_past_with_its_day() -> None:
    now = datetime(2026, 11, 2, 9, 30, 15, 99, tzinfo=UTC)
    today = Window.of_day(DAY, 28, now)
    assert today.bounds == (now.replace(microsecond=0) - timedelta(days=28), now.replace(microsecond=0))
    assert Window.of_day(DAY, 28, now + timedelta(days=3)).stop == datetime(2026, 11, 3, tzinfo=UTC)
    assert Window.until(UNTIL, 7).bounds == (UNTIL - timedelta(days=7), UNTIL)


def test_a_rerun_learns_from_the_same_feedback_although_more_came_in(
    engine: Engine, told: tuple[RetrainContext, list[str]]
) -> None:
    """Killed while it trained; an hour later feedback has arrived that belongs into the window (F11)."""
    context, echoed = told
    night = filled(engine)
    die(context)
    (first,) = snapshots(engine)
    for n in range(40, 60):  # late events of the same window
        a, b = night.task(f"user{n}", "x")
        night.feedback(a, "ic")
        night.feedback(b, "i")
    assert until(context) == "nano-2"
    assert [one.snapshot_id for one in snapshots(engine)] == [first.snapshot_id]
    assert any("going on with snapshot" in line for line in echoed)
    assert context.trainer.trainings == 1
    assert until(context) == "nano-3", "once it has ended, the same window is read again"
    assert len(snapshots(engine)) == 2


def test_a_rerun_of_a_day_that_is_not_over_goes_on_with_the_moment_it_began_at(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine)
    context.trainer.fail = Killed()
    nine = Window.of_day(DAY, 28, datetime(2026, 11, 2, 21, tzinfo=UTC))
    with pytest.raises(Killed):
        retrain(context, nine, min_pairs=5, promote="none")
    context.trainer.fail = None
    later = Window.of_day(DAY, 28, datetime(2026, 11, 2, 22, tzinfo=UTC))
    retrain(context, later, min_pairs=5, promote="none")
    (only,) = snapshots(engine)
    assert only.window_end == nine.stop


@pytest.mark.parametrize("changed", [{"holdout_share": 0.3}, {"window_days": 14}])
def test_an_unfinished_snapshot_with_other_settings_is_not_used(
    engine: Engine, context: RetrainContext, changed: dict[str, float]
) -> None:
    filled(engine)
    die(context)
    settings = context.settings.model_copy(update={"retrain": context.settings.retrain.model_copy(update=changed)})
    other = dataclasses.replace(context, settings=settings)
    window = Window.until(UNTIL, settings.retrain.window_days)
    retrain(other, window, min_pairs=5, promote="none")
    with Session(engine) as session:
        used = registry.list_versions(session)[-1].snapshot_id
        found = session.get_one(PreferenceSnapshot, used)
        assert found.window_end - found.window_start == timedelta(days=settings.retrain.window_days)
        assert found.counts["holdout_share"] == settings.retrain.holdout_share


def test_an_erasure_that_came_in_after_the_snapshot_reaches_it_whenever_it_was_asked_for(
    engine: Engine, context: RetrainContext
) -> None:
    """The request is older than the snapshot, the event was consumed after it (F7)."""
    filled(engine)
    until(context)
    (stored,) = snapshots(engine)
    erase(engine, "user3", stored.created_at - timedelta(hours=3))
    assert forget(context) == [stored.snapshot_id, "nano-2: kept (retrain.erased_adapters)"]
    assert context.store.get(stored.key) is None
    assert forget(context) == []
    with Session(engine) as session:
        left = set(session.scalars(select(PreferenceSnapshotUser.user_id)))
        assert "user3" not in left
        assert len(left) == 39, "of the others it is known that the adapter learned from them"
        assert session.get_one(Erasure, "user3").proof["snapshots"] == [stored.snapshot_id]
    erase(engine, "user4", datetime.now(UTC))
    assert forget(context) == [stored.snapshot_id, "nano-2: kept (retrain.erased_adapters)"]


def test_a_user_who_came_back_after_a_completed_erasure_stays(engine: Engine, context: RetrainContext) -> None:
    hours = [datetime.now(UTC) - timedelta(hours=n) for n in (2, 1)]
    erase(engine, "user3", hours[0], hours[1])
    with Session(engine) as session, session.begin():
        session.execute(update(Erasure).values(requested_at=datetime(2026, 11, 1, tzinfo=UTC)))
    filled(engine)
    until(context)
    assert forget(context) == []
    assert "user3" in {dated.pair.user_id for dated in mine(engine).pairs}


def test_a_user_with_an_open_request_is_in_no_pair(engine: Engine) -> None:
    """Also where all that is left of the user is newer than the request.

    What a poster rests on may be older.
    """
    erase(engine, "user3", datetime(2026, 1, 1, tzinfo=UTC))
    filled(engine)
    assert "user3" not in {dated.pair.user_id for dated in mine(engine, share=0.5).pairs}


def test_an_unfinished_retraining_with_an_erased_user_begins_again_without_them(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine)
    die(context)
    (first,) = snapshots(engine)
    erase(engine, "user3", first.created_at - timedelta(days=1))
    assert until(context) == "nano-3"
    with Session(engine) as session:
        used = registry.get(session, "nano-3").snapshot_id
        users = select(PreferenceSnapshotUser.user_id).where(PreferenceSnapshotUser.snapshot_id == used)
        assert "user3" not in set(session.scalars(users))
    assert forget(context) == [first.snapshot_id], "no adapter came of it"


def test_what_a_killed_writer_left_in_the_bucket_is_found(
    engine: Engine, context: RetrainContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row comes before the object, so there is no object without one."""
    filled(engine)
    put = Store.create

    def dies(*args: object) -> bool:
        put(*args)  # type: ignore[arg-type]
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", dies)
        with pytest.raises(Killed):
            until(context)
    assert list(context.store.keys("snapshots/")) == [one.key for one in snapshots(engine)]
    erase(engine, "user3", datetime.now(UTC))
    assert len(forget(context)) == 1
    assert list(context.store.keys("snapshots/")) == []


def test_a_snapshot_of_the_release_before_has_its_users_read_from_the_bucket(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine)
    until(context)
    with Session(engine) as session, session.begin():
        session.execute(delete(PreferenceSnapshotUser))
    erase(engine, "nobody", datetime.now(UTC))
    assert forget(context) == []
    erase(engine, "user3", datetime.now(UTC))
    assert len(forget(context)) == 2
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(PreferenceSnapshotUser)) == 39


def test_adapters_that_do_not_serve_are_deleted_where_policy_says_so_and_their_heirs_are_named(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine)
    retrain(context, Window.until(UNTIL, 28), min_pairs=5, promote="champion")
    (first,) = snapshots(engine)
    filled(engine, users=50, day=DAY - timedelta(days=1))
    until(context, UNTIL + timedelta(days=1))
    erase(engine, "user3", datetime.now(UTC))
    found = forget(context, "delete")
    assert first.snapshot_id in found
    assert found[-2:] == ["nano-2: serves until a retrain replaces it", "nano-3: deleted"]
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion", "nano-3": "refused"}
    assert list(context.store.keys("models/nano-3/")) == []
    assert list(context.store.keys("models/nano-2/")) != []
    with Session(engine) as session:
        assert session.get_one(ModelVersion, "nano-3").adapter_key is None
        reasons = [event.reason for event in registry.list_events(session, "nano-3")]
        assert any("users who were erased since" in reason for reason in reasons)


def test_a_task_that_was_never_resumed_or_cannot_be_read_gives_no_pair_and_stops_none(
    engine: Engine, told: tuple[RetrainContext, list[str]]
) -> None:
    """Killed after its posters were intended: pending, without a snapshot (F10)."""
    context, echoed = told
    filled(engine)
    with Session(engine) as session, session.begin():
        for statement in (
            "UPDATE night_tasks SET status = 'pending', prompt = prompt - 'snapshot' WHERE user_id = 'user1'",
            "UPDATE night_tasks SET prompt = prompt - 'snapshot' WHERE user_id = 'user2'",
            "UPDATE night_tasks SET prompt = jsonb_set(prompt, '{snapshot}', 'null') WHERE user_id = 'user3'",
            "UPDATE night_tasks SET prompt = prompt #- '{snapshot,title}' WHERE user_id = 'user4'",
        ):
            session.execute(text(statement))
    assert until(context) == "nano-2"
    assert {f"user{n}" for n in range(1, 5)} & {dated.pair.user_id for dated in mine(engine, share=0.5).pairs} == set()
    assert any(line.startswith("1 pairs left out") for line in echoed)


def test_pairs_of_another_base_checkpoint_and_of_a_pipeline_are_left_out(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine)
    with Session(engine) as session, session.begin():
        session.add(ModelVersion(version="old-1", number=-1, state="retired", base_sha256="another", metrics={}))
        session.execute(text("UPDATE night_tasks SET model_version = 'old-1' WHERE user_id IN ('user1', 'user2')"))
        session.execute(text("UPDATE night_tasks SET model_version = 'pipeline-1' WHERE user_id = 'user3'"))
    users = {dated.pair.user_id for dated in mine(engine, share=0.5).pairs}
    assert len(users) == 37
    assert not {"user1", "user2", "user3"} & users
