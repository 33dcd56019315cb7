"""Requests and answers of Triton's Python backend: tensors in and out, errors with the right status, cancelling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
    """A model that this one called answered with an error; `error` is passed on as it is."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error


def model_folder(args: Mapping[str, str]) -> Path:
    """The version folder of the model that `initialize` was called for."""
    return Path(args["model_repository"]) / args["model_version"]


def parameter(args: Mapping[str, str], name: str, default: str) -> str:
    """A parameter of config.pbtxt."""
    value: str = json.loads(args["model_config"])["parameters"].get(name, {}).get("string_value", default)
    return value


def inputs_of(request: Any) -> Arrays:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def stop_if_cancelled(request: Any) -> None:
    """Raises:
    Cancelled: nobody waits for this request any more.
    """
    if request.is_cancelled():
        raise Cancelled


def answer(request: Any, work: Callable[[Any], Mapping[str, NDArray[Any]]]) -> Any:
    """Runs `work(request)` and makes the response; an exception becomes an error with the status that tells
    the client what to do: INVALID_ARG = do not send it again, UNKNOWN = the answer is not valid; UNAVAILABLE, CANCELLED
    and INTERNAL = try later.
    """
    try:
        stop_if_cancelled(request)
        outputs = work(request)
        tensors = [pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in outputs.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)
    except BadInput as error:
        return _failure(str(error), pb_utils.TritonError.INVALID_ARG)
    except BadAnswer as error:
        return _failure(str(error), pb_utils.TritonError.UNKNOWN)
    except NotReady as error:
        return _failure(str(error), pb_utils.TritonError.UNAVAILABLE)
    except Cancelled:
        return _failure("cancelled by the client or its deadline", pb_utils.TritonError.CANCELLED)
    except CallFailed as failed:
        return pb_utils.InferenceResponse(error=failed.error)
    except Exception as error:  # noqa: BLE001 -- one bad request must not take the stub process with it
        return _failure(f"{type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)


def call(request: Any, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1) -> Arrays:
    """Ask another model of this server, on behalf of `request`.

    Raises:
        Cancelled: `request` was cancelled meanwhile.
        NotReady: the model, or this version of it, is not loaded.
        CallFailed: the model answered with an error.
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
    if response.has_error():
        raise CallFailed(response.error())
    return {name: _output(response, model, name) for name in outputs}


def _output(response: Any, model: str, name: str) -> NDArray[Any]:
    tensor = pb_utils.get_output_tensor_by_name(response, name)
    if tensor is None:
        raise BadAnswer(f"{model}: answered without its output {name}")
    value: NDArray[Any] = tensor.as_numpy()
    return value


def _failure(message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
