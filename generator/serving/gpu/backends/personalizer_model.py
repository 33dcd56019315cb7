"""The Triton model `personalizer` of a GPU server: one version per adapter.

LLaMA's step is the model `personalizer_step`.

Its cache travels through this process at every token. An engine with a cache of its own takes this file's place.
"""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np

from generator.pigeon.prompt import TokenIds
from generator.pigeon.sampling import GenerationConfig
from generator.serving.backends.generation import AnswerGenerator
from generator.serving.backends.graph import Arrays, Graph
from generator.serving.gpu.backends.calls import answer, inputs_of, model_folder, padded_tokens
from generator.serving.gpu.backends.step import StepModel


class TritonPythonModel:
    """Answers for a grid of prompts.

    prompt_ids (N, T), condition (N, E), seed (1,), variants (N,) -> tokens (N, max_new), -1 behind, and counts (N,).
    Optional: temperatures (N,), 0 is greedy. Further outputs: logprobs (N,), sampling_logprobs (N,), natural logarithms.
    """

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with np.load(folder / "adapter.npz", allow_pickle=False) as stored:
            lora = {name: stored[name] for name in ("lora_a", "lora_b")}
        generation = GenerationConfig(**config["generation"])
        self._width = generation.max_new_tokens
        self._step = StepModel(config["language"])
        self._generator = AnswerGenerator(
            cast("Graph", self._step),  # it is called as one, and asked for its inputs
            lora,
            generation,
            TokenIds(**config["ids"]).image_end,
            int(config["language"]["max_positions"]),
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        streams = [(int(inputs["seed"][0]), int(variant)) for variant in inputs["variants"]]
        temperatures = inputs["temperatures"].tolist() if "temperatures" in inputs else None
        with self._step.on_behalf_of(request):
            sampler = self._generator.generate(
                inputs["prompt_ids"], inputs["condition"], streams, temperatures=temperatures
            )
        return {
            **padded_tokens(sampler.rows, self._width),
            "logprobs": sampler.logprobs,
            "sampling_logprobs": sampler.sampling_logprobs,
        }
