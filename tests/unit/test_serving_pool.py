"""Several Triton servers behind one client: which is asked, which is left alone, what is loaded where.

The servers are test doubles that speak Triton's protocol.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from generator.serving import control
from generator.serving import pool as pool_module
from generator.serving.api import AnswerRequest, InferenceCorrupt, InferenceUnavailable, PictureRequest
from generator.serving.client import TritonPigeon
from generator.serving.repository import MODELS, RepositoryManifest
from schemas.errors import ModelError, ServerUnavailable
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings
from schemas.settings_triton import TritonSettings
from tests.support.fake_triton import FakeTriton, free_port, serve

PICTURE = PictureRequest((1, 2, 3), 7)
PROMPT = PromptSnapshot(
    history_titles=("a",), history_tokens=((1, 2),), title="t", description="d", reference_tokens=(3,)
)


class Cluster:
    """Two servers and what can be done to them."""

    def __init__(self) -> None:
        self.fakes = [FakeTriton(), FakeTriton()]
        self.ports = [free_port(), free_port()]
        self.running: list[grpc.Server | None] = [None, None]

    def start(self, number: int) -> None:
        self.running[number] = serve(self.fakes[number], self.ports[number])

    def stop(self, number: int) -> None:
        running, self.running[number] = self.running[number], None
        if running is not None:
            running.stop(None).wait()

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    made.start(0)
    made.start(1)
    yield made
    made.stop(0)
    made.stop(1)


@pytest.fixture
def model(cluster: Cluster, tmp_path, monkeypatch) -> Iterator[TritonPigeon]:
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_SECONDS", 0.05)
    triton = TritonSettings(url=",".join(cluster.addresses), network_timeout_seconds=5, inference_timeout_seconds=20)
    with TritonPigeon(Settings(state_dir=tmp_path, triton=triton)) as client:
        yield client


def asked(fake: FakeTriton) -> int:
    return len(fake.asked)


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    waiting = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return True
        waiting.wait(0.05)
    return False


def answer_request(adapter: int) -> AnswerRequest:
    return AnswerRequest("task", PROMPT, (0.0, 0.5), (0.0, 1.0), 5, adapter)


def test_requests_go_to_the_server_with_the_fewest_under_way(cluster: Cluster, model: TritonPigeon) -> None:
    held, release = threading.Event(), threading.Event()
    cluster.fakes[0].model.alive = lambda: (held.set(), release.wait(20))
    model.servers()
    with ThreadPoolExecutor(1) as other:
        first = other.submit(model.draw_pictures, [PICTURE])
        while not held.wait(0.05):  # the first request may have gone to the second server
            first.result()
            first = other.submit(model.draw_pictures, [PICTURE])
        before = asked(cluster.fakes[0]), asked(cluster.fakes[1])
        for _ in range(4):
            model.draw_pictures([PICTURE])
        assert (asked(cluster.fakes[0]), asked(cluster.fakes[1])) == (before[0], before[1] + 4)
        release.set()
        first.result()


def test_a_server_that_dies_costs_no_request_and_comes_back(cluster: Cluster, model: TritonPigeon, caplog) -> None:
    for _ in range(4):
        model.draw_pictures([PICTURE])
    assert asked(cluster.fakes[0]) == asked(cluster.fakes[1]) == 2
    cluster.stop(0)
    for _ in range(6):
        model.draw_pictures([PICTURE])
    assert asked(cluster.fakes[1]) == 8
    first, second = model.servers()
    assert (first.requests, second.requests) == (2, 8)
    assert first.failures >= 1
    assert first.problem
    assert second.problem == ""
    assert f"Triton at {cluster.addresses[0]} is not used" in caplog.text
    cluster.start(0)
    assert eventually(lambda: bool(model.draw_pictures([PICTURE])) and not model.servers()[0].problem)
    assert f"Triton at {cluster.addresses[0]} is used again" in caplog.text


def test_a_server_that_fails_is_left_alone_for_longer_and_longer(
    cluster: Cluster, model: TritonPigeon, monkeypatch
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_SECONDS", 30.0)
    cluster.fakes[0].broken = RuntimeError("its stub is dead")
    for _ in range(10):
        model.draw_pictures([PICTURE])
    assert asked(cluster.fakes[0]) == 1
    assert asked(cluster.fakes[1]) == 10
    assert "its stub is dead" in model.servers()[0].problem


def test_when_all_fail_the_error_is_the_servers_own_and_none_is_given_up(
    cluster: Cluster, model: TritonPigeon, monkeypatch
) -> None:
    monkeypatch.setattr(pool_module, "FIRST_BACKOFF_SECONDS", 30.0)
    for fake in cluster.fakes:
        fake.broken = RuntimeError("out of memory")
    with pytest.raises(InferenceUnavailable, match="pictures: out of memory"):
        model.draw_pictures([PICTURE])
    for fake in cluster.fakes:
        fake.broken = None
    assert model.draw_pictures([PICTURE]), "who else could be asked"
    cluster.stop(0)
    cluster.stop(1)
    with pytest.raises(InferenceUnavailable):
        model.draw_pictures([PICTURE])
    with pytest.raises(InferenceUnavailable, match=r"no Triton server can be asked: .*; "):
        model.text_embeddings(["?"])


def test_an_invalid_answer_is_asked_of_another_server(cluster: Cluster, model: TritonPigeon) -> None:
    cluster.fakes[0].corrupt = True
    for _ in range(3):
        assert model.draw_pictures([PICTURE])
    cluster.fakes[1].corrupt = True
    with pytest.raises(InferenceCorrupt, match="NaN"):
        model.draw_pictures([PICTURE])


def test_a_server_with_other_weights_is_not_used_and_named(cluster: Cluster, model: TritonPigeon, caplog) -> None:
    cluster.fakes[1].base_weights = "weights-of-last-week"
    for _ in range(4):
        model.draw_pictures([PICTURE])
    assert (asked(cluster.fakes[0]), asked(cluster.fakes[1])) == (4, 0)
    assert f"Triton at {cluster.addresses[1]} is not used" in caplog.text
    assert "serves another base_weights" in model.servers()[1].problem
    assert model.base_weights == cluster.fakes[0].base_weights
    cluster.fakes[1].base_weights = cluster.fakes[0].base_weights
    assert eventually(lambda: bool(model.draw_pictures([PICTURE])) and asked(cluster.fakes[1]) > 0)


def test_a_server_whose_models_are_not_loaded_is_not_used(cluster: Cluster, model: TritonPigeon) -> None:
    cluster.fakes[0].unready.add("unet")
    assert not model.ready()
    for _ in range(3):
        model.draw_pictures([PICTURE])
    assert asked(cluster.fakes[0]) == 0
    assert "unet not loaded" in model.servers()[0].problem


def test_a_request_for_an_adapter_goes_where_the_adapter_is(cluster: Cluster, model: TritonPigeon, monkeypatch) -> None:
    monkeypatch.setattr(pool_module, "ADAPTER_LOOK_SECONDS", 0.0)
    cluster.fakes[1].adapters.add(2)
    for _ in range(3):
        model.answer(answer_request(2))
    assert cluster.fakes[0].asked == []
    assert model.loaded_versions("personalizer") == (1,)
    assert model.loaded_versions("personalizer", anywhere=True) == (1, 2)
    with pytest.raises(InferenceUnavailable, match="has no adapter 3"):
        model.answer(answer_request(3))
    cluster.fakes[0].adapters.add(2)
    assert eventually(lambda: bool(model.answer(answer_request(2))) and cluster.fakes[0].asked == ["answers"])
    assert model.loaded_versions("personalizer") == (1, 2)


def test_models_are_loaded_on_every_server_that_is_there(cluster: Cluster, model: TritonPigeon, caplog) -> None:
    model.load("personalizer")
    assert [fake.loads for fake in cluster.fakes] == [["personalizer"]] * 2
    cluster.stop(1)
    model.load("unet")
    assert cluster.fakes[0].loads == ["personalizer", "unet"]
    assert "the other servers go on without it" in caplog.text
    assert model.ready()
    cluster.stop(0)
    with pytest.raises(ServerUnavailable, match="cannot load unet"):
        model.load("unet")
    assert not model.ready()


def test_a_repository_that_one_server_refuses_is_kept_from_those_that_serve(
    cluster: Cluster, model: TritonPigeon, monkeypatch, caplog
) -> None:
    first, second = cluster.fakes
    manifest = RepositoryManifest.model_construct(build=first.build, models=dict.fromkeys(MODELS), gpu=None)
    monkeypatch.setattr(control, "check_repository", lambda *given: manifest)
    first.refused = "token_decoder"
    with pytest.raises(ModelError, match=rf"its file is damaged; left as they were: {cluster.addresses[1]}"):
        model.load_repository()
    assert second.loads == []
    second.unready.add("unet")  # it has nothing to lose
    assert model.load_repository() is manifest
    assert second.loads == list(MODELS)
    assert "its file is damaged; the other servers go on without it" in caplog.text


def test_without_a_server_that_fits_the_error_names_them_all(cluster: Cluster, model: TritonPigeon) -> None:
    assert model.drawing_version == "fake-drawing-1"
    for fake in cluster.fakes:
        fake.base_weights = "others"
    with pytest.raises(ModelError, match="serves another base_weights"):
        model.loaded_versions("personalizer")


def test_many_threads_find_the_servers_at_once(cluster: Cluster, model: TritonPigeon) -> None:
    with ThreadPoolExecutor(16) as threads:
        drawn = list(threads.map(lambda _: model.draw_pictures([PICTURE]), range(48)))
    assert len(drawn) == 48
    assert sum(asked(fake) for fake in cluster.fakes) == 48
    assert min(asked(fake) for fake in cluster.fakes) >= 12


def test_one_server_is_asked_as_it_is(cluster: Cluster, tmp_path) -> None:
    one = TritonSettings(url=cluster.addresses[0])
    cluster.fakes[0].unready.add("unet")  # nobody looks
    with TritonPigeon(Settings(state_dir=tmp_path, triton=one)) as client:
        client.draw_pictures([PICTURE])
        cluster.fakes[0].broken = RuntimeError("busy")
        for _ in range(3):
            with pytest.raises(InferenceUnavailable, match="busy"):
                client.draw_pictures([PICTURE])
        cluster.fakes[0].broken = None
        client.draw_pictures([PICTURE])
        (state,) = client.servers()
        assert (state.requests, state.failures, state.problem) == (2, 3, "")


def test_addresses_are_a_list_or_separated_by_commas() -> None:
    assert TritonSettings(url=["a:1", "b:2"]).addresses == TritonSettings(url="a:1, b:2").addresses == ("a:1", "b:2")
    for wrong in ("", "a:1,", "a:1,a:1"):
        with pytest.raises(ValueError, match="names a server twice, or nothing between two commas"):
            TritonSettings(url=wrong)
