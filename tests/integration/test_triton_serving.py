"""The tiny model behind the real Triton.

The same answers as PyTorch, no matter what else the server does.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from generator.pigeon.checkpoint import load_model
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.serving import adapters
from generator.serving.api import (
    AnswerRequest,
    Answers,
    DrawRequest,
    InferenceCorrupt,
    InferenceRejected,
    InferenceUnavailable,
    Picture,
    PictureRequest,
)
from generator.serving.client import TritonPigeon
from generator.serving.repository import check_repository, repository_folder
from schemas.errors import InputError, ModelError, ServerUnavailable
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings, load_settings
from tests.support.served_contract import check_contract
from tests.support.tiny_serving import other_adapter, tiny_build

# The first run exports the tiny model, which takes minutes where the cores are busy.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(2400)]

ALPHAS = (0.0, 0.5, 1.0)


def image(seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    tiny_build(folder)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def served(own_triton: Settings, checkpoint: Path) -> Settings:
    """The module's own Triton serves the tiny repository."""
    repository = own_triton.triton.model_repository
    assert repository
    shutil.copytree(checkpoint.parent / "models", repository, dirs_exist_ok=True)
    settings = load_settings(state_dir=own_triton.state_dir, models={"checkpoint": checkpoint})
    with TritonPigeon(settings) as model:
        model.load_repository(checkpoint)
    return settings


@pytest.fixture
def model(served: Settings) -> Iterator[TritonPigeon]:
    with TritonPigeon(served) as client:
        yield client


def prompt(seed: int, model: TritonPigeon) -> PromptSnapshot:
    features = model.image_features([image(seed + n) for n in range(3)])
    return PromptSnapshot(
        history_titles=("w1 w2", "w3"),
        history_tokens=tuple(f.tokens for f in features[:2]),
        title=f"w{seed % 30}",
        description="w5 w9",
        reference_tokens=features[2].tokens,
    )


def same(left, right) -> bool:
    return all(
        a.tokens == b.tokens and np.array_equal(a.image, b.image) and np.array_equal(a.embedding, b.embedding)
        for a, b in zip(left, right, strict=True)
    )


def test_the_served_model_holds_to_the_nights_contract(served: Settings, model: TritonPigeon) -> None:
    with TritonPigeon(served) as again:
        check_contract(model, again)


def test_answers_are_those_of_pytorch(model: TritonPigeon, checkpoint: Path) -> None:
    pipeline = PigeonPipeline(load_model(checkpoint))
    items = [Item(f"w{n}", image(n, (40, 32 + n)), "w5 w9") for n in range(3)]
    wanted = pipeline([Task(items[:2], items[2], 11, ALPHAS)])[0]
    features = model.image_features([item.image for item in items])
    assert [list(f.tokens) for f in features] == [*wanted.history_codes, wanted.reference_codes]
    assert len({len(f.tokens) for f in features} | {0}) > 1, "some picture should have tokens"
    snapshot = PromptSnapshot(
        history_titles=("w0", "w1"),
        history_tokens=tuple(f.tokens for f in features[:2]),
        title="w2",
        description="w5 w9",
        reference_tokens=features[2].tokens,
    )
    drawn = model.draw(DrawRequest("t", snapshot, ALPHAS, 11, 1))
    text = model.text_embeddings(["w5 w9", "w7"])
    assert text.shape == (2, 14)
    for candidate, expected in zip(drawn, wanted.candidates, strict=True):
        assert candidate.alpha == expected.alpha
        assert list(candidate.tokens) == expected.codes
        assert np.abs(candidate.image.astype(int) - expected.image).max() <= 1
        assert abs(100 * candidate.embedding @ text[0] - expected.cs) < 0.5
        assert (
            abs(np.mean([100 * candidate.embedding @ f.embedding for f in features[:2]]) - expected.cis_history) < 0.5
        )


GRID = (0.0, 0.5, 1.0, 0.0, 0.5, 1.0, 0.3, 0.6)
TEMPERATURES = (0.0, 0.7, 0.7, 1.0, 1.3, 1.6, 2.0, 2.0)


def answers_request(number: int, prompt: PromptSnapshot, adapter: int = 1) -> AnswerRequest:
    return AnswerRequest(str(number), prompt, GRID, TEMPERATURES, number, adapter)


