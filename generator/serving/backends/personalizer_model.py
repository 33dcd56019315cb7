"""The Triton model `personalizer`: one version per adapter, all on the same LLaMA graph."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np

from generator.pigeon.prompt import TokenIds
from generator.pigeon.sampling import GenerationConfig
from generator.serving.backends.generation import AnswerGenerator
from generator.serving.backends.graph import Arrays, Graph
from generator.serving.backends.triton import answer, inputs_of, model_folder, parameter, stop_if_cancelled


class TritonPythonModel:
    """Answers for a grid of prompts.

    prompt_ids (N, T), condition (N, E), seed (1,), variants (N,) -> tokens (N, max_new), -1 behind, and counts (N,).
    """

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with np.load(folder / "adapter.npz", allow_pickle=False) as stored:
            lora = {name: stored[name] for name in ("lora_a", "lora_b")}
        step = Graph(
            folder.parent / "graph" / "model.onnx",
            threads=int(parameter(args, "threads", "1")),
            unchecked=("key", "value"),
        )
        generation = GenerationConfig(**config["generation"])
        self._width = generation.max_new_tokens
        self._generator = AnswerGenerator(
            step, lora, generation, TokenIds(**config["ids"]).image_end, int(config["language"]["max_positions"])
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)

        streams = [(int(inputs["seed"][0]), int(variant)) for variant in inputs["variants"]]
        rows = self._generator.generate(
            inputs["prompt_ids"], inputs["condition"], streams, partial(stop_if_cancelled, request)
        )
        tokens = np.full((len(rows), self._width), -1, dtype=np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
        return {"tokens": tokens, "counts": np.array([len(row) for row in rows], dtype=np.int64)}
