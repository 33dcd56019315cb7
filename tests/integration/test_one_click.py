"""One user's click, from the poster shown to the next night's poster, on real servers.

manifest reader -> Kafka -> consumer -> Postgres -> click model and snapshot -> adapter -> Triton -> the next night.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid5

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from generator.feedback import snapshot
from generator.feedback.clicks import showings
from generator.feedback.split import is_held_out
from generator.serving.client import TritonPigeon
from generator.storage.objects import Store
from schemas.events import FEEDBACK, PosterFeedback
from schemas.manifest import PosterManifest
from schemas.settings import Settings, load_settings
from schemas.settings_loop import ClickSettings
from schemas.tables import ModelVersion, NightTask, Poster
from schemas.tables import PosterFeedback as StoredFeedback
from tests.support.consume_world import consume, send
from tests.support.night_world import build
from tests.support.tiny_serving import copy_repository, tiny_checkpoint

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

USERS, ITEM_OF = 24, {f"u{n}": f"item{8 + n % 4}" for n in range(24)}
NOW = datetime.now(UTC)
TRACED = "u2"
FIRST, SECOND = (NOW - timedelta(days=5)).date(), NOW.date()
# A random model draws noise, and whether it learns well is no matter here: no picture and no challenger is refused for it.
# Readers show both variants alike, so that two dozen users compare them often enough.
LENIENT = {
    "night": {
        "answers": 4,
        "exploration": 1.0,
        "min_reference_score": -100,
        "near_duplicate_distance": 0,
        "blank_stddev": 0,
    },
    "clicks": {"min_clicks": 10},
    "retrain": {
        "min_pairs": 4,
        "gate_min_pairs": 1,
        "gate_tasks": 2,
        "gate_min_accuracy": -1,
        "gate_min_margin": -1000,
        "gate_max_kl": 1000,
        "gate_max_chosen_fall": 1000,
        "gate_max_cs_drop": 200,
        "gate_max_cis_drop": 200,
        "gate_max_length_change": 1000,
        "gate_max_user_diversity_drop": 2,
        "gate_max_answer_diversity_drop": 2,
        "gate_max_information_drop": 1000,
        "learning_rate": 3e-2,
        "epochs": 2,
    },
}
Pigeon = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def checkpoint(own_triton: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint, served by the module's own Triton."""
    folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny"))
    assert own_triton.triton.model_repository
    copy_repository(folder, own_triton.triton.model_repository)
    with TritonPigeon(own_triton) as model:
        model.load_repository()
    return folder


