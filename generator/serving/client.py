"""`TritonPigeon`: the served model over gRPC, and model control; no torch.

The server's word is checked again here: it lets a wrong type, a missing output and NaN pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from generator.serving.api import (
    Answer,
    AnswerRequest,
    Answers,
    DrawnImage,
    DrawRequest,
    ImageFeatures,
    InferenceCorrupt,
    InferenceRejected,
    Picture,
    PictureRequest,
)
from generator.serving.channel import open_channel
from generator.serving.repository import (
    BUILD_PARAMETER,
    DRAWING_PARAMETER,
    MODELS,
    TOKENIZER_PARAMETER,
    WEIGHTS_PARAMETER,
    RepositoryManifest,
    check_repository,
    repository_folder,
)
from generator.serving.still_served import check_still_served
from generator.serving.tensors import (
    TRITON_TYPES,
    Arrays,
    as_inference_error,
    code_rows,
    expect,
    fitted,
    logprob_rows,
    one_line,
    preview_kind,
    unit_rows,
)
from schemas.errors import ModelError, ServerUnavailable
from schemas.settings import Settings

ADMIN_HEADER = "triton-grpc-protocol-admin-key"
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


class TritonPigeon:
    """The served model over gRPC (see `api.ServedPigeon`); threads may share one instance.

    Features, answers and pictures come from the weights that the versions below name; ModelError where the server has got
    others since they were first asked for. Every call takes at most `triton.inference_timeout_seconds` (or its own deadline)
    and then cancels its work on the server; `load` takes at most `triton.start_timeout_seconds`, other control calls
    `triton.network_timeout_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._triton = settings.triton
        self._client = open_channel(settings.triton.url)
        key = settings.triton.admin_key
        self._admin = {ADMIN_HEADER: key.get_secret_value()} if key else {}

    def close(self) -> None:
        """Close the connection; the object cannot be used after it."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What the night asks.

    def image_features(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageFeatures]:
        """Tokens (codes 0..K-1, kept patches in order) and embedding of RGB pictures of any size.

        Raises:
            InferenceRejected: a picture is not (H, W, 3) uint8.
            InferenceUnavailable, InferenceCorrupt: as the names say.
        """
        size = self._image_size
        ready = [fitted(image, number, size) for number, image in enumerate(images)]
        out: list[ImageFeatures] = []
        for start in range(0, len(ready), BATCH):
            batch = np.stack(ready[start : start + BATCH])
            rows = len(batch)
            coded = self._infer("visual_tokenizer", {"images": batch}, ["code_ids", "keep"])
            ids = expect(coded, "code_ids", np.int64, (rows, None))
            keep = expect(coded, "keep", np.bool_, ids.shape)
            scored = self._infer("image_scorer", {"images": batch}, ["image_embeddings"])
            embeddings = unit_rows(scored, "image_embeddings", rows)
            check_still_served(self._parameter, TOKENIZER_PARAMETER, self.tokenizer_version)
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
            answer = self._infer("image_scorer", {"texts": batch}, ["text_embeddings"])
            parts.append(unit_rows(answer, "text_embeddings", len(batch)))
        return np.concatenate(parts)

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`.

        Raises:
            InferenceError: as `image_features`; Unavailable also while `adapter_version` is not loaded.
        """
        inputs = _task_inputs(request)
        answer = self._infer(
            "pigeon",
            inputs,
            ["images", "tokens", "counts", "alphas", "embeddings"],
            timeout_seconds=deadline_seconds,
            request_id=request.task_id,
        )
        rows = len(request.alphas)
        images = expect(answer, "images", np.uint8, (rows, None, None, 3))
        codes = code_rows(answer, "pigeon", rows)
        alphas = expect(answer, "alphas", np.float64, (rows,))
        embeddings = unit_rows(answer, "embeddings", rows)
        if not np.array_equal(alphas, inputs["alphas"]):
            raise InferenceCorrupt(f"pigeon: asked for alphas {list(request.alphas)}, answered {alphas.tolist()}")
        return [DrawnImage(*values) for values in zip(request.alphas, codes, images, embeddings, strict=True)]

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        """An answer per (α, temperature), in the request's order, with its preview.

        Raises:
            InferenceError: as `draw`.
        """
        inputs = {**_task_inputs(request), "temperatures": np.array(request.temperatures, dtype=np.float64)}
        answer = self._infer(
            "answers",
            inputs,
            ANSWER_OUTPUTS,
            timeout_seconds=deadline_seconds,
            request_id=request.task_id,
        )
        rows = len(request.alphas)
        previews = unit_rows(answer, "previews", rows)
        history = unit_rows(answer, "history_previews", len(request.prompt.history_tokens))
        if history.shape[1] != previews.shape[1]:
            raise InferenceCorrupt(
                f"answers: history_previews are {history.shape[1]} wide, previews {previews.shape[1]}"
            )
        check_still_served(self._parameter, WEIGHTS_PARAMETER, self.base_weights)
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
        answer = self._infer(
            "pictures",
            {"tokens": tokens, "counts": counts, "seeds": seeds},
            ["images", "embeddings"],
            timeout_seconds=deadline_seconds,
        )
        images = expect(answer, "images", np.uint8, (len(requests), None, None, 3))
        embeddings = unit_rows(answer, "embeddings", len(requests))
        check_still_served(self._parameter, DRAWING_PARAMETER, self.drawing_version)
        return [Picture(*values) for values in zip(images, embeddings, strict=True)]

    @cached_property
    def tokenizer_version(self) -> str:
        """Changes when tokens or embeddings would; the cache key of `image_features`.

        Raises:
            ServerUnavailable, ModelError: Triton cannot be asked, or serves something that we did not build.
        """
        return self._parameter("visual_tokenizer", TOKENIZER_PARAMETER)

    @cached_property
    def drawing_version(self) -> str:
        """Hash of what turns codes into pixels; part of a picture's key.

        Raises:
            ServerUnavailable, ModelError: as `tokenizer_version`.
        """
        return self._parameter("pictures", DRAWING_PARAMETER)

    @cached_property
    def base_weights(self) -> str:
        """Hash of the checkpoint that answers, without a retrained adapter.

        Raises:
            ServerUnavailable, ModelError: as `tokenizer_version`.
        """
        return self._parameter("answers", WEIGHTS_PARAMETER)

    # Model control; needs `triton.admin_key` where the server guards it.

    def ready(self) -> bool:
        """Whether the server answers and every model of ours is loaded."""
        try:
            return all(
                self._client.is_model_ready(name, client_timeout=self._triton.network_timeout_seconds)
                for name in MODELS
            )
        except InferenceServerException:
            return False

    def loaded_versions(self, model: str) -> tuple[int, ...]:
        """The versions of a model that serve now, ascending.

        Raises:
            ServerUnavailable: Triton cannot be reached, or refuses model control.
        """
        index = self._control(
            "list models",
            lambda: self._client.get_model_repository_index(
                headers=self._admin, client_timeout=self._triton.network_timeout_seconds
            ),
        )
        return tuple(sorted(int(m.version) for m in index.models if m.name == model and m.state == "READY"))

    def load(self, model: str) -> None:
        """Load a model, or what is new of it: versions that are unchanged go on serving.

        Raises:
            ModelError: the server read it and refused; its reason is in the message.
            ServerUnavailable: Triton cannot be reached, or refuses model control.
        """
        self._control(
            f"load {model}",
            lambda: self._client.load_model(
                model, headers=self._admin, client_timeout=self._triton.start_timeout_seconds
            ),
        )

    def unload(self, model: str) -> None:
        """Stop serving a model; returns before the server has finished what is under way.

        Raises:
            ServerUnavailable: Triton cannot be reached, or refuses model control.
        """
        self._control(
            f"unload {model}",
            lambda: self._client.unload_model(
                model, headers=self._admin, client_timeout=self._triton.network_timeout_seconds
            ),
        )

    def load_repository(self, checkpoint: Path | None = None) -> RepositoryManifest:
        """Check the repository that the settings name, then load all of it into the server, `pigeon` last.

        Raises:
            ModelError: the repository does not fit (nothing was loaded), or the server serves another one.
            ServerUnavailable: Triton cannot be reached, or refuses model control.
        """
        manifest = check_repository(repository_folder(self._settings), self._settings.models.preset, checkpoint)
        for name in MODELS:
            self.load(name)
        self.check_served(manifest)
        return manifest

    def check_served(self, manifest: RepositoryManifest) -> None:
        """Whether the server serves this very build.

        Raises:
            ModelError: a model is of another build, or not ours.
            ServerUnavailable: Triton cannot be reached, or refuses model control.
        """
        for name in MODELS:
            build = self._parameter(name, BUILD_PARAMETER)
            if build != manifest.build:
                raise ModelError(
                    f"Triton at {self._triton.url}: serves {name} of build {build}, the repository holds "
                    f"{manifest.build}; run `pigeon models load`"
                )

    @cached_property
    def _image_size(self) -> int:
        with as_inference_error("visual_tokenizer"):
            metadata = self._client.get_model_metadata(
                "visual_tokenizer", client_timeout=self._triton.network_timeout_seconds
            )
        return int(metadata.inputs[0].shape[1])

    def _parameter(self, model: str, name: str) -> str:
        answer = self._control(
            f"read the configuration of {model}",
            lambda: self._client.get_model_config(
                model, headers=self._admin, client_timeout=self._triton.network_timeout_seconds
            ),
        )
        value: str = answer.config.parameters[name].string_value
        if not value:
            raise ModelError(
                f"Triton at {self._triton.url}: model {model} has no parameter {name}, so it is not ours; "
                "run `pigeon models build` and serve its repository"
            )
        return value

    def _control(self, what: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except InferenceServerException as error:
            reason = one_line(error)
            if error.status() in {"StatusCode.INVALID_ARGUMENT", "StatusCode.INTERNAL", "StatusCode.NOT_FOUND"}:
                raise ModelError(f"Triton at {self._triton.url}: cannot {what}: {reason}") from error
            raise ServerUnavailable(
                f"Triton at {self._triton.url}: cannot {what}: {reason}; is it running, and are PIGEON_TRITON__URL and "
                "PIGEON_TRITON__ADMIN_KEY right?"
            ) from error

    def _infer(
        self,
        model: str,
        inputs: Arrays,
        outputs: Sequence[str],
        *,
        timeout_seconds: float | None = None,
        request_id: str = "",
    ) -> dict[str, NDArray[Any]]:
        tensors = []
        for name, value in inputs.items():
            kind = TRITON_TYPES[value.dtype]
            tensor = triton.InferInput(name, list(value.shape), kind)
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
            tensors.append(tensor)
        with as_inference_error(model):
            answer = self._client.infer(
                model,
                tensors,
                outputs=[triton.InferRequestedOutput(name) for name in outputs],
                request_id=request_id,
                client_timeout=timeout_seconds or self._triton.inference_timeout_seconds,
            )
        out = {name: answer.as_numpy(name) for name in outputs}
        if missing := [name for name, value in out.items() if value is None]:
            raise InferenceCorrupt(f"{model}: answered without {', '.join(missing)}")
        return out


def _task_inputs(request: DrawRequest | AnswerRequest) -> dict[str, NDArray[Any]]:
    return {
        "prompt": np.array([request.prompt.model_dump_json().encode()], dtype=np.object_),
        "alphas": np.array(request.alphas, dtype=np.float64),
        "seed": np.array([request.seed], dtype=np.uint64),
        "adapter_version": np.array([request.adapter_version], dtype=np.int64),
    }