def same_answers(left: Answers, right: Answers) -> bool:
    return np.array_equal(left.history_previews, right.history_previews) and all(
        (a.tokens, a.logprob, a.sampling_logprob) == (b.tokens, b.logprob, b.sampling_logprob)
        and np.array_equal(a.preview, b.preview)
        for a, b in zip(left.answers, right.answers, strict=True)
    )


def test_sampled_answers_are_those_of_pytorch(model: TritonPigeon, checkpoint: Path) -> None:
    pipeline = PigeonPipeline(load_model(checkpoint))
    items = [Item(f"w{n}", image(n, (40, 32 + n)), "w5 w9") for n in range(3)]
    task = Task(items[:2], items[2], 11)
    wanted = pipeline.answer(task, GRID, TEMPERATURES)
    history, references = pipeline.encode([task])
    snapshot = PromptSnapshot(
        history_titles=("w0", "w1"),
        history_tokens=tuple(tuple(codes) for codes in history[0]),
        title="w2",
        description="w5 w9",
        reference_tokens=tuple(references[0]),
    )
    found = model.answer(answers_request(11, snapshot))
    assert found.preview_kind == "sketch"
    np.testing.assert_allclose(found.history_previews, wanted.history_previews, atol=0.02)
    assert len({answer.tokens for answer in found.answers}) > 4
    for answer, expected, alpha, temperature in zip(found.answers, wanted.answers, GRID, TEMPERATURES, strict=True):
        assert (answer.alpha, answer.temperature) == (alpha, temperature)
        assert list(answer.tokens) == expected.codes
        assert answer.logprob == pytest.approx(expected.logprob, abs=1e-4)
        assert answer.sampling_logprob == pytest.approx(expected.sampling_logprob, abs=1e-4)
        np.testing.assert_allclose(answer.preview, expected.preview, atol=0.02)
    assert found.answers[0].sampling_logprob == 0


def test_answers_and_pictures_do_not_depend_on_their_neighbours(model: TritonPigeon) -> None:
    """N pictures in a request are N requests of one, bit for bit, while answers are sampled beside them."""
    asked = [answers_request(n, prompt(n, model)) for n in range(4)]
    alone = [model.answer(request) for request in asked]
    codes = sorted({answer.tokens for answers in alone for answer in answers.answers})[:7]
    drawn = [PictureRequest(tokens, 2**64 - 1 - n) for n, tokens in enumerate((*codes, ()))]
    pictures = [model.draw_pictures([request])[0] for request in drawn]

    def equal(left: list[Picture], right: list[Picture]) -> bool:
        return all(
            np.array_equal(a.image, b.image) and np.array_equal(a.embedding, b.embedding)
            for a, b in zip(left, right, strict=True)
        )

    assert equal(model.draw_pictures(drawn), pictures)
    assert equal(model.draw_pictures(drawn[::-1]), pictures[::-1])
    assert len({picture.image.tobytes() for picture in pictures}) == len(drawn)
    with ThreadPoolExecutor(6) as pool:
        answering = [pool.submit(model.answer, request) for request in asked * 2]
        drawing = [pool.submit(model.draw_pictures, part) for part in (drawn[:3], drawn[3:], drawn)]
        assert all(same_answers(one.result(), alone[n % 4]) for n, one in enumerate(answering))
        assert equal([*drawing[0].result(), *drawing[1].result()], pictures)
        assert equal(drawing[2].result(), pictures)


def test_the_server_says_what_draws_and_what_answers(served: Settings, model: TritonPigeon, checkpoint: Path) -> None:
    manifest = check_repository(served.triton.model_repository, "nano", checkpoint)
    assert model.drawing_version == manifest.drawing_version
    assert model.base_weights == manifest.base_weights
    assert model.tokenizer_version == manifest.tokenizer_version


