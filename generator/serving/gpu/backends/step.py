"""LLaMA's step as the generator of answers calls it: a model of this server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generator.serving.backends.graph import Arrays
from generator.serving.gpu.backends.calls import call

MODEL = "personalizer_step"


class StepModel:
    """What `Graph` is on CPUs: `inputs` says what it takes, a call runs it."""

    def __init__(self, language: Mapping[str, Any]) -> None:
        """language: the checkpoint's `language` configuration."""
        depth, heads, width = int(language["depth"]), int(language["heads"]), int(language["width"])
        rank, targets = int(language["lora_rank"]), len(language["lora_targets"])
        cache = (depth, "batch", heads, "past", width // heads)
        self.inputs = {
            "past_key": (np.float32, cache),
            "past_value": (np.float32, cache),
            "lora_a": (np.float32, (depth, targets, rank, width)),
            "lora_b": (np.float32, (depth, targets, width, rank)),
        }
        self._request: Any = None

    @contextmanager
    def on_behalf_of(self, request: Any) -> Iterator[None]:
        """Calls inside end when `request` is cancelled."""
        self._request = request
        try:
            yield
        finally:
            self._request = None

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        return call(self._request, MODEL, feeds, ["logits", "key", "value"])
