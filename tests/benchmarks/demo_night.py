"""The demo's users and their night on embedded servers, drawn once for all rows that need it.

Films, clicks and recommendations are the demo's; its users are written straight into Postgres, because a broker and consumers
are no part of what is measured here.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import psycopg2
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.orm import Session

from deploy.local.demo.data import DemoData, build
from deploy.local.stack import Stack
from generator.nightly.ledger import Ledger, run_id_of
from generator.nightly.plan import Scope
from generator.nightly.run import Night, NightContext
from generator.serving.build import build_repository
from generator.serving.client import TritonPigeon
from generator.serving.repository import checkpoint_folder
from generator.storage.objects import Store
from generator.storage.postgres import connect
from migrations import database
from schemas.answers import AnswerSet
from schemas.settings import Settings, load_settings
from schemas.tables import AnswerSet as AnswerRow
from schemas.tables import Item, NightTask, Recommendation, UserHistory
from tests.benchmarks import cpu
from tests.benchmarks.recorded import RecordedPigeon
from tests.benchmarks.table import say
from tests.support.night_world import Announcements

CHECKOUT = Path(__file__).parents[2]
STATE = CHECKOUT / ".pigeon"
"""Whose cache keeps films, art and the model repository between runs."""
USERS = 80
"""As many as the demo draws for."""


@dataclass(frozen=True)
class Drawn:
    """A task that was drawn, with what it was drawn from."""

    task: NightTask
    answers: AnswerSet


@dataclass(frozen=True)
class DemoNight:
    """The night and what it took."""

    settings: Settings
    repository: Path
    data: DemoData
    model: RecordedPigeon
    servers: int
    """Process whose children are Triton's."""
    run_id: str
    figures: dict[str, Any]
    """As the run stores them."""
    tasks: tuple[Drawn, ...]
    process_seconds: float
    """Processor time of the night's process, plan and publishing included."""
    triton: Counter[str]
    """Processor seconds of Triton's processes meanwhile, by model."""

    @property
    def session(self) -> dict[str, Any]:
        """What its one process did."""
        found: dict[str, Any] = self.figures["sessions"][-1]
        return found


