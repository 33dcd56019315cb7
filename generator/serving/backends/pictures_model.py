"""The Triton model `pictures`: draws codes, whoever's answer they are.

Calls the other models of this server (BLS).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from generator.serving.backends.graph import Arrays, BadInput
from generator.serving.backends.pictures import BATCH_PARAMETER, MOST_PICTURES, draw_pictures
from generator.serving.backends.task import TaskConfig
from generator.serving.backends.triton import answer, call, inputs_of, model_folder, parameter


class TritonPythonModel:
    """tokens (N, M), counts (N,), seeds (N,) -> images (N, S, S, 3), embeddings (N, D).

    What is behind a count is not read.
    """

    def initialize(self, args: dict[str, str]) -> None:
        self._config = TaskConfig.from_folder(model_folder(args))
        self._batch = int(parameter(args, BATCH_PARAMETER, "1"))
        if not 1 <= self._batch <= MOST_PICTURES:
            raise ValueError(f"pictures: parameter {BATCH_PARAMETER} is {self._batch}, must be 1 to {MOST_PICTURES}")

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        tokens, counts = inputs["tokens"], inputs["counts"]
        if len(tokens) != len(counts) or (counts < 0).any() or (counts > tokens.shape[1]).any():
            raise BadInput(
                f"pictures: counts {counts.tolist()} do not fit tokens of {tokens.shape[0]}x{tokens.shape[1]}"
            )
        codes = [row[:count].tolist() for row, count in zip(tokens, counts, strict=True)]
        drawn = draw_pictures(self._config, codes, inputs["seeds"].tolist(), partial(call, request), self._batch)
        return {"images": drawn.images, "embeddings": drawn.embeddings}
