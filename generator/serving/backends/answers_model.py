"""The Triton model `answers`: one request is the answers of one task.

Calls the other models of this server (BLS).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from generator.serving.backends.answers import answer as sample_answers
from generator.serving.backends.graph import Arrays
from generator.serving.backends.previews import PreviewMemory
from generator.serving.backends.task import TaskServer
from generator.serving.backends.triton import answer, call, inputs_of, model_folder, padded_tokens


class TritonPythonModel:
    """Several answers to one prompt, with their previews.

    prompt (1,) JSON, alphas (K,), temperatures (K,), seed (1,), adapter_version (1,) -> tokens (K, M) -1 behind, counts (K,),
    logprobs (K,), sampling_logprobs (K,), previews (K, D), history_previews (H, D), preview_kind (1,).
    """

    def initialize(self, args: dict[str, str]) -> None:
        self._server = TaskServer.from_folder(model_folder(args))
        self._previews = PreviewMemory()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        config = self._server.config
        found = sample_answers(
            config,
            self._server.prompt(inputs["prompt"]),
            inputs["alphas"].tolist(),
            inputs["temperatures"].tolist(),
            int(inputs["seed"][0]),
            int(inputs["adapter_version"][0]),
            self._server.encode,
            partial(call, request),
            self._previews,
        )
        return {
            **padded_tokens(found.codes, config.max_codes),
            "logprobs": found.logprobs,
            "sampling_logprobs": found.sampling_logprobs,
            "previews": found.previews,
            "history_previews": found.history_previews,
            "preview_kind": np.array([config.preview_kind.encode()], dtype=np.object_),
        }
