"""Test doubles of training and serving for the loop.

What they report is planted, and faults can be injected.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback import registry
from generator.feedback.ports import PairScores, RetrainContext, Trained
from generator.feedback.retrain import Promotion, Window, retrain
from generator.feedback.reward_pairs import AnsweredTask
from generator.serving.api import Answer, AnswerRequest, Answers, DrawnImage, DrawRequest, ImageFeatures
from generator.storage.objects import Store
from schemas.preferences import PreferencePair
from schemas.settings import Settings
from tests.support.loop_world import DAY, TOKENIZER


@dataclasses.dataclass(frozen=True)
class Planted:
    """Scores of every pair: all alike, but for a share that is ranked wrong."""

    accuracy: float = 1.0
    margin: float = 0.2
    kl: float = 0.5
    fall: float = -0.1

    def scores(self, pairs: Sequence[PreferencePair]) -> PairScores:
        count = len(pairs)
        right = round(self.accuracy * count)
        margins = (*(self.margin,) * right, *(-self.margin,) * (count - right))
        users = tuple(pair.user_id for pair in pairs)
        return PairScores(users, margins, (self.kl,) * count, (-self.fall,) * count)


class TrainerDouble:
    """Writes a stated adapter and reports stated figures: a test double."""

    def __init__(self) -> None:
        self.judged = Planted()
        self.trainings = 0
        self.fail: Exception | None = None
        self.champions: list[Path | None] = []

    def train(self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path) -> Trained:
        if self.fail:
            raise self.fail
        self.trainings += 1
        self.champions.append(champion)
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_model.safetensors").write_bytes("".join(p.pair_id for p in pairs).encode())
        return Trained(out, {"last_loss": math.nan, "pairs": len(pairs)})

    def judge(self, adapter: Path, champion: Path | None, pairs: Sequence[PreferencePair]) -> PairScores:
        assert pairs
        assert (adapter / "adapter_model.safetensors").is_file()
        return self.judged.scores(pairs)

    def answer_logprobs(self, adapter: Path | None, tasks: Sequence[AnsweredTask]) -> list[np.ndarray]:
        return [np.zeros(len(task.answers)) for task in tasks]


class ServingDouble:
    """Adapters in a dictionary; draws embeddings that a test states per adapter: a test double."""

    tokenizer_version = TOKENIZER

    def __init__(self) -> None:
        self.adapters: dict[int, Path | None] = {1: None}
        self.faults: dict[str, Exception] = {}
        self.angle: dict[int, float] = {}
        self.flat: set[int] = set()
        """Adapters that give everybody one answer."""
        self.drawn: list[DrawRequest] = []

    @property
    def model(self) -> ServingDouble:
        return self

    def _maybe(self, call: str) -> None:
        if call in self.faults:
            raise self.faults.pop(call)

    def loaded(self) -> frozenset[int]:
        return frozenset(self.adapters)

    def check_base(self) -> None:
        self._maybe("check_base")

    def install(self, number: int, adapter: Path) -> None:
        self._maybe("install")
        self.adapters[number] = adapter

    def probe(self, number: int) -> None:
        assert number in self.adapters
        self._maybe("probe")

    def remove(self, number: int) -> None:
        self.adapters.pop(number, None)

    def image_features(self, images: Sequence[np.ndarray]) -> list[ImageFeatures]:
        raise NotImplementedError

    def text_embeddings(self, texts: Sequence[str]) -> np.ndarray:
        return np.tile(np.array([1, 0], np.float32), (len(texts), 1))

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        assert request.adapter_version in self.adapters
        self._maybe(f"draw {request.adapter_version}")
        self.drawn.append(request)
        angle = self.angle.get(request.adapter_version, 0.5)
        embedding = np.array([math.cos(angle), math.sin(angle)], np.float32)
        image = np.zeros((4, 4, 3), np.uint8)
        return [DrawnImage(alpha, (1,), image, embedding) for alpha in request.alphas]

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        assert request.adapter_version in self.adapters
        self._maybe(f"answer {request.adapter_version}")
        same = request.adapter_version in self.flat
        codes = [(0 if same else int(request.task_id.split("/")[1][4:]), 0 if same else n) for n in range(9)]
        row = np.array([1, 0], np.float32)
        answers = tuple(
            Answer(alpha, temperature, codes[n], -1.0, -1.0, row)
            for n, (alpha, temperature) in enumerate(zip(request.alphas, request.temperatures, strict=True))
        )
        return Answers(answers, "sketch", row[None])


def window(day: date = DAY) -> Window:
    return Window.of_day(day, 28, datetime.now(UTC))


def run(context: RetrainContext, promote: Promotion = "canary", day: date = DAY) -> str | None:
    return retrain(context, window(day), min_pairs=5, promote=promote).version


def states(engine: Engine) -> dict[str, str]:
    with Session(engine) as session:
        found = {v.version: v.state for v in registry.list_versions(session)}
    assert list(found.values()).count("champion") == 1
    return found


def doubled_context(
    settings: Settings, engine: Engine, folder: Path, **retrain: object
) -> tuple[RetrainContext, list[str]]:
    """A context on real Postgres and S3 with doubles, whose gate takes one pair for enough.

    And what it echoes.
    """
    few = settings.retrain.model_copy(update={"gate_min_pairs": 1, **retrain})
    own = settings.model_copy(update={"state_dir": folder, "retrain": few})
    echoed: list[str] = []
    context = RetrainContext(own, engine, Store(settings.s3), ServingDouble(), TrainerDouble(), "base", echoed.append)
    return context, echoed
