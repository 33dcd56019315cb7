"""What the client makes of a server's answers: errors by status, and nothing invalid let through."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from generator.serving.api import (
    DrawRequest,
    InferenceCorrupt,
    InferenceRejected,
    InferenceUnavailable,
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


class FakeServer:
    """A test double of tritonclient's InferenceServerClient."""

    def __init__(self, answer: dict[str, np.ndarray] | InferenceServerException) -> None:
        self.answer = answer
        self.asked: list[dict] = []

    def infer(self, model, inputs, **options):
        self.asked.append({"model": model, "inputs": [i.name() for i in inputs], **options})
        if isinstance(self.answer, InferenceServerException):
            raise self.answer
        return SimpleNamespace(as_numpy=self.answer.get)

    def get_model_metadata(self, model, **_):
        if isinstance(self.answer, InferenceServerException):
            raise self.answer
        return SimpleNamespace(inputs=[SimpleNamespace(shape=[-1, 8, 8, 3])])

    def get_model_config(self, model, **_):
        return SimpleNamespace(config=SimpleNamespace(parameters=Missing()))

    def load_model(self, model, **_):
        raise self.answer

    def close(self) -> None: ...


class Missing(dict):
    """Protobuf's map: an unknown key gives an empty value."""

    def __missing__(self, key):
        return SimpleNamespace(string_value="")


def client(answer) -> tuple[TritonPigeon, FakeServer]:
    model = TritonPigeon(Settings())
    model.close()
    server = FakeServer(answer)
    model._client = server
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
    with pytest.raises(kind, match="pigeon: two lines") as caught:
        model.draw(REQUEST)
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
    model, _ = client(good_answer())
    with pytest.raises(ModelError, match="visual_tokenizer has no parameter tokenizer_version, so it is not ours"):
        _ = model.tokenizer_version
