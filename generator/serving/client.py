"""`TritonPigeon`: the served model over gRPC, and model control; no torch.

The server's word is checked again here: it lets a wrong type, a missing output and NaN pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import tritonclient.grpc as triton
from numpy.typing import NDArray
from PIL import Image
from tritonclient.utils import InferenceServerException

from generator.serving.api import (
    DrawnImage,
    DrawRequest,
    ImageFeatures,
    InferenceCorrupt,
    InferenceError,
    InferenceRejected,
    InferenceUnavailable,
)
from generator.serving.repository import (
    BUILD_PARAMETER,
    MODELS,
    TOKENIZER_PARAMETER,
    RepositoryManifest,
    check_repository,
    repository_folder,
)
from schemas.errors import ModelError, ServerUnavailable
from schemas.settings import Settings

ADMIN_HEADER = "triton-grpc-protocol-admin-key"
BATCH = 16
"""Pictures or texts per request; the server computes each alone, a batch only saves round trips."""
UNIT_TOLERANCE = 1e-3

# What a status asks of the caller. The backends choose theirs by this table (backends/triton.py).
STATUS_ERRORS: Mapping[str, type[InferenceError]] = {
    "StatusCode.INVALID_ARGUMENT": InferenceRejected,
    "StatusCode.UNIMPLEMENTED": InferenceRejected,
    "StatusCode.OUT_OF_RANGE": InferenceRejected,
    "StatusCode.UNKNOWN": InferenceCorrupt,
    "StatusCode.DATA_LOSS": InferenceCorrupt,
}

Arrays = Mapping[str, NDArray[Any]]


class TritonPigeon:
    """The served model over gRPC (see `api.ServedPigeon`); threads may share one instance.

    Every call takes at most `triton.inference_timeout_seconds` (or its own deadline) and then cancels its work on the
    server; `load` takes at most `triton.start_timeout_seconds`, other control calls `triton.network_timeout_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._triton = settings.triton
        self._client = triton.InferenceServerClient(settings.triton.url)
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
        fitted = [_fit(image, number, size) for number, image in enumerate(images)]
        out: list[ImageFeatures] = []
        for start in range(0, len(fitted), BATCH):
            batch = np.stack(fitted[start : start + BATCH])
            rows = len(batch)
            coded = self._infer("visual_tokenizer", {"images": batch}, ["code_ids", "keep"])
            ids = _expect(coded, "code_ids", np.int64, (rows, None))
            keep = _expect(coded, "keep", np.bool_, ids.shape)
            scored = self._infer("image_scorer", {"images": batch}, ["image_embeddings"])
            embeddings = _unit_rows(scored, "image_embeddings", rows)
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
            parts.append(_unit_rows(answer, "text_embeddings", len(batch)))
        return np.concatenate(parts)

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`.

        Raises:
            InferenceError: as `image_features`; Unavailable also while `adapter_version` is not loaded.
        """
        inputs = {
            "prompt": np.array([request.prompt.model_dump_json().encode()], dtype=np.object_),
            "alphas": np.array(request.alphas, dtype=np.float64),
            "seed": np.array([request.seed], dtype=np.uint64),
            "adapter_version": np.array([request.adapter_version], dtype=np.int64),
        }
        answer = self._infer(
            "pigeon",
            inputs,
            ["images", "tokens", "counts", "alphas", "embeddings"],
            timeout_seconds=deadline_seconds,
            request_id=request.task_id,
        )
        rows = len(request.alphas)
        images = _expect(answer, "images", np.uint8, (rows, None, None, 3))
        tokens = _expect(answer, "tokens", np.int64, (rows, None))
        counts = _expect(answer, "counts", np.int64, (rows,))
        alphas = _expect(answer, "alphas", np.float64, (rows,))
        embeddings = _unit_rows(answer, "embeddings", rows)
        if not np.array_equal(alphas, inputs["alphas"]):
            raise InferenceCorrupt(f"pigeon: asked for alphas {list(request.alphas)}, answered {alphas.tolist()}")
        if (counts < 0).any() or (counts > tokens.shape[1]).any():
            raise InferenceCorrupt(f"pigeon: counts {counts.tolist()} do not fit {tokens.shape[1]} tokens")
        codes = [tuple(int(code) for code in row[:count]) for row, count in zip(tokens, counts, strict=True)]
        if any(code < 0 for row in codes for code in row):
            raise InferenceCorrupt("pigeon: tokens hold a negative code inside their count")
        return [DrawnImage(*values) for values in zip(request.alphas, codes, images, embeddings, strict=True)]

    @cached_property
    def tokenizer_version(self) -> str:
        """Changes when tokens or embeddings would; the cache key of `image_features`.

        Raises:
            ServerUnavailable, ModelError: Triton cannot be asked, or serves something that we did not build.
        """
        return self._parameter("visual_tokenizer", TOKENIZER_PARAMETER)

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
        with _as_inference_error("visual_tokenizer"):
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
            reason = _one_line(error)
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
            kind = _TRITON_TYPES[value.dtype]
            tensor = triton.InferInput(name, list(value.shape), kind)
            tensor.set_data_from_numpy(np.ascontiguousarray(value))
            tensors.append(tensor)
        with _as_inference_error(model):
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


_TRITON_TYPES = {
    np.dtype(np.uint8): "UINT8",
    np.dtype(np.int64): "INT64",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.float64): "FP64",
    np.dtype(np.object_): "BYTES",
}


def _fit(image: NDArray[np.uint8], number: int, size: int) -> NDArray[np.uint8]:
    """Resize to (size, size, 3), bicubic, as generator.pigeon.preprocessing does before normalising."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InferenceRejected(f"picture {number}: is {image.dtype} {image.shape}; give RGB uint8 (height, width, 3)")
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _expect(answer: Arrays, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> NDArray[Any]:
    value = answer[name]
    fits = value.ndim == len(shape) and all(
        want is None or want == have for want, have in zip(shape, value.shape, strict=True)
    )
    if value.dtype != dtype or not fits:
        wanted = ", ".join("any" if dim is None else str(dim) for dim in shape)
        raise InferenceCorrupt(
            f"{name}: is {value.dtype}{list(value.shape)}, expected {np.dtype(dtype).name}[{wanted}]"
        )
    return value


def _unit_rows(answer: Arrays, name: str, rows: int) -> NDArray[np.float32]:
    value: NDArray[np.float32] = _expect(answer, name, np.float32, (rows, None))
    if not np.isfinite(value).all():
        raise InferenceCorrupt(f"{name}: holds NaN or infinity")
    if (np.abs(np.linalg.norm(value, axis=1) - 1) > UNIT_TOLERANCE).any():
        raise InferenceCorrupt(f"{name}: rows are not of unit length")
    return value


@contextmanager
def _as_inference_error(model: str) -> Iterator[None]:
    try:
        yield
    except InferenceServerException as error:
        failure = STATUS_ERRORS.get(error.status() or "", InferenceUnavailable)
        raise failure(f"{model}: {_one_line(error)}") from error


def _one_line(error: InferenceServerException) -> str:
    return " ".join((error.message() or str(error)).split())
