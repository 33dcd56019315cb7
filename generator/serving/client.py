"""`TritonPigeon`: the served model over gRPC; no torch.

The server's word is checked again here: it lets a wrong type, a missing output and NaN pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from generator.serving.api import (
    Answer,
    AnswerRequest,
    Answers,
    DrawnImage,
    DrawRequest,
    ImageFeatures,
    InferenceCorrupt,
    InferenceRejected,
    InferenceUnavailable,
    Picture,
    PictureRequest,
)
from generator.serving.control import ModelControl
from generator.serving.repository import DRAWING_PARAMETER, TOKENIZER_PARAMETER, WEIGHTS_PARAMETER
from generator.serving.server import TritonServer
from generator.serving.still_served import check_still_served
from generator.serving.tensors import (
    Arrays,
    code_rows,
    expect,
    fitted,
    logprob_rows,
    preview_kind,
    unit_rows,
)
from schemas.errors import ModelError

T = TypeVar("T")
Tensors = dict[str, NDArray[Any]]

BATCH = 16
"""Pictures or texts per request; the server computes each alone, a batch only saves round trips."""

ANSWER_OUTPUTS = (
    "tokens",
    "counts",
    "logprobs",
    "sampling_logprobs",
    "previews",
    "history_previews",
    "preview_kind",
)


class TritonPigeon(ModelControl):
    """The served model over gRPC (see `api.ServedPigeon`); threads may share one instance.

    Features, answers and pictures come from the weights that the versions name; ModelError where the server that answered has
    others since they were first asked for. Every call takes at most `triton.inference_timeout_seconds` (or its own deadline),
    whichever servers it is asked of, and then cancels its work there.
    """

    def image_features(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageFeatures]:
        """Tokens (codes 0..K-1, kept patches in order) and embedding of RGB pictures of any size.

        Raises:
            InferenceRejected: a picture is not (H, W, 3) uint8.
            InferenceUnavailable, InferenceCorrupt: as the names say.
        """
        size = self._image_size()
        ready = [fitted(image, number, size) for number, image in enumerate(images)]
        out: list[ImageFeatures] = []
        for start in range(0, len(ready), BATCH):
            batch = np.stack(ready[start : start + BATCH])
            rows = len(batch)
            ids, keep = self._infer(
                "visual_tokenizer",
                {"images": batch},
                ["code_ids", "keep"],
                partial(_codes_of_images, rows),
                weights=TOKENIZER_PARAMETER,
            )
            embeddings = self._infer(
                "image_scorer",
                {"images": batch},
                ["image_embeddings"],
                partial(unit_rows, name="image_embeddings", rows=rows),
                weights=TOKENIZER_PARAMETER,
            )
            out.extend(
                ImageFeatures(tuple(int(code) for code in row[kept]), embedding)
                for row, kept, embedding in zip(ids, keep, embeddings, strict=True)
            )
        return out

    def text_embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), unit rows: the scorer's.

        Raises:
            InferenceError: as `image_features`.
        """
        if not texts:
            raise InferenceRejected("text_embeddings: no texts were given")
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = np.array([text.encode("utf-8") for text in texts[start : start + BATCH]], dtype=np.object_)
            checked = partial(unit_rows, name="text_embeddings", rows=len(batch))
            parts.append(self._infer("image_scorer", {"texts": batch}, ["text_embeddings"], checked))
        return np.concatenate(parts)

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`.

        Raises:
            InferenceError: as `image_features`; Unavailable also while `adapter_version` is not loaded.
        """
        inputs = _task_inputs(request)
        return self._infer(
            "pigeon",
            inputs,
            ["images", "tokens", "counts", "alphas", "embeddings"],
            partial(_drawn_images, request, inputs["alphas"]),
            timeout_seconds=deadline_seconds,
            request_id=request.task_id,
            adapter=request.adapter_version,
        )

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        """An answer per (α, temperature), in the request's order, with its preview.

        Raises:
            InferenceError: as `draw`.
        """
        inputs = {**_task_inputs(request), "temperatures": np.array(request.temperatures, dtype=np.float64)}
        return self._infer(
            "answers",
            inputs,
            ANSWER_OUTPUTS,
            partial(_answers, request),
            weights=WEIGHTS_PARAMETER,
            timeout_seconds=deadline_seconds,
            request_id=request.task_id,
            adapter=request.adapter_version,
        )

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        """A picture per request, in order; all in one call, one after the other.

        Raises:
            InferenceError: as `draw`.
        """
        if not requests:
            return []
        counts = np.array([len(request.tokens) for request in requests], dtype=np.int64)
        tokens = np.full((len(requests), max(1, int(counts.max()))), -1, dtype=np.int64)
        for row, request in zip(tokens, requests, strict=True):
            row[: len(request.tokens)] = request.tokens
        seeds = np.array([request.seed for request in requests], dtype=np.uint64)
        return self._infer(
            "pictures",
            {"tokens": tokens, "counts": counts, "seeds": seeds},
            ["images", "embeddings"],
            partial(_pictures, len(requests)),
            weights=DRAWING_PARAMETER,
            timeout_seconds=deadline_seconds,
            images=len(requests),
        )

    def _image_size(self) -> int:
        timeout = self._settings.triton.network_timeout_seconds
        return self._pool.call(lambda server, _: server.image_size, timeout_seconds=timeout)

    def _infer(
        self,
        model: str,
        inputs: Arrays,
        outputs: Sequence[str],
        checked: Callable[[Tensors], T],
        *,
        weights: str | None = None,
        timeout_seconds: float | None = None,
        request_id: str = "",
        adapter: int | None = None,
        images: int = 0,
    ) -> T:
        """What `checked` makes of an answer; one that it finds corrupt is asked of another server.

        `weights` is the parameter that names what the answer must come from. `images`: how many drawn ones it holds.
        """

        def ask(server: TritonServer, left: float) -> T:
            shares = images and self._settings.triton.shared_memory
            sizes = {"images": images * server.picture_bytes} if shares else {}
            found = server.infer(model, inputs, outputs, timeout_seconds=left, request_id=request_id, sizes=sizes)
            answer = checked(found)
            if weights:
                self._check_weights(server, weights)
            return answer

        timeout = timeout_seconds or self._settings.triton.inference_timeout_seconds
        return self._pool.call(ask, timeout_seconds=timeout, adapter=adapter)

    def _check_weights(self, server: TritonServer, parameter: str) -> None:
        try:
            check_still_served(server.parameter, parameter, self._expected_weights(parameter))
        except ModelError as error:
            if self._pool.is_single:
                raise
            raise InferenceUnavailable(str(error)) from error  # it is left alone, and others are asked

    def _expected_weights(self, parameter: str) -> str:
        versions = {
            TOKENIZER_PARAMETER: lambda: self.tokenizer_version,
            WEIGHTS_PARAMETER: lambda: self.base_weights,
            DRAWING_PARAMETER: lambda: self.drawing_version,
        }
        return versions[parameter]()


def _task_inputs(request: DrawRequest | AnswerRequest) -> dict[str, NDArray[Any]]:
    return {
        "prompt": np.array([request.prompt.model_dump_json().encode()], dtype=np.object_),
        "alphas": np.array(request.alphas, dtype=np.float64),
        "seed": np.array([request.seed], dtype=np.uint64),
        "adapter_version": np.array([request.adapter_version], dtype=np.int64),
    }


def _codes_of_images(rows: int, answer: Tensors) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    ids = expect(answer, "code_ids", np.int64, (rows, None))
    return ids, expect(answer, "keep", np.bool_, ids.shape)


def _drawn_images(request: DrawRequest, alphas: NDArray[Any], answer: Tensors) -> list[DrawnImage]:
    rows = len(request.alphas)
    images = expect(answer, "images", np.uint8, (rows, None, None, 3))
    codes = code_rows(answer, "pigeon", rows)
    answered = expect(answer, "alphas", np.float64, (rows,))
    embeddings = unit_rows(answer, "embeddings", rows)
    if not np.array_equal(answered, alphas):
        raise InferenceCorrupt(f"pigeon: asked for alphas {list(request.alphas)}, answered {answered.tolist()}")
    return [DrawnImage(*values) for values in zip(request.alphas, codes, images, embeddings, strict=True)]


def _answers(request: AnswerRequest, answer: Tensors) -> Answers:
    rows = len(request.alphas)
    previews = unit_rows(answer, "previews", rows)
    history = unit_rows(answer, "history_previews", len(request.prompt.history_tokens))
    if history.shape[1] != previews.shape[1]:
        raise InferenceCorrupt(f"answers: history_previews are {history.shape[1]} wide, previews {previews.shape[1]}")
    values = zip(
        request.alphas,
        request.temperatures,
        code_rows(answer, "answers", rows),
        logprob_rows(answer, "logprobs", rows).tolist(),
        logprob_rows(answer, "sampling_logprobs", rows).tolist(),
        previews,
        strict=True,
    )
    return Answers(tuple(Answer(*row) for row in values), preview_kind(answer, "answers"), history)


def _pictures(rows: int, answer: Tensors) -> list[Picture]:
    images = expect(answer, "images", np.uint8, (rows, None, None, 3))
    embeddings = unit_rows(answer, "embeddings", rows)
    return [Picture(*values) for values in zip(images, embeddings, strict=True)]