@pytest.fixture
def own(checkpoint: Path, own_triton: Settings, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same settings for this process and for the `pigeon` commands that it starts."""
    triton = own_triton.triton
    assert triton.admin_key
    monkeypatch.setenv("PIGEON_MODELS__CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("PIGEON_TRITON__URL", triton.url)
    monkeypatch.setenv("PIGEON_TRITON__ADMIN_KEY", triton.admin_key.get_secret_value())
    monkeypatch.setenv("PIGEON_TRITON__MODEL_REPOSITORY", str(triton.model_repository))
    for group, values in LENIENT.items():
        for name, value in values.items():
            monkeypatch.setenv(f"PIGEON_{group.upper()}__{name.upper()}", json.dumps(value))
    return load_settings(state_dir=settings.state_dir, database=settings.database, s3=settings.s3, kafka=settings.kafka)


def run(pigeon: Pigeon, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    ended = pigeon(*arguments, timeout=1200)
    assert ended.returncode in codes, ended.stdout + ended.stderr
    return ended.stdout


def reader(settings: Settings) -> PosterManifest:
    """As a recommender reads it, another variant for each request."""
    store = Store(settings.s3)
    return PosterManifest.open(
        bucket=settings.s3.bucket, client=store.s3, refresh_seconds=math.inf, rotation="request", control_share=0.0
    )


def surf(settings: Settings, posters: PosterManifest) -> str:
    """Users are shown posters on three days and click on variant 0; returns what our user clicked."""
    events, clicked = [], ""
    for user, item in ITEM_OF.items():
        first = min(posters.variants_for(user, item), key=lambda row: row["variant"])["poster_id"]
        for number in range(12):
            request = f"{user}/{number}"
            choice = posters.poster_for(user, item, key=request)
            assert choice is not None
            assert choice.poster_id is not None
            at = NOW - timedelta(days=4 - number % 3, minutes=number)
            shown = {"poster_id": choice.poster_id, "user_id": user, "item_id": item, "request_id": request}
            actions = ("impression", "click") if choice.poster_id == first and number % 4 else ("impression",)
            if user == TRACED and "click" in actions:
                clicked = choice.poster_id
            events += [
                PosterFeedback.model_validate(
                    {
                        **shown,
                        "schema_version": 1,
                        "event_id": uuid5(UUID(int=0), f"{request}/{action}"),
                        "action": action,
                        "propensity": choice.propensity,
                        "position": number % 3,
                        "occurred_at": at + timedelta(seconds=second),
                    }
                )
                for second, action in enumerate(actions)
            ]
    send(settings, events)
    return clicked


def test_a_click_on_a_poster_changes_the_next_nights_poster(
    engine: Engine, own: Settings, pigeon: Pigeon, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    assert not is_held_out(TRACED, own.retrain.holdout_share), "our user is one of those who teach"
    build(own, tmp_path / "art", users=USERS, targets=1)
    run(pigeon, "night", "run", "--date", FIRST.isoformat())

    clicked = surf(own, reader(own))
    assert clicked
    consume(own, (FEEDBACK,))
    with Session(engine) as session:
        stored = session.scalars(
            select(StoredFeedback).where(StoredFeedback.user_id == TRACED, StoredFeedback.action == "click")
        ).all()
        assert {row.poster_id for row in stored} == {clicked}
        base_weights = showings.newest_checkpoint(session, NOW)
        assert base_weights
        read = showings.read(session, NOW - timedelta(days=28), NOW, base_weights, ClickSettings()).showings
        assert read is not None
        assert sum(read.clicked[read.users == TRACED]) == len(stored), (
            "each click is a clicked showing of the click model"
        )
    fitted = pigeon("loop", "fit", "--until", NOW.isoformat())
    assert fitted.returncode in {0, 8}, fitted.stderr
    assert f"{12 * USERS} showings" in fitted.stdout

    trained = run(pigeon, "retrain", "--until", NOW.isoformat(), "--promote", "champion")
    assert "who are not held out" in trained, "it ranked by a click model of its own, or said why not"
    used = next(line for line in trained.splitlines() if line.startswith("pairs per 1,000 showings: "))
    record_property("one click", used)
    assert "nano-2 is champion, nano-1 retired" in trained
    with Session(engine) as session:
        champion = session.scalars(select(ModelVersion).where(ModelVersion.state == "champion")).one()
        assert champion.snapshot_id
        body = Store(own.s3).get(snapshot.key_of(champion.snapshot_id))
    assert body is not None
    learned = snapshot.decode(body.body, champion.snapshot_id).pairs.select("train", "feedback")
    assert clicked in {pair.chosen_poster_id for pair in learned if pair.user_id == TRACED}
    with TritonPigeon(own) as model:
        assert champion.number in model.loaded_versions("personalizer")

    run(pigeon, "night", "run", "--date", SECOND.isoformat())
    with Session(engine) as session:
        task = session.scalars(
            select(NightTask).where(NightTask.user_id == TRACED, NightTask.model_version == champion.version)
        ).one()
        drawn = session.scalars(select(Poster).where(Poster.user_id == TRACED, Poster.run_id == task.run_id)).all()
        before = session.get_one(Poster, clicked)
    assert (task.status, task.adapter_version) == ("done", champion.number)
    assert {poster.weights for poster in drawn}.isdisjoint({before.weights})
    shown = reader(own).poster_for(TRACED, ITEM_OF[TRACED], key="the next day")
    assert shown is not None
    assert shown.poster_id in {poster.poster_id for poster in drawn}, "tomorrow's reader shows what the adapter drew"
    assert shown.poster_id != clicked
    status = run(pigeon, "night", "status", "--date", SECOND.isoformat())
    assert "model nano-2" in status
