"""A canary's way on a real Postgres.

Planned, looked at, promoted, withdrawn or ended, with its numbers; overrides; unloading.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import Engine, func, text, update
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import canary, registry, rollout
from generator.feedback.canary_clicks import position
from generator.feedback.ports import RetrainContext
from generator.nightly.plan import Drawer, Drawers
from schemas.errors import Refused
from schemas.settings import Settings, load_settings
from schemas.settings_retrain import CanarySettings
from schemas.tables import ModelOverride, ModelVersion, NightRun, NightTask
from tests.support.loop_doubles import Planted, doubled_context, run, states
from tests.support.loop_world import Night, filled
from tests.support.schedule_world import free_port

pytestmark = pytest.mark.integration
USERS = 80


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


@pytest.fixture
def told(settings: Settings, engine: Engine, tmp_path: Path) -> tuple[RetrainContext, list[str]]:
    context, echoed = doubled_context(settings, engine, tmp_path, canary_share=0.5)
    filled(engine)
    run(context, "none")
    return with_canary(context, min_users=10, min_clicks=5), echoed


@pytest.fixture
def context(told: tuple[RetrainContext, list[str]]) -> RetrainContext:
    return told[0]


def with_canary(context: RetrainContext, **changes: object) -> RetrainContext:
    own = context.settings.canary.model_copy(update=changes)
    return dataclasses.replace(context, settings=context.settings.model_copy(update={"canary": own}))


def night_of(engine: Engine, canary_clicks: str, champion_clicks: str) -> datetime:
    """A published night after the canary began, and what its users did; returns a moment after all of it."""
    now = datetime.now(UTC)
    night = Night(engine, now.date())
    for n in range(USERS):
        user = f"u{n}"
        (poster,) = night.task(user, "y", cis=(50.0,), propensity=(1.0,))
        drawn_by_canary = position(user, "nano-2") < 0.5
        actions = canary_clicks if drawn_by_canary else champion_clicks
        night.feedback(poster, actions if n % 3 else "iii", at=now + timedelta(minutes=1))
    with Session(engine) as session, session.begin():
        session.execute(update(NightRun).where(NightRun.run_id == night.run_id).values(finished_at=now))
        ours = [f"u{n}" for n in range(USERS) if position(f"u{n}", "nano-2") < 0.5]
        tasks = update(NightTask).where(NightTask.run_id == night.run_id, NightTask.user_id.in_(ours))
        session.execute(tasks.values(model_version="nano-2"))
    return now + timedelta(days=1)


def events(engine: Engine) -> list[tuple[str | None, str, dict[str, Any]]]:
    with Session(engine) as session:
        return [(e.from_state, e.to_state, e.figures) for e in registry.list_events(session, "nano-2")]


def test_the_test_and_the_night_draw_the_line_at_the_same_users() -> None:
    drawers = Drawers(Drawer("nano-1", 1, "a"), Drawer("nano-2", 2, "b"), 0.3)
    for n in range(200):
        assert (drawers.drawer_for(f"u{n}").version == "nano-2") == (position(f"u{n}", "nano-2") < 0.3)


def test_a_canary_says_how_long_it_will_take_before_it_begins(
    engine: Engine, told: tuple[RetrainContext, list[str]]
) -> None:
    context, echoed = told
    canary.begin(context, "nano-2", "let us see")
    planned = events(engine)[-1][2]["plan"]
    assert planned["share"] == 0.5
    assert planned["users_before"] == 40
    assert set(planned["days_for_lift"]) == {"10%", "20%"}
    line = next(line for line in echoed if line.startswith("canary nano-2: "))
    assert "50% of them the canary's: a lift of 10% would take" in line
    assert echoed.index(line) < next(n for n, one in enumerate(echoed) if "is canary for 50%" in one)


def test_a_better_canary_is_promoted_with_its_numbers(engine: Engine, told: tuple[RetrainContext, list[str]]) -> None:
    context, echoed = told
    canary.begin(context, "nano-2", "let us see")
    canary.judge(context, datetime.now(UTC))
    assert states(engine)["nano-2"] == "canary"
    assert echoed[-1] == "canary nano-2 runs on: no night that it drew for is published yet"
    canary.judge(context, night_of(engine, "icicici", "iiici"))
    assert states(engine) == {"nano-1": "retired", "nano-2": "champion"}
    before, after, figures = events(engine)[-1]
    assert (before, after, figures["verdict"]) == ("canary", "champion", "better")
    assert 0 < figures["low"] < figures["difference"] < figures["high"]
    assert figures["canary_users"] + figures["champion_users"] == USERS
    canary.judge(context, datetime.now(UTC))
    assert echoed[-1] == "no canary runs"


def test_a_worse_canary_is_withdrawn(engine: Engine, context: RetrainContext) -> None:
    canary.begin(context, "nano-2", "let us see")
    canary.judge(context, night_of(engine, "iiii", "icicici"))
    assert states(engine) == {"nano-1": "champion", "nano-2": "canary"}, "without clicks too few to decide"
    engine_moment = datetime.now(UTC) + timedelta(days=1)
    few = with_canary(context, min_users=10, min_clicks=0)
    canary.judge(few, engine_moment)
    assert states(engine) == {"nano-1": "champion", "nano-2": "retired"}
    assert events(engine)[-1][2]["verdict"] == "worse"


def test_equals_run_on_with_one_event_per_moment_and_end_undecided(engine: Engine, context: RetrainContext) -> None:
    canary.begin(context, "nano-2", "let us see")
    moment = night_of(engine, "iici", "iici")
    for _ in range(2):
        canary.judge(context, moment)
    assert [(before, after) for before, after, _ in events(engine)[-2:]] == [("loaded", "canary"), ("canary", "canary")]
    assert events(engine)[-1][2]["verdict"] == "open"
    canary.judge(context, moment + timedelta(days=28))
    assert states(engine) == {"nano-1": "champion", "nano-2": "retired"}
    with Session(engine) as session:
        assert registry.list_events(session, "nano-2")[-1].reason.startswith("undecided after 28 days: ")


def test_a_canary_ends_when_the_champion_it_is_compared_with_is_gone(engine: Engine, context: RetrainContext) -> None:
    rollout.promote(context, "nano-2", "now")
    rollout.promote(context, "nano-1", "back")
    canary.begin(context, "nano-2", "let us see")
    canary.judge(context, datetime.now(UTC))
    assert states(engine)["nano-2"] == "canary", "promotions before it do not count"
    filled(engine, users=45, day=datetime(2026, 11, 1, tzinfo=UTC).date())
    assert run(context, "none") == "nano-3"
    rollout.promote(context, "nano-3", "by hand")
    canary.judge(context, datetime.now(UTC))
    assert states(engine) == {"nano-1": "retired", "nano-2": "retired", "nano-3": "champion"}


def test_a_canary_that_may_not_promote_itself_is_reported(engine: Engine, context: RetrainContext) -> None:
    canary.begin(context, "nano-2", "let us see")
    canary.judge(with_canary(context, promotes=False), night_of(engine, "icicici", "iiici"))
    assert states(engine)["nano-2"] == "canary"
    assert events(engine)[-1][2]["verdict"] == "better"


@pytest.fixture
def hook() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """An HTTP server: its address, the bodies it was sent.

    The list of statuses is what it answers with in turn (else 200).
    """
    bodies: list[dict[str, Any]] = []
    statuses: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses.pop(0) if statuses else 200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook?token=secret", bodies, statuses
        server.shutdown()
        thread.join()


def test_promotions_are_told_to_a_webhook_and_a_broken_one_blocks_nothing(
    engine: Engine,
    told: tuple[RetrainContext, list[str]],
    hook: tuple[str, list[dict[str, Any]], list[int]],
) -> None:
    context, echoed = told
    address, bodies, statuses = hook
    listening = with_canary(context, webhook_url=SecretStr(address))
    rollout.promote(listening, "nano-2", "it is better", {"lift": 0.2})
    assert [(b["event"], b["version"], b["replaced"], b["figures"]) for b in bodies] == [
        ("promoted", "nano-2", "nano-1", {"lift": 0.2})
    ]
    statuses.append(500)
    rollout.promote(listening, "nano-1", "no")
    assert "webhook of promoted nano-1 failed (status 500); nothing else depends on it" in echoed
    deaf = with_canary(context, webhook_url=SecretStr(f"http://127.0.0.1:{free_port()}/?token=secret"))
    rollout.promote(deaf, "nano-2", "yes")
    assert states(engine)["nano-2"] == "champion"
    assert echoed[-1].startswith("webhook of promoted nano-2 failed (")
    assert "secret" not in "".join(echoed)


def test_a_webhook_needs_its_host_on_the_list() -> None:
    with pytest.raises(ValidationError, match=r"host hooks\.example\.com is not in canary\.webhook_hosts"):
        CanarySettings.model_validate({"webhook_url": "https://hooks.example.com/x"})
    with pytest.raises(ValidationError, match="no http"):
        CanarySettings.model_validate({"webhook_url": "file:///etc/passwd", "webhook_hosts": [""]})
    allowed = {"webhook_url": "https://hooks.example.com/x", "webhook_hosts": ["hooks.example.com"]}
    assert CanarySettings.model_validate(allowed).webhook_url


def test_a_refused_version_serves_by_a_named_persons_override_until_it_expires(
    engine: Engine, context: RetrainContext
) -> None:
    filled(engine, users=45, day=datetime(2026, 11, 1, tzinfo=UTC).date())
    context.trainer.judged = Planted(margin=-0.1)
    with pytest.raises(Refused, match="nano-3 refused"):
        run(context)
    with pytest.raises(Refused, match="`pigeon models override` lets a named person decide otherwise"):
        canary.begin(context, "nano-3", "I insist")
    with pytest.raises(Refused, match="only a refused version needs an override"):
        rollout.override(context, "nano-1", "Ada", "why not", 1)
    rollout.override(context, "nano-3", "Ada", "the pairs were a robot's", 48)
    assert states(engine)["nano-3"] == "loaded"
    assert 3 in context.serving.loaded()
    canary.begin(context, "nano-3", "a fair test")
    canary.judge(context, datetime.now(UTC))
    assert states(engine)["nano-3"] == "canary"
    with Session(engine) as session, session.begin():
        reasons = [event.reason for event in registry.list_events(session, "nano-3")]
        assert any(reason.startswith("overridden by Ada until ") for reason in reasons)
        session.execute(update(ModelOverride).values(expires_at=func.now() - timedelta(minutes=1)))
    with pytest.raises(Refused, match="the override by Ada expired"):
        rollout.promote(context, "nano-3", "now")
    canary.judge(context, datetime.now(UTC))
    assert states(engine)["nano-3"] == "retired"


def test_retired_adapters_leave_triton_after_the_grace_and_a_rollback_brings_them_back(
    engine: Engine, context: RetrainContext
) -> None:
    """F17: each version kept two processes with a language model of their own, for ever."""
    rollout.promote(context, "nano-2", "better")
    rollout.promote(context, "nano-1", "worse")
    assert rollout.unload(context) == [], "within the grace"
    age = text("UPDATE model_versions SET updated_at = now() - interval '73 hours' WHERE version = 'nano-2'")
    with Session(engine) as session, session.begin():
        session.execute(age)
        night = NightRun(
            run_id="now",
            logical_date=datetime.now(UTC).date(),
            status="running",
            model_version="nano-2",
            fencing_token=1,
        )
        session.add(night)
        session.flush()
        task = NightTask(
            run_id="now",
            user_id="u",
            item_id="i",
            input_fingerprint="f",
            model_version="nano-2",
            adapter_version=2,
            seed=1,
        )
        session.add(task)
    assert rollout.unload(context) == [], "a night still draws with it"
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE night_tasks SET status = 'done' WHERE run_id = 'now'"))
    assert rollout.unload(context) == ["nano-2"]
    assert context.serving.loaded() == {1}
    assert rollout.unload(context) == []
    rollout.promote(context, "nano-2", "after all")
    assert context.serving.loaded() == {1, 2}
    with Session(engine) as session:
        assert session.get_one(ModelVersion, "nano-2").state == "champion"
