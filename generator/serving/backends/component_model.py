"""A Triton model of one ONNX graph: tokenizer, mask generator, token decoder, UNet, VAE decoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from generator.serving.backends.graph import Arrays, Graph
from generator.serving.backends.triton import answer, inputs_of, model_folder, parameter


class TritonPythonModel:
    """One ONNX graph; requests are never merged.

    With the parameter `rows = single` each row of a request is computed alone as well, so that it does not depend on which
    others were sent with it (the rounding of a matrix product depends on its size).
    """

    def initialize(self, args: dict[str, str]) -> None:
        self._graph = Graph(model_folder(args) / "model.onnx", threads=int(parameter(args, "threads", "1")))
        self._single = parameter(args, "rows", "batch") == "single"

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        rows = {value.shape[0] for value in inputs.values() if value.ndim}
        if not self._single or len(rows) != 1 or rows <= {0, 1}:
            return self._graph(inputs)
        answers = [
            self._graph({name: value[row : row + 1] for name, value in inputs.items()}) for row in range(rows.pop())
        ]
        return {name: np.concatenate([part[name] for part in answers]) for name in answers[0]}
