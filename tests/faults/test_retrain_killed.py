"""Fault 16 on real Postgres, S3 and DPO: `pigeon retrain` is killed in its training, and run again."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.feedback.artifacts import fetch, folder_sha256
from generator.feedback.backends import Dpo
from generator.feedback.snapshot import decode, key_of
from generator.storage.objects import Store
from schemas.settings import Settings
from schemas.tables import PreferenceSnapshot
from tests.support.loop_world import filled
from tests.support.tiny_serving import tiny_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(900)]

# No adapter is ever loaded: what is asked is whether the same one comes out, and the gate refuses all by this limit.
RETRAIN = {"gate_min_accuracy": 2.0, "gate_min_pairs": 1, "learning_rate": 3e-2, "epochs": 4, "off_policy_tasks": 0}
ARGUMENTS = ("retrain", "--until", "2026-11-03T05:00:00Z", "--min-pairs", "10")
DEATHS = (("step done", 3), ("state written", 2), ("state saved", 3), ("adapter trained", 1), ("adapter stored", 1))


def files_of(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def killed(environment: dict[str, str], point: str, count: int) -> None:
    """Run the command in its own process and see it die there."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed_pigeon", point, str(count), *ARGUMENTS],
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (point, done.returncode, done.stdout, done.stderr)


def test_a_killed_retrain_goes_on_to_the_adapter_of_an_unbroken_one(
    engine: Engine,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pigeon: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Fault 16: SIGKILL mid-step, mid-save, and before and after the adapter is stored.

    Feedback goes on coming in meanwhile.

    Same trajectory, hence the same bytes; one version, one snapshot; checkpoint and reference unchanged.
    """
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint")
    before = files_of(checkpoint)
    monkeypatch.setenv("PIGEON_MODELS__CHECKPOINT", str(checkpoint))
    for name, value in RETRAIN.items():
        monkeypatch.setenv(f"PIGEON_RETRAIN__{name.upper()}", str(value))
    secret = settings.database.url.get_secret_value()
    environment = {
        "PIGEON_STATE_DIR": str(settings.state_dir),  # its env file has the other addresses
        "PIGEON_DATABASE__URL": secret,
        "PIGEON_S3__BUCKET": settings.s3.bucket,
    }
    night = filled(engine, users=30)
    for number, (point, count) in enumerate(DEATHS):
        killed(environment, point, count)
        late, other = night.task(f"late{number}", "x")
        night.feedback(late, "ic")
        night.feedback(other, "i")
    ended = pigeon(*ARGUMENTS, timeout=300)
    assert ended.returncode == 8, ended.stderr
    assert "refused by the gate: accuracy" in ended.stderr

    store = Store(settings.s3)
    with Session(engine) as session:
        (row,) = session.scalars(select(PreferenceSnapshot))
        versions = registry.list_versions(session)
        assert [(version.version, version.state) for version in versions] == [
            ("nano-1", "champion"),
            ("nano-2", "refused"),
        ]
        key, sha256, figures = versions[1].adapter_key, versions[1].adapter_sha256, versions[1].metrics["train"]
        snapshot_id = row.snapshot_id
    stored = store.get(key_of(snapshot_id))
    assert stored
    pairs = decode(stored.body, snapshot_id).pairs.select("train")
    assert not [pair for pair in pairs if pair.user_id.startswith("late")]
    own = settings.retrain.model_copy(update=RETRAIN)
    unbroken = Dpo(checkpoint, own, print).train(None, pairs, tmp_path / "unbroken")
    assert folder_sha256(unbroken.adapter_dir) == sha256
    assert fetch(store, key or "", sha256 or "", tmp_path / "cache").is_dir()
    assert figures["steps"] == unbroken.figures["steps"] == 4 * -(-len(pairs) // own.batch_size)
    assert figures["last_epoch_loss"] == unbroken.figures["last_epoch_loss"]
    assert files_of(checkpoint) == before
    store.s3.close()
