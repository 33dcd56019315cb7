"""What the client makes of a server's answers: errors by status, and nothing invalid let through."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from generator.serving.api import (
    AnswerRequest,
    DrawRequest,
    InferenceCorrupt,
    InferenceRejected,
    InferenceUnavailable,
    PictureRequest,
)
from generator.serving.client import TritonPigeon
from schemas.errors import ModelError, ServerUnavailable
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings

PROMPT = PromptSnapshot(
    history_titles=("a",), history_tokens=((1, 2),), title="t", description="d", reference_tokens=(3,)
)
REQUEST = DrawRequest("task-1", PROMPT, (0.0, 0.9), 5, 1)


def good_answer() -> dict[str, np.ndarray]:
    return {
        "images": np.zeros((2, 8, 8, 3), np.uint8),
        "tokens": np.array([[4, 5, -1], [6, -1, -1]]),
        "counts": np.array([2, 1]),
        "alphas": np.array([0.0, 0.9]),
        "embeddings": np.eye(2, 4, dtype=np.float32),
    }


ANSWER_REQUEST = AnswerRequest("task-2", PROMPT, (0.0, 0.9), (0.0, 1.3), 5, 1)
PICTURES = [PictureRequest((4, 5), 2**64 - 1), PictureRequest((6,), 7), PictureRequest((), 8)]


def good_answers() -> dict[str, np.ndarray]:
    return {
        "tokens": np.array([[4, 5, -1], [6, -1, -1]]),
        "counts": np.array([2, 1]),
        "logprobs": np.array([-1.5, -4.0]),
        "sampling_logprobs": np.array([0.0, -2.0]),
        "previews": np.eye(2, 4, dtype=np.float32),
        "history_previews": np.eye(1, 4, dtype=np.float32),
        "preview_kind": np.array([b"sketch"], dtype=np.object_),
    }


def good_pictures() -> dict[str, np.ndarray]:
    return {"images": np.zeros((3, 8, 8, 3), np.uint8), "embeddings": np.eye(3, 4, dtype=np.float32)}


class FakeServer:
    """A test double of tritonclient's InferenceServerClient."""

    def __init__(self, answer: dict[str, np.ndarray] | InferenceServerException) -> None:
        self.answer = answer
        self.asked: list[dict] = []
        self.versions: dict[str, str] = {}
        """Versions in the models' configurations by model, where they are not the first one."""
        self.is_ours = True

    def infer(self, model, inputs, **options):
        shapes = {i.name(): tuple(i.shape()) for i in inputs}
        self.asked.append({"model": model, "inputs": [i.name() for i in inputs], "shapes": shapes, **options})
        if isinstance(self.answer, InferenceServerException):
            raise self.answer
        return SimpleNamespace(as_numpy=self.answer.get)

    def get_model_metadata(self, model, **_):
        if isinstance(self.answer, InferenceServerException):
            raise self.answer
        return SimpleNamespace(inputs=[SimpleNamespace(shape=[-1, 8, 8, 3])])

    def get_model_config(self, model, **_):
        if isinstance(self.answer, InferenceServerException):
            raise self.answer
        parameters = Everything(self.versions.get(model, "one" if self.is_ours else ""))
        return SimpleNamespace(config=SimpleNamespace(parameters=parameters))

    def load_model(self, model, **_):
        raise self.answer

    def close(self) -> None: ...


class Everything(dict):
    """Protobuf's map with one value for every key; an empty one is what an unknown key gives."""

    def __init__(self, value: str) -> None:
        super().__init__()
        self.value = value

    def __missing__(self, key):
        return SimpleNamespace(string_value=self.value)


def client(answer) -> tuple[TritonPigeon, FakeServer]:
    model = TritonPigeon(Settings())
    model.close()
    server = FakeServer(answer)
    model._pool.members[0].server.client = server
    return model, server