@functools.cache
def demo_night() -> DemoNight:
    """The night of the demo's users, drawn when it is first asked for."""
    data = demo_data()
    say("  model repository (exported where it is not there yet)")
    checkpoint = checkpoint_folder(load_settings(state_dir=STATE))
    repository = STATE / "cache" / "bench" / "models"
    build_repository(checkpoint, "nano", repository)
    folder = Path(tempfile.mkdtemp(prefix="pigeon-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stack = Stack(folder)
    shutil.copytree(repository, stack.state.models)
    say("  servers")
    stack.up(services=("postgres", "s3", "triton"), tied=True)
    atexit.register(stack.down, purge=True)
    settings = load_settings(state_dir=folder, images={"allowed_schemes": ("file",)})
    database.upgrade(settings.database)
    write_users(settings, data, list(data.tastes)[:USERS])
    model = RecordedPigeon(TritonPigeon(settings))
    say(f"  a night for {USERS} users")
    servers = next(one.pid for one in stack.status() if one.name == "triton") or 0
    process_seconds, triton = run_night(settings, model, data.night, servers)
    engine = connect(settings.database)
    run_id = run_id_of(data.night)
    try:
        run = Ledger(engine).get_run(data.night)
        assert run is not None
        tasks = read_tasks(settings, run_id)
    finally:
        engine.dispose()
    return DemoNight(settings, repository, data, model, servers, run_id, run.figures, tasks, process_seconds, triton)


@functools.cache
def demo_data() -> DemoData:
    """The demo's films, clicks and recommendations."""
    say("  films, art and clicks of the demo (kept between runs)")
    return build(load_settings(state_dir=STATE), lambda what, done, total: None)


def run_night(settings: Settings, model: RecordedPigeon, night: date, servers: int) -> tuple[float, Counter[str]]:
    """The product's night, published; its announcements are kept in memory.

    Returns processor seconds of this process, and of Triton's by model.
    """
    before, own = cpu.by_model(cpu.family(servers)), time.process_time()
    Night(NightContext(settings, lambda: model, Announcements, lambda line: say(f"  {line}")), night).run(Scope())
    process_seconds = time.process_time() - own
    triton = cpu.by_model(cpu.family(servers))
    triton.subtract(before)
    return process_seconds, triton


def next_night(night: DemoNight, days: int, tasks: int) -> float:
    """Processor seconds of a night some days later, which has so many tasks; Triton's included."""
    day = night.data.night + timedelta(days=days)
    process_seconds, triton = run_night(night.settings, night.model, day, night.servers)
    drawn = len(read_tasks(night.settings, run_id_of(day)))
    assert drawn == tasks, f"{drawn} tasks where {tasks} were to be measured"
    return process_seconds + triton.total()


def recommend_one_more(night: DemoNight) -> None:
    """Put a film first that is not among the first user's recommendations, in the place of the one there."""
    engine = connect(night.settings.database)
    with Session(engine) as session, session.begin():
        user = session.scalars(select(Recommendation).order_by(Recommendation.user_id).limit(1)).one()
        other = session.scalars(
            select(Item.item_id).where(Item.item_id.not_in(user.item_ids)).order_by(Item.item_id).limit(1)
        ).one()
        user.item_ids = [other, *user.item_ids[1:]]
    engine.dispose()


def read_tasks(settings: Settings, run_id: str) -> tuple[Drawn, ...]:
    """The run's tasks with their answers, in the manifest's order."""
    engine = connect(settings.database)
    same = (
        (AnswerRow.user_id == NightTask.user_id)
        & (AnswerRow.item_id == NightTask.item_id)
        & (AnswerRow.answers_fingerprint == NightTask.answers_fingerprint)
    )
    with Session(engine) as session:
        rows = session.execute(
            select(NightTask, AnswerRow.answers)
            .join(AnswerRow, same)
            .where(NightTask.run_id == run_id)
            .order_by(NightTask.user_id, NightTask.item_id)
        ).all()
        session.expunge_all()
    engine.dispose()
    return tuple(Drawn(task, AnswerSet.unpack(answers)) for task, answers in rows)


def beside(settings: Settings, name: str) -> Settings:
    """A database and a bucket of their own on the same servers."""
    url = settings.database.url.get_secret_value()
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f'CREATE DATABASE "{name}"')
    connection.close()
    own = SecretStr(f"{url.rpartition('/')[0]}/{name}")
    changed = {
        "database": settings.database.model_copy(update={"url": own}),
        "s3": settings.s3.model_copy(update={"bucket": name}),
    }
    found = settings.model_copy(update=changed)
    database.upgrade(found.database)
    Store(found.s3).s3.create_bucket(Bucket=name)
    return found


def write_users(settings: Settings, data: DemoData, users: Sequence[str]) -> None:
    """All films, and these users with their last clicks and their recommendations."""
    wanted = set(users)
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        for film in read_lines(data.catalog):
            film["image_uri"] = f"file://{data.catalog.parent / film['image_uri']}"
            session.add(Item(**film))
        clicks: dict[str, list[dict[str, Any]]] = {}
        for click in read_lines(data.clicks):
            if click["user_id"] in wanted:
                clicks.setdefault(click["user_id"], []).append(click)
        for user, events in clicks.items():
            session.add(history(user, events, settings.consumer.history_size))
        for line in read_lines(data.recommendations):
            if line["user_id"] in wanted:
                session.add(Recommendation(**line))
    engine.dispose()


def history(user_id: str, events: list[dict[str, Any]], size: int) -> UserHistory:
    """A history as the consumers write it, newest first."""
    newest = sorted(events, key=lambda event: (event["occurred_at"], event["event_id"]), reverse=True)[:size]
    entries = [{name: event[name] for name in ("event_id", "item_id", "kind", "occurred_at")} for event in newest]
    fingerprint = hashlib.sha256(" ".join(entry["event_id"] for entry in entries).encode()).hexdigest()
    return UserHistory(
        user_id=user_id,
        entries=entries,
        fingerprint=fingerprint,
        interaction_count=len(events),
        last_occurred_at=entries[0]["occurred_at"],
    )


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
