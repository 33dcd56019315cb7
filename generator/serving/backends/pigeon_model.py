"""The Triton model `pigeon`: one request is one task, for which it calls the other models (BLS)."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from generator.serving.backends.graph import Arrays, BadInput
from generator.serving.backends.task import Prompt, TaskConfig, draw
from generator.serving.backends.triton import answer, call, inputs_of, model_folder


class TritonPythonModel:
    """One task from prompt to candidates, an image per α.

    prompt (1,) JSON, alphas (N,), seed (1,), adapter_version (1,) -> images (N, S, S, 3), tokens (N, M) -1 behind,
    counts (N,), alphas (N,), embeddings (N, D).
    """

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        self._config = TaskConfig.from_json(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        config = self._config
        try:
            value = json.loads(inputs["prompt"][0])
        except ValueError as error:
            raise BadInput(f"prompt: not valid JSON ({error})") from error
        alphas = inputs["alphas"]
        drawn = draw(
            config,
            Prompt.from_json(value, config.ids.codebook_size),
            [float(alpha) for alpha in alphas],
            int(inputs["seed"][0]),
            int(inputs["adapter_version"][0]),
            lambda text: self._tokenizer.encode(text, add_special_tokens=False).ids,
            partial(call, request),
        )
        tokens = np.full((len(drawn.codes), config.max_codes), -1, dtype=np.int64)
        for number, codes in enumerate(drawn.codes):
            tokens[number, : len(codes)] = codes
        return {
            "images": drawn.images,
            "tokens": tokens,
            "counts": np.array([len(codes) for codes in drawn.codes], dtype=np.int64),
            "alphas": alphas,
            "embeddings": drawn.embeddings,
        }