def test_a_good_answer() -> None:
    model, server = client(good_answer())
    first, second = model.draw(REQUEST, deadline_seconds=3)
    assert (first.alpha, first.tokens) == (0.0, (4, 5))
    assert (second.alpha, second.tokens) == (0.9, (6,))
    assert second.image.shape == (8, 8, 3)
    assert server.asked[0]["client_timeout"] == 3
    assert server.asked[0]["request_id"] == "task-1"
    model.draw(REQUEST)
    assert server.asked[1]["client_timeout"] == Settings().triton.inference_timeout_seconds


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((2, 8, 8, 3), np.float32), r"images: is float32\[2, 8, 8, 3\], expected uint8"),
        (
            "images",
            np.zeros((1, 8, 8, 3), np.uint8),
            r"images: is uint8\[1, 8, 8, 3\], expected uint8\[2, any, any, 3\]",
        ),
        ("embeddings", np.full((2, 4), np.nan, np.float32), "embeddings: holds NaN"),
        ("embeddings", np.ones((2, 4), np.float32), "not of unit length"),
        ("alphas", np.array([0.9, 0.0]), "asked for alphas"),
        ("counts", np.array([2, 4]), "counts .* do not fit 3 tokens"),
        ("counts", np.array([3, 1]), "negative code"),
        ("tokens", None, "pigeon: answered without tokens"),
    ],
)
def test_an_invalid_answer_is_corrupt(name, value, message) -> None:
    model, _ = client({**good_answer(), name: value})
    with pytest.raises(InferenceCorrupt, match=message):
        model.draw(REQUEST)


def test_good_answers() -> None:
    model, server = client(good_answers())
    found = model.answer(ANSWER_REQUEST, deadline_seconds=3)
    first, second = found.answers
    assert (first.alpha, first.temperature, first.tokens) == (0.0, 0.0, (4, 5))
    assert (first.logprob, first.sampling_logprob) == (-1.5, 0.0)
    assert (second.alpha, second.temperature, second.tokens) == (0.9, 1.3, (6,))
    assert second.preview.tolist() == [0, 1, 0, 0]
    assert found.preview_kind == "sketch"
    assert found.history_previews.shape == (1, 4)
    (asked,) = server.asked
    assert (asked["model"], asked["client_timeout"], asked["request_id"]) == ("answers", 3, "task-2")
    assert set(asked["inputs"]) == {"prompt", "alphas", "temperatures", "seed", "adapter_version"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logprobs", np.array([-1.0, np.nan]), "logprobs: holds NaN"),
        ("logprobs", np.array([-1.0, 0.5]), "not logarithms of probabilities"),
        ("logprobs", np.array([-1.0]), r"logprobs: is float64\[1\], expected float64\[2\]"),
        ("sampling_logprobs", np.array([0.0, -np.inf]), "sampling_logprobs: holds NaN or infinity"),
        ("sampling_logprobs", np.array([0, -1]), "sampling_logprobs: is int64"),
        ("previews", np.full((2, 4), np.nan, np.float32), "previews: holds NaN"),
        ("previews", np.ones((2, 4), np.float32), "previews: rows are not of unit length"),
        ("history_previews", np.eye(2, 4, dtype=np.float32), r"history_previews: .* expected float32\[1, any\]"),
        ("history_previews", np.eye(1, 5, dtype=np.float32), "history_previews are 5 wide, previews 4"),
        ("counts", np.array([2, 4]), "answers: counts .* do not fit 3 tokens"),
        ("counts", np.array([3, 1]), "answers: tokens hold a negative code"),
        ("preview_kind", np.array([b"smell"], dtype=np.object_), "answers: preview_kind 'smell' is unknown"),
        ("tokens", None, "answers: answered without tokens"),
    ],
)
def test_invalid_answers_are_corrupt(name, value, message) -> None:
    model, _ = client({**good_answers(), name: value})
    with pytest.raises(InferenceCorrupt, match=message):
        model.answer(ANSWER_REQUEST)


