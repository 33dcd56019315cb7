"""The Triton model `pigeon`: one request is one task, for which it calls the other models (BLS)."""

from __future__ import annotations

from functools import partial
from typing import Any

from generator.serving.backends.graph import Arrays
from generator.serving.backends.task import TaskServer, draw
from generator.serving.backends.triton import answer, call, inputs_of, model_folder, padded_tokens


class TritonPythonModel:
    """One task from prompt to candidates, an image per α.

    prompt (1,) JSON, alphas (N,), seed (1,), adapter_version (1,) -> images (N, S, S, 3), tokens (N, M) -1 behind,
    counts (N,), alphas (N,), embeddings (N, D).
    """

    def initialize(self, args: dict[str, str]) -> None:
        self._server = TaskServer.from_folder(model_folder(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        config = self._server.config
        alphas = inputs["alphas"]
        drawn = draw(
            config,
            self._server.prompt(inputs["prompt"]),
            [float(alpha) for alpha in alphas],
            int(inputs["seed"][0]),
            int(inputs["adapter_version"][0]),
            self._server.encode,
            partial(call, request),
        )
        return {
            "images": drawn.images,
            **padded_tokens(drawn.codes, config.max_codes),
            "alphas": alphas,
            "embeddings": drawn.embeddings,
        }
