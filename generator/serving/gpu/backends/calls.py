"""Calls between models of a GPU server; what `generator.serving.backends.triton` is on CPUs.

The build lets the models of a GPU repository import this module in its place, so it has all of that one's names. What it does
otherwise: a number per row is sent as a column, because a batched model has no input without a dimension of its own; more rows
than an engine takes are several requests; and answers come back to the CPU, where they would stay on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from generator.serving.backends.graph import Arrays, BadInput
from generator.serving.backends.triton import (
    NotReady,
    answer,
    inputs_of,
    model_folder,
    padded_tokens,
    parameter,
    read_answer,
    stop_if_cancelled,
)
from generator.serving.gpu.backends.rows import ROWS

__all__ = ["answer", "call", "inputs_of", "model_folder", "padded_tokens", "parameter", "stop_if_cancelled"]


def call(request: Any, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int = -1) -> Arrays:
    """Ask another model of this server, on behalf of `request`.

    Raises:
        Cancelled: `request` was cancelled meanwhile.
        NotReady: the model, or this version of it, is not loaded.
        BadInput, BadAnswer: as the model reports, or rows that do not agree.
        CallFailed: the model answered with another error.
    """
    if model not in ROWS:
        return _ask(request, model, inputs, outputs, version)
    answers = [_ask(request, model, part, outputs, version) for part in parts(model, inputs)]
    return {name: np.concatenate([found[name] for found in answers]) for name in outputs}


def parts(model: str, inputs: Mapping[str, NDArray[Any]]) -> Iterator[Arrays]:
    """The requests to a batched model, each of at most as many rows as its engine takes.

    Raises:
        BadInput: no rows, or inputs of different numbers of them.
    """
    counts = {len(value) for value in inputs.values()}
    if len(counts) != 1 or counts == {0}:
        raise BadInput(f"{model}: inputs have {sorted(counts)} rows; give at least one, and as many in each")
    most = ROWS[model].most
    for start in range(0, counts.pop(), most):
        rows = {name: value[start : start + most] for name, value in inputs.items()}
        yield {name: value[:, None] if value.ndim == 1 else value for name, value in rows.items()}


def _ask(request: Any, model: str, inputs: Mapping[str, NDArray[Any]], outputs: list[str], version: int) -> Arrays:
    stop_if_cancelled(request)
    if not pb_utils.is_model_ready(model_name=model, model_version="" if version < 0 else str(version)):
        raise NotReady(f"{model} version {version} is not loaded" if version >= 0 else f"{model} is not loaded")
    response = pb_utils.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, np.ascontiguousarray(value)) for name, value in inputs.items()],
        # Without it an answer stays on the device where it was computed, and numpy cannot read it there.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    return read_answer(response, model, outputs)
