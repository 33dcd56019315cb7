"""The Triton model `personalizer` where an engine runs LLaMA.

One version per adapter, all forwarded to the same process.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from generator.serving.backends.engine_client import EngineClient, EngineRefused, EngineUnavailable
from generator.serving.backends.graph import Arrays, BadAnswer, BadInput
from generator.serving.backends.triton import (
    CallFailed,
    NotReady,
    answer,
    inputs_of,
    model_folder,
    parameter,
    stop_if_cancelled,
)

OUTPUTS = ("tokens", "counts", "logprobs", "sampling_logprobs")
_ERRORS: dict[str, type[Exception]] = {"rejected": BadInput, "corrupt": BadAnswer}


class TritonPythonModel:
    """Inputs and outputs are those of `personalizer_model`; a version does not load without its engine."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = model_folder(args)
        info = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        with np.load(folder / "adapter.npz", allow_pickle=False) as stored:
            lora = {name: stored[name] for name in ("lora_a", "lora_b")}
        self._engine = EngineClient(Path(parameter(args, "engine_socket", "")), info["base"], info["sha256"], lora)
        self._engine.check()

    def execute(self, requests: list[Any]) -> list[Any]:
        return [answer(request, self._run) for request in requests]

    def finalize(self) -> None:
        self._engine.close()

    def _run(self, request: Any) -> Arrays:
        inputs = inputs_of(request)
        seed = int(inputs.pop("seed")[0])
        try:
            reply = self._engine.answer(seed, inputs, partial(stop_if_cancelled, request))
        except EngineUnavailable as error:
            raise NotReady(str(error)) from error
        except EngineRefused as error:
            raise _ERRORS.get(error.label, CallFailed)(str(error)) from error
        return {name: reply.tensors[name] for name in OUTPUTS}
