"""A night by a diffusers pipeline of tiny random weights: real Postgres and S3, no Triton."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from consumers.postgres import postgres_connection
from generator.nightly.in_process import pipeline_context
from generator.nightly.plan import Scope
from generator.nightly.run import Interrupted, Night
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas import faultpoints
from schemas.manifest import POINTER_KEY, Pointer
from schemas.settings import Settings
from schemas.tables import ModelVersion, NightTask
from tests.support.night_world import NIGHT, Announcements, build
from tests.support.tiny_pipeline import tiny_pipeline

pytestmark = pytest.mark.integration
NIGHTLY = {"variants": 1, "answers": 4, "outage_seconds": 5.0, "min_reference_score": -100.0}
"""Settings of a small night; a random scorer must not refuse what is random, too."""


@pytest.fixture
def drawn_by_pipeline(settings: Settings, tmp_path: Path) -> Settings:
    pipeline = tiny_pipeline(tmp_path / "pipeline")
    models = settings.models.model_copy(update={"preset": "pipeline", "pipeline": pipeline})
    # Nobody listens there: a night that asked Triton would fail.
    triton = settings.triton.model_copy(update={"url": "127.0.0.1:1"})
    night = settings.night.model_copy(update=NIGHTLY)
    return settings.model_copy(update={"models": models, "triton": triton, "night": night})


@pytest.fixture
def elsewhere(drawn_by_pipeline: Settings) -> Iterator[Settings]:
    """A second, empty database and bucket: where the unbroken night runs."""
    settings = drawn_by_pipeline
    server, _, own = settings.database.url.get_secret_value().rpartition("/")
    name = f"{own}_unbroken"
    connection = postgres_connection(settings.database, "pigeon-tests")
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE pigeon_template")
    bucket = f"{settings.s3.bucket}-unbroken"
    client = Store(settings.s3).s3
    client.create_bucket(Bucket=bucket)
    data = settings.model_dump()
    data["database"]["url"] = f"{server}/{name}"
    data["s3"]["bucket"] = bucket
    yield Settings.model_validate(data)
    client.delete_bucket(Bucket=bucket)
    client.close()
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


def night(settings: Settings, lines: list[str] | None = None) -> Night:
    """The night as the command makes it, by weights loaded again; its announcer is a test double."""
    echo = [] if lines is None else lines
    return Night(pipeline_context(settings, Announcements, echo.append, None), NIGHT)


def published(settings: Settings) -> dict[str, str]:
    """Hash of the manifest's shards and of every picture and poster, by key without the run's own names."""
    store = Store(settings.s3)
    pointer = store.get(POINTER_KEY)
    assert pointer
    keys = {*Pointer.parse(pointer.body).current.keys, *store.keys("posters/"), *store.keys("art/")}
    found = {key: hashlib.sha256(stored.body).hexdigest() for key in keys if (stored := store.get(key))}
    store.s3.close()
    return found


def test_a_night_by_a_pipeline_is_resumed_to_equal_bytes_and_done_once(
    drawn_by_pipeline: Settings,
    elsewhere: Settings,
    pigeon: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings = drawn_by_pipeline
    for world in (settings, elsewhere):
        build(world, tmp_path / "art", users=2, targets=1)
    with Session(connect(settings.database)) as session, session.begin():
        # A champion of Pigeon's: it neither draws here nor is in the way.
        session.add(ModelVersion(version="nano-1", number=1, state="champion", base_sha256="b", metrics={}))

    night(elsewhere).run(Scope())
    stored = itertools.count(1)
    monkeypatch.setattr(
        faultpoints,
        "handler",
        lambda point: os.kill(os.getpid(), signal.SIGTERM) if point == "stored" and next(stored) == 1 else None,
    )
    with pytest.raises(Interrupted):
        night(settings).run(Scope())
    assert Store(settings.s3).get(POINTER_KEY) is None
    monkeypatch.undo()
    lines: list[str] = []
    night(settings, lines).resume()
    assert "2 posters drawn" in lines[-1], lines

    assert published(settings) == published(elsewhere)
    with Session(connect(settings.database)) as session:
        tasks = session.scalars(select(NightTask)).all()
    assert {(task.user_id, task.model_version, task.adapter_version, task.status) for task in tasks} == {
        ("u0", "pipeline-1", 1, "done"),
        ("u1", "pipeline-1", 1, "done"),
    }

    before = published(settings)
    for name, value in _environment(settings).items():
        monkeypatch.setenv(name, value)
    again = pigeon("night", "run", "--date", NIGHT.isoformat())
    assert again.returncode == 0, again.stderr
    assert "published already, nothing drawn" in again.stdout
    assert published(settings) == before


def _environment(settings: Settings) -> dict[str, str]:
    """What a team sets to draw with a pipeline, and this test's settings of the night."""
    pipeline = settings.models.pipeline.model_dump(mode="json", exclude_defaults=True)
    return {
        "PIGEON_MODELS__PRESET": "pipeline",
        **{f"PIGEON_MODELS__PIPELINE__{name.upper()}": str(value) for name, value in pipeline.items()},
        **{f"PIGEON_NIGHT__{name.upper()}": str(value) for name, value in NIGHTLY.items()},
        "PIGEON_TRITON__URL": settings.triton.url,
    }