def test_good_pictures() -> None:
    model, server = client(good_pictures())
    pictures = model.draw_pictures(PICTURES, deadline_seconds=4)
    assert [picture.image.shape for picture in pictures] == [(8, 8, 3)] * 3
    assert pictures[1].embedding.tolist() == [0, 1, 0, 0]
    (asked,) = server.asked
    assert (asked["model"], asked["client_timeout"]) == ("pictures", 4)
    assert asked["shapes"] == {"tokens": (3, 2), "counts": (3,), "seeds": (3,)}
    assert model.draw_pictures([]) == []
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("images", np.zeros((2, 8, 8, 3), np.uint8), r"images: is uint8\[2, 8, 8, 3\], expected uint8\[3, any"),
        ("images", np.zeros((3, 8, 8, 3), np.float32), "images: is float32"),
        ("embeddings", np.full((3, 4), np.nan, np.float32), "embeddings: holds NaN"),
        ("embeddings", np.ones((3, 4), np.float32), "not of unit length"),
        ("images", None, "pictures: answered without images"),
    ],
)
def test_invalid_pictures_are_corrupt(name, value, message) -> None:
    model, _ = client({**good_pictures(), name: value})
    with pytest.raises(InferenceCorrupt, match=message):
        model.draw_pictures(PICTURES)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", InferenceRejected),
        ("UNKNOWN", InferenceCorrupt),
        ("UNAVAILABLE", InferenceUnavailable),
        ("DEADLINE_EXCEEDED", InferenceUnavailable),
        ("CANCELLED", InferenceUnavailable),
        ("INTERNAL", InferenceUnavailable),
        ("NOT_FOUND", InferenceUnavailable),
        ("RESOURCE_EXHAUSTED", InferenceUnavailable),
        (None, InferenceUnavailable),
    ],
)
def test_the_status_says_what_to_do(status, kind) -> None:
    error = InferenceServerException(msg="two\nlines", status=status and f"StatusCode.{status}")
    model, _ = client(error)
    for name, call in (
        ("pigeon", lambda: model.draw(REQUEST)),
        ("answers", lambda: model.answer(ANSWER_REQUEST)),
        ("pictures", lambda: model.draw_pictures(PICTURES)),
    ):
        with pytest.raises(kind, match=f"{name}: two lines") as caught:
            call()
        assert type(caught.value) is kind


def test_pictures_are_checked_and_fitted_before_they_are_sent() -> None:
    answer = {
        "code_ids": np.array([[7, 8, 9]]),
        "keep": np.array([[True, False, True]]),
        "image_embeddings": np.eye(1, 4, dtype=np.float32),
    }
    model, server = client(answer)
    (features,) = model.image_features([np.zeros((20, 10, 3), np.uint8)])
    assert features.tokens == (7, 9)
    with pytest.raises(InferenceRejected, match=r"picture 1: is float64 \(8, 8, 3\)"):
        model.image_features([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))])
    assert [asked["model"] for asked in server.asked] == ["visual_tokenizer", "image_scorer"]


def test_control_errors_name_the_cure() -> None:
    away = InferenceServerException(msg="failed to connect", status="StatusCode.UNAVAILABLE")
    model, _ = client(away)
    with pytest.raises(InferenceUnavailable, match="visual_tokenizer: failed to connect"):
        model.image_features([np.zeros((8, 8, 3), np.uint8)])
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:8001: cannot load unet: .* PIGEON_TRITON__URL"):
        model.load("unet")
    model, server = client(good_answer())
    server.is_ours = False
    with pytest.raises(ModelError, match="visual_tokenizer has no parameter tokenizer_version, so it is not ours"):
        _ = model.tokenizer_version
    with pytest.raises(ModelError, match="pictures has no parameter drawing_version, so it is not ours"):
        _ = model.drawing_version
    with pytest.raises(ModelError, match="answers has no parameter base_weights, so it is not ours"):
        _ = model.base_weights


@pytest.mark.parametrize(
    ("answer", "ask", "model_name", "parameter"),
    [
        (good_answers, lambda model: model.answer(ANSWER_REQUEST), "personalizer", "base_weights"),
        (good_pictures, lambda model: model.draw_pictures(PICTURES), "unet", "drawing_version"),
        (
            lambda: {
                "code_ids": np.array([[7]]),
                "keep": np.array([[True]]),
                "image_embeddings": np.eye(1, 4, dtype=np.float32),
            },
            lambda model: model.image_features([np.zeros((8, 8, 3), np.uint8)]),
            "image_scorer",
            "tokenizer_version",
        ),
    ],
)
def test_an_answer_of_other_weights_than_those_we_began_with_is_not_used(answer, ask, model_name, parameter) -> None:
    model, server = client(answer())
    assert ask(model)
    server.versions[model_name] = "two"
    with pytest.raises(ModelError, match=f"{model_name} with {parameter} two since we began with one"):
        ask(model)
    server.versions[model_name] = ""
    with pytest.raises(InferenceUnavailable, match="cannot be asked"):
        ask(model)
    server.versions.clear()
    assert ask(model)
