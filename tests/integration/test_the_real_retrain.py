"""The whole loop on real Postgres, S3, Triton and DPO, with a tiny random checkpoint."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback import gate, registry
from generator.feedback.backends import open_context
from generator.feedback.ports import RetrainContext
from generator.feedback.retrain import Window, retrain
from generator.feedback.split import is_held_out
from generator.serving.api import DrawRequest
from generator.serving.client import TritonPigeon
from schemas.errors import Refused
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings, load_settings
from tests.support.loop_world import DAY, filled
from tests.support.tiny_serving import copy_repository, tiny_checkpoint

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

# A random model draws noise: what a challenger's noise scores beside the champion's says nothing, so these two limits are wide.
TINY = {
    "gate_min_pairs": 3,
    "gate_tasks": 3,
    "gate_max_cs_drop": 200.0,
    "gate_max_cis_drop": 200.0,
    "gate_max_kl": 50.0,
    "gate_max_chosen_fall": 50.0,
    "gate_max_length_change": 50.0,
    "gate_max_user_diversity_drop": 2.0,
    "gate_max_answer_diversity_drop": 2.0,
    "gate_max_information_drop": 50.0,
    "learning_rate": 3e-2,
    "epochs": 4,
}


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
def environment(checkpoint: Path, own_triton: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings for this process and for the `pigeon` commands that it starts."""
    monkeypatch.setenv("PIGEON_MODELS__CHECKPOINT", str(checkpoint))
    triton = own_triton.triton
    assert triton.admin_key
    monkeypatch.setenv("PIGEON_TRITON__URL", triton.url)
    monkeypatch.setenv("PIGEON_TRITON__ADMIN_KEY", triton.admin_key.get_secret_value())
    monkeypatch.setenv("PIGEON_TRITON__MODEL_REPOSITORY", str(triton.model_repository))
    for name, value in TINY.items():
        monkeypatch.setenv(f"PIGEON_RETRAIN__{name.upper()}", str(value))


@pytest.fixture
def context(environment: None, settings: Settings, tmp_path: Path) -> Iterator[RetrainContext]:
    own = load_settings(state_dir=settings.state_dir, database=settings.database, s3=settings.s3)
    made = open_context(own.model_copy(update={"state_dir": tmp_path}), print)
    yield made
    made.engine.dispose()


def unit_vector(context: RetrainContext) -> list[float]:
    return [float(x) for x in context.serving.model.text_embeddings(["w5"])[0]]


def test_commands_from_feedback_to_champion_and_back(
    engine: Engine, context: RetrainContext, pigeon: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    filled(engine, users=30, embedding=unit_vector(context))
    trained = pigeon("retrain", "--date", str(DAY), "--min-pairs", "10", timeout=1200)
    assert trained.returncode == 0, trained.stderr + trained.stdout
    echoed = trained.stdout.splitlines()
    assert "loss 0.6931 ->" in trained.stdout, "the first step of DPO is ln 2"
    assert sum(line.startswith("gate: ok: ") for line in echoed) == len(gate.CHECKS) - 1
    assert sum(line.startswith("gate: open: off_policy_gain") for line in echoed) == 1, "the nights stored no answers"
    assert "a lift of 10% would take more than a year" in trained.stdout
    assert echoed[-1] == "nano-2 is canary for 10% of the next night's users"

    promoted = pigeon("models", "promote", "nano-2", "--reason", "it is better")
    assert promoted.stdout.strip() == "nano-2 is champion, nano-1 retired", promoted.stderr
    prompt = PromptSnapshot(
        history_titles=("w5",), history_tokens=((1, 2),), title="w7", description="w8", reference_tokens=(3, 4)
    )
    model = context.serving.model
    champion, before = (
        [c.tokens for seed in range(4) for c in model.draw(DrawRequest("t", prompt, (0.0, 0.9), seed, number))]
        for number in (2, 1)
    )
    assert champion != before, "both serve, and they are not the same"

    back = pigeon("models", "rollback", "--reason", "taste changed")
    assert back.stdout.strip() == "nano-1 is champion again, nano-2 retired", back.stderr
    listed = pigeon("models", "list").stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [["nano-1", "champion"], ["nano-2", "retired"]]
    again = pigeon("retrain", "--date", str(DAY), "--min-pairs", "10")
    assert again.returncode == 8
    assert "nothing new: nano-2" in again.stderr
    wrong = pigeon("models", "promote", "nano-9", "--reason", "typo")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


@pytest.mark.faults
def test_flipped_labels_are_learned_and_refused(engine: Engine, context: RetrainContext) -> None:
    """Everybody who is trained on clicked the opposite of what held-out users click (fault 16)."""
    filled(engine, users=30, embedding=unit_vector(context), flipped=lambda user: not is_held_out(user, 0.2))
    with pytest.raises(Refused, match=r"nano-2 refused by the gate: accuracy 0 .*; nano-1 serves on"):
        retrain(context, Window.of_day(DAY, 28, datetime.now(UTC)), min_pairs=10, promote="champion")
    with Session(engine) as session:
        refused = registry.get(session, "nano-2")
        assert refused.state == "refused"
        assert refused.metrics["train"]["last_epoch_accuracy"] > 0.9, "the flipped labels were learned"
        assert registry.get_current(session, "champion").version == "nano-1"
    assert np.array_equal(sorted(context.serving.loaded() - {2}), [1])
