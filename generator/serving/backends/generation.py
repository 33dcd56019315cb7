"""The personalizer's answers for a grid of variants: one shared prefill, then one step per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.prompt import EMBEDDING
from generator.pigeon.sampling import AnswerSampler, GenerationConfig
from generator.serving.backends.graph import BadAnswer, BadInput, Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def shared_prefix(prompts: Ints) -> int:
    """Count the first columns of prompts (N, T) that are equal in all rows; at most T - 1.

    It ends before the first reference embedding.
    """
    differs = (prompts != prompts[:1]).any(axis=0) | (prompts == EMBEDDING).any(axis=0)
    first = int(differs.argmax()) if differs.any() else prompts.shape[1]
    return min(first, int(prompts.shape[1]) - 1)


class AnswerGenerator:
    """LLaMA's step graph with one adapter."""

    def __init__(
        self,
        step: Graph,
        lora: dict[str, Floats],
        config: GenerationConfig,
        end_id: int,
        max_positions: int,
    ) -> None:
        """Check the adapter against the graph.

        lora: `lora_a` (L, 2, r, C) and `lora_b` (L, 2, C, r), alpha / r folded into the latter; end_id: image end.

        Raises:
            BadInput: the adapter's matrices are not of the graph's shape.
        """
        for name in ("lora_a", "lora_b"):
            wanted = step.inputs[name][1]
            if tuple(lora[name].shape) != wanted:
                raise BadInput(f"adapter: {name} is {list(lora[name].shape)}, this model takes {list(wanted)}")
        self._step = step
        self._lora = lora
        self._config = config
        self._end_id = end_id
        self._max_positions = max_positions
        layers, _, heads, _, width = step.inputs["past_key"][1]
        self._cache_shape = (layers, 1, heads, 0, width)

    def generate(
        self,
        prompts: Ints,
        condition: Floats,
        streams: Sequence[tuple[int, int]],
        checkpoint: Callable[[], None] = lambda: None,
    ) -> list[list[int]]:
        """Sample an answer per prompt: its ids, without the end token.

        prompts (N, T) ids, -1 masked, -2 the reference embedding; condition (N, E); streams: (seed, variant) per row.
        `checkpoint` is called before every step and may raise.

        Raises:
            BadInput: no row, or a prompt that does not fit the model's positions.
            BadAnswer: logits that are not finite.
        """
        rows, length = prompts.shape
        if rows == 0 or length == 0:
            raise BadInput(f"personalizer: prompts are {rows}x{length}; give at least one prompt of one token")
        limit = self._config.max_new_tokens
        if length + limit > self._max_positions:
            raise BadInput(
                f"personalizer: {length} prompt tokens and {limit} new ones exceed the model's {self._max_positions} "
                "positions; shorten titles and descriptions"
            )
        cache: dict[str, NDArray[Any]] = {
            name: np.zeros(self._cache_shape, dtype=np.float32) for name in ("past_key", "past_value")
        }
        prefix = shared_prefix(prompts)
        if prefix:
            _, cache = self._run(prompts[:1, :prefix], condition[:1], cache)
        cache = {name: np.repeat(value, rows, axis=1) for name, value in cache.items()}
        logits, cache = self._run(prompts[:, prefix:], condition, cache)
        sampler = AnswerSampler(self._config, streams, self._end_id, logits.shape[1])
        while True:
            checkpoint()
            try:
                ids = sampler.step(logits)
            except ValueError as error:
                raise BadAnswer(str(error)) from error
            if sampler.done:
                return sampler.rows
            logits, cache = self._run(ids[:, None], condition, cache)

    def _run(
        self, ids: Ints, condition: Floats, cache: dict[str, NDArray[Any]]
    ) -> tuple[Floats, dict[str, NDArray[Any]]]:
        out = self._step({"input_ids": np.ascontiguousarray(ids), "condition": condition, **cache, **self._lora})
        return out["logits"], {"past_key": out["key"], "past_value": out["value"]}
