"""The model that forwards, in the real Triton's stub, to an engine whose vLLM is a stand-in."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from generator.pigeon.checkpoint import load_model
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.serving import adapters
from generator.serving.api import AnswerRequest, InferenceUnavailable
from generator.serving.client import TritonPigeon
from generator.serving.engine.answers import AnswerRows
from generator.serving.engine.server import EngineServer
from generator.serving.engine.service import EngineService
from generator.serving.engine.weights import EngineWeights
from generator.serving.repository import repository_folder
from schemas.errors import ModelError
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings, load_settings
from tests.support.standin_engine import StandinCore, engine_build
from tests.support.tiny_serving import other_adapter, tiny_build

pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]  # the first run exports the tiny model

ALPHAS, TEMPERATURES = (0.0, 0.5, 1.0, 0.5), (0.0, 0.7, 0.7, 1.6)


@contextmanager
def engine(checkpoint: Path, repository: Path, folder: Path) -> Iterator[None]:
    """The engine of the repository, in threads of this process."""
    weights = EngineWeights.read(repository / "personalizer" / "engine")
    rows, stop = AnswerRows(weights.rule()), threading.Event()
    core = StandinCore(load_model(checkpoint), rows)
    shutil.rmtree(folder / "adapters", ignore_errors=True)
    (folder / "adapters").mkdir()
    service = EngineService(weights, core, rows, folder / "adapters")
    thread = threading.Thread(target=service.run, args=(stop,))
    with EngineServer(folder / "engine.sock", service) as server:
        server.serve_in_background()
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            server.shutdown()
            (folder / "engine.sock").unlink()


def test_triton_forwards_to_an_engine_that_comes_and_goes(own_triton: Settings, tmp_path: Path) -> None:
    """Answers are PyTorch's, adapters serve side by side, and without an engine nothing loads."""
    checkpoint, _ = tiny_build(tmp_path)
    settings = load_settings(state_dir=own_triton.state_dir, models={"checkpoint": checkpoint})
    repository = repository_folder(own_triton)
    shutil.rmtree(repository, ignore_errors=True)
    engine_build(checkpoint, tmp_path / "models", repository, tmp_path / "engine.sock")
    with TritonPigeon(settings) as model:
        with pytest.raises(ModelError, match=r"engine at .*engine.sock: does not answer .*start it"):
            model.load_repository(checkpoint)
        with engine(checkpoint, repository, tmp_path):
            model.load_repository(checkpoint)
            task = Task([Item(f"w{n}", picture(n), "w5 w9") for n in range(2)], Item("w2", picture(2), "w5 w9"), 11)
            request = asked(model, task)
            found = model.answer(request)
            wanted = PigeonPipeline(load_model(checkpoint)).answer(task, ALPHAS, TEMPERATURES)
            assert [list(one.tokens) for one in found.answers] == [one.codes for one in wanted.answers]
            np.testing.assert_allclose(
                [one.logprob for one in found.answers], [one.logprob for one in wanted.answers], atol=1e-4
            )
            adapters.install_adapter(settings, 2, other_adapter(checkpoint, tmp_path / "other"))
            second = model.answer(asked(model, task, version=2))
            assert [one.tokens for one in second.answers] != [one.tokens for one in found.answers]
        with pytest.raises(InferenceUnavailable, match="does not answer"):
            model.answer(request)
        with engine(checkpoint, repository, tmp_path):
            again = model.answer(request)
            assert [(one.tokens, one.logprob) for one in again.answers] == [
                (one.tokens, one.logprob) for one in found.answers
            ]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def asked(model: TritonPigeon, task: Task, version: int = 1) -> AnswerRequest:
    """The task as the night would ask for it."""
    features = model.image_features([item.image for item in (*task.history, task.reference)])
    prompt = PromptSnapshot(
        history_titles=tuple(item.title for item in task.history),
        history_tokens=tuple(feature.tokens for feature in features[:-1]),
        title=task.reference.title,
        description=task.reference.description,
        reference_tokens=features[-1].tokens,
    )
    return AnswerRequest("t", prompt, ALPHAS, TEMPERATURES, task.seed, version)
