"""Fault 17 on real Postgres, S3 and Triton: a promotion is killed at each of its steps, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback import registry, rollout
from generator.feedback.artifacts import upload
from generator.feedback.backends import open_context
from generator.feedback.ports import RetrainContext
from generator.serving.client import TritonPigeon
from schemas.faultpoints import RolloutPoint
from schemas.settings import Settings, load_settings
from schemas.tables import ModelVersion
from tests.support.tiny_serving import copy_repository, other_adapter, tiny_checkpoint

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def checkpoint(own_triton: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint, served by the module's own Triton."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    served = own_triton.triton.model_repository
    assert served
    copy_repository(folder, served)
    with TritonPigeon(own_triton) as model:
        model.load_repository()
    return folder


@pytest.fixture
def environment(checkpoint: Path, own_triton: Settings, settings: Settings) -> dict[str, str]:
    """The settings of the `pigeon` commands that are killed."""
    triton = own_triton.triton
    assert triton.admin_key
    return {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_MODELS__CHECKPOINT": str(checkpoint),
        "PIGEON_TRITON__URL": triton.url,
        "PIGEON_TRITON__ADMIN_KEY": triton.admin_key.get_secret_value(),
        "PIGEON_TRITON__MODEL_REPOSITORY": str(triton.model_repository),
    }


@pytest.fixture
def context(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RetrainContext]:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = open_context(load_settings(), print)
    yield made
    made.engine.dispose()


def killed(environment: dict[str, str], point: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_pigeon", point, "1", *arguments],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stdout, done.stderr)


def champion(context: RetrainContext) -> str:
    """The one champion, which Triton serves: it draws."""
    with Session(context.engine) as session:
        versions = [version for version in registry.list_versions(session) if version.state == "champion"]
        assert len(versions) == 1
        assert versions[0].number in context.serving.loaded()
        context.serving.probe(versions[0].number)
        return versions[0].version


def test_a_promotion_killed_at_each_step_leaves_one_champion_that_draws_and_a_rerun_ends_it(
    engine: Engine, context: RetrainContext, environment: dict[str, str], checkpoint: Path, tmp_path: Path
) -> None:
    """Fault 17: before and after the adapter is in Triton, after its probe.

    Before and after the registry changes.

    Then the way back is killed at the same steps.
    """
    key, sha256 = upload(context.store, "nano-2", other_adapter(checkpoint, tmp_path / "adapter"))
    with Session(engine) as session, session.begin():
        registry.ensure_champion(session, "nano", context.base_sha256)
        session.add(
            ModelVersion(
                version="nano-2",
                number=2,
                state="loaded",
                parent="nano-1",
                base_sha256=context.base_sha256,
                adapter_key=key,
                adapter_sha256=sha256,
                metrics={},
            )
        )
    points = get_args(RolloutPoint)
    for point in points:
        killed(environment, point, "models", "promote", "nano-2", "--reason", "it is better")
        assert champion(context) == ("nano-2" if point == "changed" else "nano-1")
    rollout.promote(context, "nano-2", "it is better")
    assert champion(context) == "nano-2"
    for point in points:
        killed(environment, point, "models", "promote", "nano-1", "--reason", "it was worse")
        assert champion(context) == ("nano-1" if point == "changed" else "nano-2")
    with Session(engine) as session:
        assert {version.version: version.state for version in registry.list_versions(session)} == {
            "nano-1": "champion",
            "nano-2": "retired",
        }
    context.serving.remove(2)
    context.store.s3.close()
