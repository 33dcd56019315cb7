"""vLLM itself, its core in this process: requests in, ended requests out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator.serving.engine.answers import AnswerRows
from generator.serving.engine.processor import ANSWER_KEY, logits_processor
from generator.serving.engine.service import Finished
from generator.serving.engine.weights import LANGUAGE_MODEL, LORA_MODULES, EngineWeights

BLOCK = 32
"""Tokens per block of the cache; what answers share of a prompt is whole blocks. The CPU's attention takes no smaller one."""
ADAPTERS = 4
"""Adapters that one batch may hold; more of them wait."""
IN_THIS_PROCESS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the sampler and its answers are objects of this process
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # vLLM's choice on GPUs, whose logits processors have another interface
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


@dataclass(frozen=True)
class EngineOptions:
    """What the machine decides."""

    dtype: str = "float32"
    cache_gib: float = 1.0
    """GiB of memory for keys and values; on a GPU `gpu_memory_share` counts instead."""
    gpu_memory_share: float = 0.8
    most_requests: int = 64
    """Answers in one batch."""


def open_vllm(weights: EngineWeights, rows: AnswerRows, options: EngineOptions) -> VllmCore:
    """Load the language model; takes seconds for nano, minutes for a large one."""
    os.environ.update(IN_THIS_PROCESS)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(options.cache_gib))))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM, __version__

    model = LLM(
        model=str(weights.folder / LANGUAGE_MODEL),
        skip_tokenizer_init=True,
        dtype=options.dtype,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        block_size=BLOCK,
        enable_lora=True,
        max_loras=ADAPTERS,
        # Else the embedding has LoRA as well, and 0.32's CPU path fails where a batch mixes prompts as embeddings with drawn ids.
        lora_target_modules=list(LORA_MODULES),
        max_lora_rank=int(weights.language["lora_rank"]),
        logits_processors=[logits_processor(rows)],
        max_model_len=int(weights.language["max_positions"]),
        max_num_seqs=options.most_requests,
        gpu_memory_utilization=options.gpu_memory_share,
        async_scheduling=False,  # a step's place is the length of the engine's list of tokens, which has to be whole
        enforce_eager=not torch.cuda.is_available(),
        seed=0,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return VllmCore(model.llm_engine, weights, f"vllm {__version__}, {options.dtype}, {device}", options.dtype)


class VllmCore:
    """`service.Core` over vLLM's LLMEngine."""

    def __init__(self, engine: Any, weights: EngineWeights, name: str, dtype: str) -> None:
        self._engine = engine
        self._weights = weights
        self._dtype = getattr(torch, dtype)
        self._numbers: dict[Path, int] = {}
        self.name = name

    @property
    def busy(self) -> bool:
        return bool(self._engine.has_unfinished_requests())

    def add(self, key: str, embeds: Tensor, adapter: Path) -> None:
        from vllm import SamplingParams
        from vllm.inputs import EmbedsPrompt
        from vllm.lora.request import LoRARequest

        # Temperature 0 takes the one id that our sampler leaves.
        params = SamplingParams(
            temperature=0.0,
            max_tokens=self._weights.generation.max_new_tokens,
            stop_token_ids=[self._weights.ids.image_end],
            detokenize=False,
            extra_args={ANSWER_KEY: key},
        )
        number = self._numbers.setdefault(adapter, len(self._numbers) + 1)
        self._engine.add_request(
            key,
            EmbedsPrompt(prompt_embeds=embeds.to(self._dtype)),
            params,
            lora_request=LoRARequest(adapter.name, number, str(adapter)),
        )

    def abort(self, keys: Sequence[str]) -> None:
        if keys:
            self._engine.abort_request(list(keys))

    def step(self) -> Sequence[Finished]:
        return [
            Finished(out.request_id, list(out.outputs[0].token_ids), int(out.num_cached_tokens or 0))
            for out in self._engine.step()
            if out.finished
        ]
