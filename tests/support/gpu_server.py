"""A repository of the gpu target, served by a stand-in: requests checked against config.pbtxt.

Graphs run on the CPU. Our Python models and the graphs are the repository's own; server, accelerator and batcher stand in.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2

from generator.serving.backends.graph import Graph

Arrays = dict[str, NDArray[Any]]
TYPES = {
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_INT64": np.int64,
    "TYPE_UINT64": np.uint64,
    "TYPE_UINT8": np.uint8,
    "TYPE_BOOL": np.bool_,
    "TYPE_STRING": np.object_,
}
OURS = (
    "generator.serving.backends.triton",
    "generator.serving.gpu.backends.calls",
    "generator.serving.gpu.backends.step",
)
"""Modules that import Triton's own, and are imported again with the stand-in."""


def parsed(text: str) -> Any:
    """A config.pbtxt by Triton's own protobuf."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


class GpuServer:
    """Answers requests as one server; `calls` are (model, rows) of every request to a graph."""

    def __init__(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.repository = repository
        self.calls: list[tuple[str, int]] = []
        self.models: dict[str, Any] = {}
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", self._utilities())
        for name in OURS:
            monkeypatch.delitem(sys.modules, name, raising=False)

    def infer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """The named outputs; a failed request is an AssertionError with the server's words."""
        response = self._answer(model, inputs, outputs)
        assert not response.has_error(), response.error().message()
        return {tensor.name(): tensor.as_numpy() for tensor in response.tensors if tensor.name() in outputs}

    def _answer(self, model: str, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Any:
        config = parsed((self.repository / model / "config.pbtxt").read_text())
        self._check(config, inputs)
        if config.backend == "onnxruntime":
            self.calls.append((model, len(next(iter(inputs.values())))))
            if model not in self.models:
                self.models[model] = Graph(self.repository / model / "1" / "model.onnx")
            found = self.models[model](dict(inputs))
            return _Response([_Tensor(name, value) for name, value in found.items()])
        if model not in self.models:
            self.models[model] = self._python(model, config)
        (response,) = self.models[model].execute([_Request(inputs, outputs)])
        return response

    def _check(self, config: Any, inputs: Mapping[str, NDArray[Any]]) -> None:
        wanted = {tensor.name: tensor for tensor in config.input}
        assert set(inputs) <= set(wanted), f"{config.name}: unknown inputs {set(inputs) - set(wanted)}"
        assert not {name for name, one in wanted.items() if not one.optional} - set(inputs), config.name
        for name, value in inputs.items():
            dims = list(wanted[name].dims)
            if config.max_batch_size:
                assert 1 <= len(value) <= config.max_batch_size, f"{config.name}: {len(value)} rows"
                dims = [-1, *dims]
            kind = model_config_pb2.DataType.Name(wanted[name].data_type)
            assert value.dtype == TYPES[kind], f"{config.name}: {name} is {value.dtype}"
            assert len(dims) == value.ndim, f"{config.name}: {name} is {value.shape}, the model takes {dims}"
            assert all(dim in {-1, size} for dim, size in zip(dims, value.shape, strict=True)), f"{config.name}: {name}"

    def _python(self, model: str, config: Any) -> Any:
        path = self.repository / model / "1" / "model.py"
        spec = importlib.util.spec_from_file_location(f"served_{model}", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.TritonPythonModel()
        described = json_format.MessageToJson(config, preserving_proto_field_name=True)
        made.initialize(
            {"model_repository": str(self.repository / model), "model_version": "1", "model_config": described}
        )
        return made

    def _utilities(self) -> ModuleType:
        server = self

        class InferenceRequest:
            def __init__(
                self,
                model_name: str,
                requested_output_names: Sequence[str],
                inputs: Sequence[_Tensor],
                preferred_memory: Any,
                model_version: int = -1,
            ) -> None:
                assert preferred_memory == ("cpu", 0), "an answer left on the GPU cannot be read"
                assert model_version in {-1, 1}
                self.model, self.outputs = model_name, requested_output_names
                self.inputs = {tensor.name(): tensor.as_numpy() for tensor in inputs}

            def exec(self) -> Any:
                return server._answer(self.model, self.inputs, self.outputs)

        module = ModuleType("triton_python_backend_utils")
        vars(module).update(
            InferenceRequest=InferenceRequest,
            InferenceResponse=_response,
            PreferredMemory=lambda kind, device: (kind, device),
            TRITONSERVER_MEMORY_CPU="cpu",
            Tensor=_Tensor,
            TritonError=_Error,
            get_output_tensor_by_name=lambda response, name: next(
                (tensor for tensor in response.tensors if tensor.name() == name), None
            ),
            is_model_ready=lambda model_name, model_version: True,
        )
        return module


class _Tensor:
    def __init__(self, name: str, value: NDArray[Any]) -> None:
        self._name, self._value = name, value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._value


class _Error:
    INVALID_ARG = UNKNOWN = UNAVAILABLE = CANCELLED = INTERNAL = 0

    def __init__(self, message: str, _: int) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class _Response:
    def __init__(self, tensors: Sequence[_Tensor], error: _Error | None = None) -> None:
        self.tensors, self._error = tensors, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Any:
        return self._error or SimpleNamespace(message=lambda: "")


def _response(output_tensors: Sequence[_Tensor] = (), error: _Error | None = None) -> _Response:
    return _Response(output_tensors, error)


class _Request:
    def __init__(self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> None:
        self._inputs, self._outputs = inputs, outputs

    def inputs(self) -> list[_Tensor]:
        return [_Tensor(name, value) for name, value in self._inputs.items()]

    def requested_output_names(self) -> list[str]:
        return list(self._outputs)

    def is_cancelled(self) -> bool:
        return False
