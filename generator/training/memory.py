"""Memory of a step of stage 1 or DPO beside the weights.

What learns, what is kept for the backward pass, and the vocabulary's part.

What is kept was counted tensor by tensor on models of several widths, in float32 and under bf16 autocast on float32 LoRA;
`tests/unit/test_training_memory.py` counts it again on a model of half the width.
"""

from __future__ import annotations

from dataclasses import dataclass

from generator.pigeon.config import PigeonConfig
from generator.pigeon.memory import MemoryNeed
from generator.pigeon.placement import Placement

LEARNED_COPIES = 5
"""Number of float32 copies of what learns: weights, gradients, averages, AdamW's two moments."""
KEPT_PER_WIDTH = {"fp32": 28, "bf16": 21}
"""Bytes per token, layer and unit of LLaMA's width that the backward pass needs."""
KEPT_PER_MLP_WIDTH = {"fp32": 12, "bf16": 6}
"""Bytes per token, layer and unit of the MLP's width that it needs."""
VOCABULARY_BYTES = 12
"""Bytes per label and vocabulary entry: logits, log-probabilities and their gradient in float32."""


@dataclass(frozen=True)
class StepSize:
    """What is computed at once: rows of so many tokens, with so many labels each (the answer and its end)."""

    rows: int
    tokens: int
    labels: int


def step_needed(config: PigeonConfig, placement: Placement, size: StepSize, *, checkpointing: bool) -> MemoryNeed:
    """Bytes of a step of stage 1 or DPO, beside the weights that `checkpoint.weights_needed` counts."""
    language, precision = config.language, "fp32" if placement.precision == "fp32" else "bf16"
    layer = KEPT_PER_WIDTH[precision] * language.width + KEPT_PER_MLP_WIDTH[precision] * language.mlp_width
    item = 4 if precision == "fp32" else 2
    # One layer is computed, or computed again, while the others are kept whole or by their inputs.
    per_token = layer + language.depth * (item * language.width if checkpointing else layer)
    per_token += 4 * language.width  # the last norm's input, in float32
    return MemoryNeed(
        {
            "what learns": 4 * (LEARNED_COPIES - 1) * learned(config),
            "activations": size.rows * size.tokens * per_token,
            "vocabulary": VOCABULARY_BYTES * size.rows * size.labels * config.ids.vocab_size,
        }
    )


def learned(config: PigeonConfig) -> int:
    """Number of weights that stage 1 trains: LoRA, mask generator, adapter. Nothing is allocated."""
    language, mask = config.language, config.mask
    width = language.width
    lora = language.depth * len(language.lora_targets) * 2 * width * language.lora_rank
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * mask.mlp_width + width + mask.mlp_width
    generator = attention + mlp + 3 * 2 * width + 3 * width + width * width + width  # with norms, types and `dense`
    adapter = config.adapter.mlp_width * (config.decoder.prompt_width + 1 + width) + width
    return lora + generator + adapter
