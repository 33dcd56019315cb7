"""The engine's process and the model that forwards to it, with a stand-in for vLLM on the tiny model."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from generator.pigeon.model import PigeonModel
from generator.serving.backends.engine_client import EngineClient, EngineRefused, EngineUnavailable
from generator.serving.backends.generation import AnswerGenerator
from generator.serving.engine.answers import AnswerRows
from generator.serving.engine.server import EngineServer, SocketTaken
from generator.serving.engine.service import EngineService
from generator.serving.engine.weights import EngineWeights, WrongWeights
from generator.serving.engine_folder import write_engine_folder
from generator.serving.tensor_hash import content_hash
from tests.support.served_networks import ServedNetworks
from tests.support.standin_engine import StandinCore
from tests.support.tiny_serving import tiny_checkpoint, tiny_model

BASE = "00aa11bb22cc33dd"
Lora = dict[str, np.ndarray]
Client = Callable[..., EngineClient]


@dataclass(frozen=True)
class World:
    model: PigeonModel
    folder: Path
    lora: Lora
    other: Lora

    def request(self, seed: int) -> dict[str, np.ndarray]:
        """Six answers to one prompt with masked places and a reference; the alphas' conditions repeat."""
        config, rng = self.model.config, np.random.default_rng(seed)
        prompt = rng.integers(0, config.ids.vocab_size, 20 + seed % 7)
        prompt[[3, 5, 8]], prompt[12] = -1, -2
        condition = rng.normal(size=(3, config.decoder.prompt_width)).astype(np.float32)
        return {
            "prompt_ids": np.repeat(prompt[None], 6, axis=0),
            "condition": np.concatenate([condition, condition]),
            "variants": np.arange(6),
            "temperatures": np.array([0.0, 0.7, 1.0, 0.7, 1.3, 2.0]),
        }

    def wanted(self, seed: int, lora: Lora) -> object:
        """The same answers by the model that has a graph of its own."""
        step = ServedNetworks(self.model)._graphs["personalizer"]
        config, asked = self.model.config, self.request(seed)
        generator = AnswerGenerator(step, lora, config.generation, config.ids.image_end, config.language.max_positions)
        streams = [(seed, variant) for variant in range(6)]
        temperatures = asked["temperatures"].tolist()
        return generator.generate(asked["prompt_ids"], asked["condition"], streams, temperatures=temperatures)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("engine")
    model = tiny_model()
    write_engine_folder(folder / "engine", tiny_checkpoint(folder / "checkpoint"), model, BASE)
    matrices = model.personalizer.lora()
    lora = {"lora_a": matrices.a.detach().numpy(), "lora_b": matrices.b.detach().numpy()}
    rng = np.random.default_rng(4)
    other = {name: rng.normal(size=value.shape).astype(np.float32) * 0.2 for name, value in lora.items()}
    return World(model, folder / "engine", lora, other)


@contextmanager
def engine(world: World, folder: Path, slow: float = 0.0) -> Iterator[tuple[Path, StandinCore]]:
    """An engine's process in threads of this one: its socket, and what stands in for vLLM."""
    weights = EngineWeights.read(world.folder)
    rows, stop = AnswerRows(weights.rule()), threading.Event()
    core = StandinCore(world.model, rows, slow)
    adapters = folder / f"adapters-{time.monotonic_ns()}"
    adapters.mkdir()
    service = EngineService(weights, core, rows, adapters)
    thread = threading.Thread(target=service.run, args=(stop,))
    with EngineServer(folder / "engine.sock", service) as server:
        server.serve_in_background()
        thread.start()
        try:
            yield folder / "engine.sock", core
        finally:
            stop.set()
            thread.join()
            server.shutdown()


@pytest.fixture
def client() -> Iterator[Client]:
    """Makes clients, and closes them after the test."""
    made: list[EngineClient] = []

    def make(socket: Path, lora: Lora, base: str = BASE, sha256: str | None = None) -> EngineClient:
        made.append(EngineClient(socket, base, sha256 or content_hash(lora), lora))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_answers_of_tasks_asked_together_are_those_of_the_graph(world: World, tmp_path: Path, client: Client) -> None:
    """Tokens, counts and both log-probabilities, of two adapters at the same time in one batch."""
    asked = [(seed, lora) for seed in (3, 2**63 + 5, 12) for lora in (world.lora, world.other)]
    with engine(world, tmp_path) as (socket, core):

        def ask(seed: int, lora: Lora) -> object:
            return client(socket, lora).answer(seed, world.request(seed))

        with ThreadPoolExecutor(len(asked)) as pool:
            replies = list(pool.map(lambda one: ask(*one), asked))
    assert core.most > 6, "answers of several tasks in one step"
    rows = {}
    for (seed, lora), reply in zip(asked, replies, strict=True):
        sampler, found = world.wanted(seed, lora), reply.tensors
        got = [tokens[:count].tolist() for tokens, count in zip(found["tokens"], found["counts"], strict=True)]
        assert got == sampler.rows
        np.testing.assert_allclose(found["logprobs"], sampler.logprobs, atol=1e-4)
        np.testing.assert_allclose(found["sampling_logprobs"], sampler.sampling_logprobs, atol=1e-4)
        assert reply.fields["prefilled"] == world.request(seed)["prompt_ids"].size
        rows[seed, lora is world.other] = got
    assert rows[3, False] != rows[3, True], "the adapter decides"


