"""Requests and answers of Triton's Python backend: tensors, errors with their status, cancelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from generator.serving.backends.graph import Arrays, BadAnswer, BadInput


class Cancelled(Exception):
    """The client has gone or its deadline has passed; the rest of the work would be for nobody."""


class NotReady(Exception):
    """A model that this one calls is not loaded at the moment."""


class CallFailed(Exception):
    """A model called by this one failed for a reason that is not ours; trying again may help."""


# The status tells a client what to do. Between models of one server it is lost (every error of a BLS call is INTERNAL), so
# the message begins with a label as well.
_FAILURES: dict[str, tuple[type[Exception], str]] = {
    "rejected": (BadInput, "INVALID_ARG"),
    "corrupt": (BadAnswer, "UNKNOWN"),
    "not ready": (NotReady, "UNAVAILABLE"),
    "cancelled": (Cancelled, "CANCELLED"),
}


def model_folder(args: Mapping[str, str]) -> Path:
    """The version folder of the model that `initialize` was called for."""
    return Path(args["model_repository"]) / args["model_version"]


def parameter(args: Mapping[str, str], name: str, default: str) -> str:
    """A parameter of config.pbtxt."""
    value: str = json.loads(args["model_config"])["parameters"].get(name, {}).get("string_value", default)
    return value


def inputs_of(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def padded_tokens(rows: Sequence[Sequence[int]], width: int) -> Arrays:
    """Values per row, at most `width` -> what is answered: tokens (N, width) with -1 behind, counts (N,)."""
    tokens = np.full((len(rows), width), -1, dtype=np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return {"tokens": tokens, "counts": np.array([len(row) for row in rows], dtype=np.int64)}


def stop_if_cancelled(request: Any) -> None:
    """End a request that was cancelled.

    Raises:
        Cancelled: nobody waits for this request any more.
    """
    if request.is_cancelled():
        raise Cancelled("by the client or its deadline")


def answer(request: Any, work: Callable[[Any], Mapping[str, NDArray[Any]]]) -> Any:
    """Run `work(request)` and make the response; an exception becomes an error with a status.

    The status tells the client what to do: INVALID_ARG = do not send it again, UNKNOWN = the answer is not valid;
    UNAVAILABLE, CANCELLED and INTERNAL = try later.
    """
    try:
        stop_if_cancelled(request)
        outputs = work(request)
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
    except Exception as error:  # noqa: BLE001 -- one bad request must not take the stub process with it
        for label, (kind, code) in _FAILURES.items():
            if isinstance(error, kind):
                return _failure(f"{label}: {error}", code)
        return _failure(f"{type(error).__name__}: {error}", "INTERNAL")


def call(request: Any, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1) -> Arrays:
    """Ask another model of this server, on behalf of `request`.

    Raises:
        Cancelled: `request` was cancelled meanwhile.
        NotReady: the model, or this version of it, is not loaded.
        BadInput, BadAnswer: as the model reports.
        CallFailed: the model answered with another error.
    """
    stop_if_cancelled(request)
    if not pb_utils.is_model_ready(model_name=model, model_version="" if version < 0 else str(version)):
        raise NotReady(f"{model} version {version} is not loaded" if version >= 0 else f"{model} is not loaded")
    response = pb_utils.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()],
    ).exec()
    return read_answer(response, model, outputs)


def read_answer(response: Any, model: str, outputs: Iterable[str]) -> Arrays:
    """What another model gave, looked at.

    Raises:
        Cancelled, NotReady, BadInput, BadAnswer: as the model reports, or an output is missing or not finite.
        CallFailed: the model answered with another error.
    """
    if response.has_error():
        label, _, reason = response.error().message().partition(": ")
        if label in _FAILURES:
            raise _FAILURES[label][0](reason)
        raise CallFailed(f"{model}: {response.error().message()}")
    return {name: _output(response, model, name) for name in outputs}


def _output(response: Any, model: str, name: str) -> NDArray[Any]:
    tensor = pb_utils.get_output_tensor_by_name(response, name)
    if tensor is None:
        raise BadAnswer(f"{model}: answered without its output {name}")
    value: NDArray[Any] = tensor.as_numpy()
    # Our own graphs look for themselves; what runs in another backend lets NaN pass, and a picture would be made of it.
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise BadAnswer(f"{model}: output {name} is not finite; check the weights and the precision")
    return value


def _failure(message: str, code: str) -> Any:
    # The codes are there only after the stub has imported the model.
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
