"""The loop on a real Postgres and bucket; training and serving are test doubles that inject faults."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import erasure, registry, rollout, split
from generator.feedback.ports import RetrainContext
from generator.feedback.retrain import Promotion, retrain
from generator.serving.api import (
    InferenceCorrupt,
    InferenceUnavailable,
)
from generator.storage.lease import lead
from generator.storage.objects import Store
from schemas.errors import LockHeld, ModelError, Refused, ServerUnavailable
from schemas.settings import Settings, load_settings
from schemas.tables import (
    Erasure,
    ModelEvent,
    ModelVersion,
    PreferenceSnapshot,
    PreferenceSnapshotUser,
)
from tests.support.loop_doubles import Planted, doubled_context, run, states, window
from tests.support.loop_world import DAY, filled, mine

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only: this part never speaks to Kafka."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


@pytest.fixture
def context(settings: Settings, engine: Engine, tmp_path: Path) -> RetrainContext:
    return doubled_context(settings, engine, tmp_path)[0]


def test_erased_users_are_in_no_pair_and_no_stored_snapshot(engine: Engine, context: RetrainContext) -> None:
    night = filled(engine, users=30)
    retrain(context, window(), min_pairs=5, promote="none")
    with Session(engine) as session:
        stored = session.scalars(select(PreferenceSnapshot)).one()
        held = {
            json.loads(line)["pair"]["user_id"] for line in Store(context.settings.s3).get(stored.key).body.splitlines()
        }
    victim = min(held)
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id=victim, requested_at=datetime.now(UTC) + timedelta(seconds=1)))
    assert victim not in {d.pair.user_id for d in mine(engine, share=0.5).pairs}
    with Session(engine) as session, session.begin():
        erased, adapters = erasure.erase_users(session, context.store, dry_run=True)
        assert [one.snapshot_id for one in erased] == [stored.snapshot_id]
        assert [(one.version, one.state) for one in adapters] == [("nano-2", "loaded")]
    assert context.store.get(stored.key) is not None
    with Session(engine) as session, session.begin():
        erased, adapters = erasure.erase_users(session, context.store, dry_run=False)
        assert [one.users for one in erased] == [1]
        assert erasure.erase_users(session, context.store, dry_run=False) == ([], [])
    assert context.store.get(stored.key) is None
    with Session(engine) as session:
        proof = session.get(Erasure, victim).proof
        assert proof["snapshots"] == [stored.snapshot_id]
        assert proof["adapters"] == ["nano-2: kept (retrain.erased_adapters)"]
        assert session.get(PreferenceSnapshot, stored.snapshot_id).counts["purged_users"] == 1
        assert victim not in session.scalars(select(PreferenceSnapshotUser.user_id)).all()
    night.task("later", "x")


def test_the_loop_ends_in_a_canary_that_draws_beside_the_champion(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    assert run(context) == "nano-2"
    assert states(engine) == {"nano-1": "champion", "nano-2": "canary"}
    assert set(context.serving.adapters) == {1, 2}
    requests = context.serving.drawn
    assert {r.adapter_version for r in requests} == {1, 2}
    assert all(split.is_held_out(r.task_id.split("/")[1], 0.2) for r in requests)
    with Session(engine) as session:
        version = registry.get(session, "nano-2")
        assert version.metrics["gate"]["passed"] is True
        assert version.metrics["train"]["last_loss"] is None, "a NaN is null in JSON, not a failed write"
        assert [e.to_state for e in registry.list_events(session, "nano-2")] == ["registered", "loaded", "canary"]
        assert all(e.reason for e in session.scalars(select(ModelEvent)))
    assert len(list(context.store.keys("models/nano-2/"))) == 1
    assert run(context) == "nano-2", "a rerun changes nothing"
    assert context.trainer.trainings == 1
    assert run(context, "champion") == "nano-2"
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion"}
    assert run(context, "champion") == "nano-2", "the champion is not trained from the same feedback twice"
    assert len(states(engine)) == 2
    filled(engine, users=50, day=DAY - timedelta(days=1))
    assert run(context) == "nano-3"
    assert context.trainer.champions[1] is not None, "the new champion's adapter is the next reference"


@pytest.mark.parametrize(
    ("judged", "angles", "reason"),
    [
        (Planted(accuracy=0.4), {}, "accuracy 0"),
        (Planted(margin=0.0), {}, "margin 0 nats .*must be more than 0"),
        (Planted(margin=math.nan), {}, "accuracy is nan.*margin is nan"),
        (Planted(kl=50.0), {}, "kl 50"),
        (Planted(fall=3.0), {}, "chosen_fall 3 nats .*must be at most 2"),
        (Planted(), {1: 0.5, 2: 1.0}, "cs_drop 33.*must be at most 2"),
        (Planted(), {1: 0.5, 2: 0.2}, "cis_drop 28.*must be at most 2"),
        (Planted(), {2: math.nan}, "cs_drop is nan"),
    ],
)
def test_a_worse_equal_or_unmeasured_challenger_is_refused_and_the_champion_serves(
    engine: Engine, context: RetrainContext, judged: Planted, angles: dict[int, float], reason: str
) -> None:
    filled(engine)
    context.trainer.judged, context.serving.angle = judged, {**angles, 3: angles.get(2, 0.5)}
    with pytest.raises(Refused, match=reason):
        run(context, "champion")
    assert states(engine) == {"nano-1": "champion", "nano-2": "refused"}
    assert set(context.serving.adapters) == {1}
    with pytest.raises(Refused, match="nothing new: nano-2"):
        run(context, "champion")
    with pytest.raises(Refused, match="nano-2 is refused and cannot become champion"):
        rollout.promote(context, "nano-2", "I insist")
    assert context.trainer.trainings == 1
    slower = context.settings.retrain.model_copy(update={"learning_rate": 1e-6})
    with pytest.raises(Refused, match="nano-3 refused by the gate"):
        run(dataclasses.replace(context, settings=context.settings.model_copy(update={"retrain": slower})))


def test_a_threshold_that_is_not_set_refuses(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    unset = context.settings.retrain.model_copy(update={"gate_max_cis_drop": None})
    careless = dataclasses.replace(context, settings=context.settings.model_copy(update={"retrain": unset}))
    with pytest.raises(Refused, match="gate_max_cis_drop is not set"):
        run(careless)
    assert states(engine)["nano-2"] == "refused"


@pytest.mark.parametrize("fault", ["install", "probe", "draw 2"])
def test_a_challenger_that_cannot_be_served_fails_and_the_champion_serves(
    engine: Engine, context: RetrainContext, fault: str
) -> None:
    filled(engine)
    context.serving.faults[fault] = ModelError("no such graph input") if fault == "install" else InferenceCorrupt("NaN")
    with pytest.raises(ModelError, match=r"nano-2 failed: .*; nano-1 serves on"):
        run(context, "champion")
    assert states(engine) == {"nano-1": "champion", "nano-2": "failed"}
    assert set(context.serving.adapters) == {1}


@pytest.mark.faults
@pytest.mark.parametrize("promote", ["canary", "champion"])
def test_dying_at_any_step_leaves_one_champion_and_a_rerun_finishes(
    engine: Engine, context: RetrainContext, promote: Promotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(engine)

    class Killed(BaseException):
        pass

    steps = [
        (context.trainer, "train"),
        (context.store, "create"),
        (context.trainer, "judge"),
        (context.serving, "install"),
        (context.serving, "probe"),
        (context.serving, "draw"),
        (registry, "change_state"),
        (registry, "_record"),
    ]
    killed = 0
    for owner, name in steps:
        for before in (True, False):
            whole = getattr(owner, name)

            def dies(
                *args: object, _whole: Callable[..., object] = whole, _before: bool = before, **kwargs: object
            ) -> None:
                if not _before:
                    _whole(*args, **kwargs)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(owner, name, dies)
                try:
                    run(context, promote)
                except Killed:
                    killed += 1
            with Session(engine) as session:
                champions = session.scalars(select(ModelVersion).where(ModelVersion.state == "champion")).all()
                assert len(champions) <= 1, (name, before)
                assert not champions or champions[0].number in context.serving.loaded(), (name, before)
    assert killed >= 12, killed
    assert run(context, promote) == "nano-2"
    end = "canary" if promote == "canary" else "champion"
    assert states(engine)["nano-2"] == end
    with Session(engine) as session:
        assert len(registry.list_versions(session)) == 2


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["install", "probe", "draw 2"])
def test_triton_away_changes_no_state_for_good(engine: Engine, context: RetrainContext, fault: str) -> None:
    filled(engine)
    context.serving.faults[fault] = InferenceUnavailable("connection refused")
    with pytest.raises(ServerUnavailable, match="run the same command again"):
        run(context)
    assert states(engine) == {"nano-1": "champion", "nano-2": "registered"}
    assert run(context) == "nano-2"
    assert states(engine)["nano-2"] == "canary"
    assert context.trainer.trainings == 1


def test_rolling_back_goes_back_and_back_again_and_then_says_so(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    run(context, "champion")
    filled(engine, users=45, day=DAY - timedelta(days=1))
    assert run(context, "canary") == "nano-3"
    rollout.rollback(context, "odd colours")
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion", "nano-3": "retired"}
    rollout.promote(context, "nano-3", "they were the screen's")
    context.serving.adapters.clear()  # Triton was restarted on an empty repository, but for the shipped adapter
    context.serving.adapters[1] = None
    rollout.rollback(context, "no, ours")
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion", "nano-3": "retired"}
    assert context.serving.loaded() == {1, 2}, "the adapter came back from the bucket"
    rollout.rollback(context, "further")
    assert states(engine)["nano-1"] == "champion"
    with pytest.raises(Refused, match="nothing to roll back to"):
        rollout.rollback(context, "further still")
    rollout.canary(context, "nano-3", "once more")
    rollout.sync(context)
    assert context.serving.loaded() == {1, 2, 3}


def test_too_little_feedback_trains_nothing_and_a_dry_run_writes_nothing(
    engine: Engine, context: RetrainContext
) -> None:
    with pytest.raises(Refused, match="too little feedback: 0 training pairs of 0 users"):
        run(context)
    filled(engine)
    with pytest.raises(Refused, match=r"retrain.min_pairs is 10000; at this rate [\d,]+ days of feedback are needed"):
        retrain(context, window(), min_pairs=10_000, promote="champion", dry_run=True)  # INPUTS 30
    outcome = retrain(context, window(), min_pairs=5, promote="champion", dry_run=True)
    assert outcome.counts["feedback_pairs"] == 40
    with Session(engine) as session:
        assert session.scalar(text("SELECT count(*) FROM model_versions")) == 0
        assert session.scalar(text("SELECT count(*) FROM preference_snapshots")) == 0
    assert list(context.store.keys("")) == []


def test_one_retrain_at_a_time(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    with lead(engine, "retrain"), pytest.raises(LockHeld):
        run(context)
    assert run(context) == "nano-2"


def test_the_database_itself_allows_one_champion(engine: Engine) -> None:
    common = {"state": "champion", "base_sha256": "b", "metrics": {}}
    with Session(engine) as session:
        session.add_all([ModelVersion(version="a", number=1, **common), ModelVersion(version="b", number=2, **common)])
        with pytest.raises(IntegrityError, match="one_champion"):
            session.flush()


def test_another_checkpoint_begins_a_new_line(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    run(context, "champion")
    new = dataclasses.replace(context, base_sha256="new")
    with pytest.raises(Refused, match="pigeon models adopt"):
        run(new)
    context.serving.faults["check_base"] = ModelError("serves another build")
    with pytest.raises(ModelError):
        rollout.adopt(new, "better pictures")
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion"}
    for _ in range(2):
        rollout.adopt(new, "better pictures")
        assert states(engine) == {"nano-1": "retired", "nano-2": "retired", "nano-3": "champion"}
    with Session(engine) as session:
        assert [v.version for v in registry.list_versions(session) if v.number > 0] == ["nano-3"]
    for refused in (lambda: rollout.rollback(new, "back"), lambda: rollout.promote(new, "nano-2", "back")):
        with pytest.raises(Refused, match="earlier checkpoint"):
            refused()
    with pytest.raises(Refused, match="too little feedback: 0 training pairs"):
        run(new)
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE night_tasks SET model_version = 'nano-3'"))
    assert run(new) == "nano-4"
    rollout.adopt(dataclasses.replace(context, base_sha256="third"), "and again")
    assert states(engine)["nano-5"] == "champion"


def test_an_altered_adapter_or_another_checkpoint_is_not_served(engine: Engine, context: RetrainContext) -> None:
    filled(engine)
    run(context, "none")
    with Session(engine, expire_on_commit=False) as session:
        key = next(iter(context.store.keys(registry.get(session, "nano-2").adapter_key)))
    context.serving.remove(2)
    context.store.delete(key)
    context.store.create(key, b"other weights", "application/octet-stream")
    with pytest.raises(ModelError, match="the registry says"):
        rollout.promote(context, "nano-2", "try")
    with pytest.raises(Refused, match="belongs to checkpoint base"):
        run(dataclasses.replace(context, base_sha256="other"))
    assert states(engine) == {"nano-1": "champion", "nano-2": "loaded"}