def test_a_wrong_request_for_answers_or_pictures_is_rejected(model: TritonPigeon) -> None:
    request = answers_request(1, prompt(1, model))
    assert model.answer(request)
    for change, message in (
        ({"temperatures": (0.5,)}, "1 for 8 alphas"),
        ({"temperatures": (-1.0,) * 8}, "must each be 0"),
        ({"temperatures": (float("nan"),) * 8}, "must each be 0"),
        ({"alphas": (2.0,) * 8}, "alphas"),
        ({"prompt": request.prompt.model_copy(update={"reference_tokens": (32,)})}, "reference_tokens holds a value"),
    ):
        with pytest.raises(InferenceRejected, match=message):
            model.answer(replace(request, **change))
    with pytest.raises(InferenceUnavailable, match="personalizer version 9 is not loaded"):
        model.answer(replace(request, adapter_version=9))
    with pytest.raises(InferenceRejected, match=r"tokens of row 1 must be at most 16 values in 0\.\.31"):
        model.draw_pictures([PictureRequest((1,), 1), PictureRequest((32,), 1)])
    with pytest.raises(InferenceRejected, match="tokens of row 0"):
        model.draw_pictures([PictureRequest((1,) * 17, 1)])
    with pytest.raises(InferenceUnavailable):
        model.draw_pictures([PictureRequest((1,), 1)] * 50, deadline_seconds=0.05)
    assert model.draw_pictures([PictureRequest((1,), 1)])


def test_a_task_does_not_depend_on_its_neighbours(model: TritonPigeon) -> None:
    requests = [DrawRequest(str(n), prompt(n, model), ALPHAS, n, 1) for n in range(6)]
    alone = [model.draw(request) for request in requests]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(2):
            together = list(pool.map(model.draw, requests))
            assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert len({candidate.tokens for answer in alone for candidate in answer}) > 6, "different tasks draw differently"


def test_a_picture_does_not_depend_on_its_batch(model: TritonPigeon) -> None:
    images = [image(n, (32 + n, 50)) for n in range(20)]
    together = model.image_features(images)
    for single, batched in zip(images, together, strict=True):
        (alone,) = model.image_features([single])
        assert alone.tokens == batched.tokens
        assert np.array_equal(alone.embedding, batched.embedding)


def test_a_deadline_ends_the_call_and_not_the_server(model: TritonPigeon) -> None:
    request = DrawRequest("t", prompt(1, model), ALPHAS, 1, 1)
    wanted = model.draw(request)
    for _ in range(4):
        with pytest.raises(InferenceUnavailable):
            model.draw(request, deadline_seconds=0.002)
    assert same(model.draw(request), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history_titles": ("a",)}, "1 history_titles for 2 history_tokens"),
        ({"history_titles": (), "history_tokens": ()}, "history_tokens is empty"),
        ({"reference_tokens": (32,)}, r"reference_tokens holds a value outside 0\.\.31"),
        ({"history_tokens": ((1,), (-1,))}, "history_tokens holds a value outside"),
        ({"description": "w1 " * 200}, "shorten its texts"),
    ],
)
def test_a_wrong_prompt_is_rejected_with_its_field(model: TritonPigeon, change, message) -> None:
    snapshot = PromptSnapshot(
        history_titles=("w1", "w2"), history_tokens=((1,), (2, 3)), title="w4", description="", reference_tokens=(5,)
    )
    assert model.draw(DrawRequest("t", snapshot, (0.5,), 1, 1))
    with pytest.raises(InferenceRejected, match=message):
        model.draw(DrawRequest("t", snapshot.model_copy(update=change), (0.5,), 1, 1))