def test_weights_that_are_not_the_models_are_refused(world: World, tmp_path: Path, client: Client) -> None:
    with engine(world, tmp_path) as (socket, _):
        with pytest.raises(
            EngineUnavailable, match=f"serves weights {BASE}, not 1{BASE[1:]}; start it on this repository"
        ):
            client(socket, world.lora, "1" + BASE[1:]).check()
        with pytest.raises(EngineRefused, match="have another hash"):
            client(socket, world.lora, sha256=content_hash(world.other)).check()
        thin = {name: value[:1] for name, value in world.lora.items()}
        with pytest.raises(EngineRefused, match=r"lora_a is \[1, 2, .*this model takes \[2, 2, "):
            client(socket, thin).check()
        with pytest.raises(SocketTaken, match="another engine answers there"):
            EngineServer(socket, None)
    shutil.copytree(world.folder, tmp_path / "changed")
    with (tmp_path / "changed" / "reference.safetensors").open("ab") as file:
        file.write(b" ")
    with pytest.raises(WrongWeights, match=r"reference\.safetensors was changed after the build"):
        EngineWeights.read(tmp_path / "changed")
    with pytest.raises(WrongWeights, match=r"no engine\.json; give personalizer/engine of a repository"):
        EngineWeights.read(tmp_path)


def test_an_engine_that_was_started_again_is_given_the_adapter_again(
    world: World, tmp_path: Path, client: Client
) -> None:
    mine = client(tmp_path / "engine.sock", world.lora)
    with pytest.raises(EngineUnavailable, match=r"does not answer \(FileNotFoundError.*; start it"):
        mine.check()
    found = []
    for _ in range(2):
        with engine(world, tmp_path):
            found.append(mine.answer(3, world.request(3)).tensors["tokens"].tolist())
    assert found[0] == found[1]
    with pytest.raises(EngineUnavailable, match=r"does not answer \(ConnectionRefusedError"):
        mine.answer(3, world.request(3))


def test_nobody_computes_for_who_has_gone(world: World, tmp_path: Path, client: Client) -> None:
    class Gone(Exception):
        pass

    def leave() -> None:
        raise Gone

    with engine(world, tmp_path, slow=0.3) as (socket, core):
        mine = client(socket, world.lora)
        mine.check()
        with pytest.raises(Gone):
            mine.answer(3, world.request(3), leave)
        until = time.monotonic() + 60
        while core.busy or not core.aborted:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert mine.answer(3, world.request(3)).tensors["counts"].min() > 0, (
            "the client goes on with another connection"
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"temperatures": np.array([0.001] * 6)}, "must each be 0"),
        ({"temperatures": np.array([1.0])}, "6 prompts, 6 variants, 1 temperatures"),
        ({"prompt_ids": np.full((6, 9), 10**6)}, "must lie in -2.."),
        ({"prompt_ids": np.zeros((6, 5000), dtype=np.int64)}, "5000 prompt tokens and .* exceed the model's"),
        ({"condition": np.zeros((6, 3), dtype=np.float32)}, r"condition: \[6, 3\] must be"),
        ({"variants": np.array([-1] * 6)}, "must be numbers from 0"),
        ({"variants": np.array([[1]] * 6)}, "question: TypeError"),
    ],
)
def test_a_request_that_does_not_fit_is_refused_and_the_next_is_answered(
    world: World, tmp_path: Path, client: Client, change: dict[str, np.ndarray], reason: str
) -> None:
    with engine(world, tmp_path) as (socket, _):
        mine = client(socket, world.lora)
        with pytest.raises(EngineRefused, match=reason) as raised:
            mine.answer(3, {**world.request(3), **change})
        assert raised.value.label == "rejected"
        assert mine.answer(3, world.request(3)).tensors["counts"].min() > 0


def test_logits_that_are_not_finite_fail_their_own_request_alone(world: World, tmp_path: Path, client: Client) -> None:
    broken = {name: value.copy() for name, value in world.lora.items()}
    broken["lora_b"][:] = 3e38
    with engine(world, tmp_path) as (socket, _):
        with pytest.raises(EngineRefused, match="logits of step 0 are not finite") as raised:
            client(socket, broken).answer(3, world.request(3))
        assert raised.value.label == "corrupt"
        assert client(socket, world.lora).answer(3, world.request(3)).tensors["counts"].min() > 0