def test_an_adapter_beside_the_one_that_serves(
    served: Settings, model: TritonPigeon, checkpoint: Path, tmp_path: Path
) -> None:
    """While number 2 comes and goes, every answer of number 1 is the same, and none fails."""
    request = DrawRequest("t", prompt(4, model), ALPHAS, 4, 1)
    second = DrawRequest("t", request.prompt, ALPHAS, 4, 2)
    champion = model.draw(request)
    with pytest.raises(InferenceUnavailable, match="personalizer version 2 is not loaded"):
        model.draw(second)
    adapter = other_adapter(checkpoint, tmp_path / "two")
    stop = threading.Event()
    answers = []

    def traffic() -> None:
        while not stop.is_set():
            answers.append(model.draw(request))

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(traffic)
        try:
            adapters.install_adapter(served, 2, adapter)
            assert model.loaded_versions("personalizer") == (1, 2)
            assert adapters.probe(served, 2).image.shape == (32, 32, 3)
            challenger = model.draw(second)
            asked = answers_request(4, request.prompt)
            assert not same_answers(model.answer(asked), model.answer(replace(asked, adapter_version=2)))
            adapters.install_adapter(served, 2, adapter)  # again: nothing happens
            with pytest.raises(InputError, match="taken by another adapter"):
                adapters.install_adapter(served, 2, other_adapter(checkpoint, tmp_path / "three", scale=0.7))
            assert same(model.draw(second), challenger)
            adapters.remove_adapter(served, 2)
            assert model.loaded_versions("personalizer") == (1,)
            adapters.install_adapter(served, 2, tmp_path / "three")
            assert not same(model.draw(second), challenger), "the number now means the other adapter"
        finally:
            stop.set()
            adapters.remove_adapter(served, 2)
        running.result()
    assert not same(champion, challenger)
    assert answers
    assert all(same(answer, champion) for answer in answers)
    check_repository(served.triton.model_repository, "nano", checkpoint)


def test_an_adapter_whose_numbers_overflow_answers_corrupt(
    served: Settings, model: TritonPigeon, checkpoint: Path, tmp_path: Path
) -> None:
    adapter = other_adapter(checkpoint, tmp_path / "wild")
    path = adapter / "llama" / "adapter_model.safetensors"
    save_file({name: np.full_like(value, 1e30) for name, value in load_file(path).items()}, path)
    adapters.install_adapter(served, 2, adapter)
    try:
        with pytest.raises(InferenceCorrupt, match="not finite"):
            adapters.probe(served, 2)
        assert adapters.probe(served, 1)
    finally:
        adapters.remove_adapter(served, 2)


def test_an_adapter_that_cannot_be_loaded_leaves_the_others(
    served: Settings, model: TritonPigeon, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(folder: Path, matrices: object, info: dict[str, str]) -> None:
        (folder / "adapter.npz").write_bytes(b"torn")
        (folder / "adapter.json").write_text(json.dumps(info))

    monkeypatch.setattr(adapters, "write_adapter", torn)
    with pytest.raises(ModelError, match="cannot load personalizer"):
        adapters.install_adapter(served, 2, other_adapter(checkpoint, tmp_path / "two"))
    assert model.loaded_versions("personalizer") == (1,)
    versions = repository_folder(served) / "personalizer"
    assert [path.name for path in versions.iterdir() if path.name.isdigit()] == ["1"]
    assert adapters.probe(served, 1)


def test_a_repository_that_does_not_fit_is_not_loaded(served: Settings, model: TritonPigeon, tmp_path: Path) -> None:
    other = served.model_copy(
        update={"models": served.models.model_copy(update={"preset": "lavit-7b"})},
    )
    with TritonPigeon(other) as wrong, pytest.raises(ModelError, match="built for preset nano"):
        wrong.load_repository()
    manifest = check_repository(served.triton.model_repository, "nano")
    model.check_served(manifest)
    with pytest.raises(ModelError, match="run `pigeon models load`"):
        model.check_served(manifest.model_copy(update={"build": "another"}))


def test_model_control_needs_the_key_and_drawing_does_not(served: Settings, model: TritonPigeon) -> None:
    keyless = served.model_copy(update={"triton": served.triton.model_copy(update={"admin_key": None})})
    with TritonPigeon(keyless) as guest:
        with pytest.raises(ServerUnavailable, match="PIGEON_TRITON__ADMIN_KEY"):
            guest.load("unet")
        assert guest.ready()
        assert guest.text_embeddings(["w1"]).shape == (1, 14)


def test_the_commands_say_what_is_served(
    served: Settings, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from generator.serving import commands

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIGEON_STATE_DIR", str(served.state_dir))
        patch.setenv("PIGEON_MODELS__CHECKPOINT", str(checkpoint))
        commands.build(checkpoint=None, preset=None, output=None)
        commands.load()
        commands.check()
    lines = capsys.readouterr().out.splitlines()
    assert "unchanged" in lines[0]
    assert "10 models of build" in lines[1]
    assert "serves this build, adapters 1" in lines[-1]
