"""LLaMA with its key-value cache and LoRA as tensors: one graph for the prompt and every later step.

The weights are those of a transformers LlamaForCausalLM (no copy); the result agrees with it. Written out so that
an exported graph takes a retrained adapter as an input, and so that one prompt's cache serves a whole α grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from generator.pigeon.layers import HIDDEN, join_heads, split_heads

LORA_MODULES = ("q_proj", "v_proj")


@dataclass(frozen=True)
class LoraMatrices:
    """LoRA as two tensors; index 1 is 0 for q_proj and 1 for v_proj.

    The scaling alpha / r is already in `b`.
    """

    a: Tensor  # (L, 2, r, C)
    b: Tensor  # (L, 2, C, r)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], layers: int, scaling: float) -> LoraMatrices:
        """state: PEFT's names (`...layers.0.self_attn.q_proj.lora_A.weight`), as in adapter_model.safetensors.

        Raises:
            ValueError: a layer's matrix is not there.
        """

        def find(layer: int, module: str, part: str) -> Tensor:
            wanted = f"layers.{layer}.self_attn.{module}.lora_{part}."
            for name, value in state.items():
                if wanted in name:
                    return value
            raise ValueError(f"adapter: {wanted}weight is missing; expected LoRA on {' and '.join(LORA_MODULES)}")

        def stack(part: str) -> Tensor:
            return torch.stack(
                [torch.stack([find(layer, module, part) for module in LORA_MODULES]) for layer in range(layers)]
            )

        return cls(stack("A").float(), stack("B").float() * scaling)


class LlamaStep(nn.Module):
    """Input embeddings after a cache -> the next token's logits and the longer cache.

    embeds (B, T, C); attention (B, T) and past_attention (B, S) int64, 1 = real, padding on the left;
    past_keys, past_values (L, B, H, S, D), S = 0 at the start; lora_a (L, 2, r, C), lora_b (L, 2, C, r)
    -> logits (B, V) of the last position, keys, values (L, B, H, S + T, D).
    """

    inverse_frequency: Tensor

    def __init__(self, llama: LlamaForCausalLM) -> None:
        """Take over the weights of `llama`, which stay shared.

        Raises:
            ValueError: grouped key-value heads, biases or a scaled rotary embedding, which LLaMA-2 7B and nano do not have.
        """
        super().__init__()
        config = llama.config
        if config.num_key_value_heads != config.num_attention_heads or config.attention_bias:
            raise ValueError("language model: grouped key-value heads and attention biases are not supported")
        rope = dict(config.rope_parameters or {})
        if rope.get("rope_type", "default") != "default":
            raise ValueError(f"language model: rope_type {rope['rope_type']!r} must be 'default'")
        self.heads = config.num_attention_heads
        self.layers = llama.model.layers
        # Under PEFT these projections are wrapped; the plain ones are meant, because LoRA comes in as tensors.
        self.q_projs = nn.ModuleList(getattr(a.q_proj, "base_layer", a.q_proj) for a in self._attentions())
        self.v_projs = nn.ModuleList(getattr(a.v_proj, "base_layer", a.v_proj) for a in self._attentions())
        self.norm = llama.model.norm
        self.head = llama.lm_head
        width = config.hidden_size // self.heads
        table: Any = llama.get_input_embeddings()
        frequency = float(rope["rope_theta"]) ** (
            -torch.arange(0, width, 2, dtype=torch.float32, device=table.weight.device) / width
        )
        self.register_buffer("inverse_frequency", frequency, persistent=False)

    def _attentions(self) -> list[LlamaAttention]:
        return [layer.self_attn for layer in self.layers]

    def empty_cache(self, batch: int) -> Tensor:
        """(L, B, H, 0, D), where and as precise as the weights."""
        weight = self.norm.weight
        width = 2 * self.inverse_frequency.shape[0]
        return torch.zeros(len(self.layers), batch, self.heads, 0, width, dtype=weight.dtype, device=weight.device)

    def forward(
        self,
        embeds: Tensor,
        attention: Tensor,
        past_attention: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        lora_a: Tensor,
        lora_b: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        new = torch.ones_like(attention)
        positions = past_attention.sum(dim=1, keepdim=True) + attention.cumsum(dim=1) - 1  # (B, T)
        angles = positions.clamp(min=0)[..., None].to(torch.float32) * self.inverse_frequency
        angles = torch.cat([angles, angles], dim=-1)[:, None]  # (B, 1, T, D)
        cos, sin = angles.cos().to(embeds.dtype), angles.sin().to(embeds.dtype)
        causal = (new[:, :, None] * attention[:, None, :]).tril()  # (B, T, T)
        visible = torch.cat([new[:, :, None] * past_attention[:, None, :], causal], dim=2) > 0  # (B, T, S + T)
        bias = torch.where(visible, 0.0, HIDDEN).to(embeds.dtype)[:, None]

        x = embeds
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            attend = layer.self_attn
            h = layer.input_layernorm(x)
            query = self.q_projs[index](h) + F.linear(F.linear(h, lora_a[index, 0]), lora_b[index, 0])
            value = self.v_projs[index](h) + F.linear(F.linear(h, lora_a[index, 1]), lora_b[index, 1])
            query = rotate(split_heads(query, self.heads), cos, sin)
            key = rotate(split_heads(attend.k_proj(h), self.heads), cos, sin)
            key = torch.cat([past_keys[index], key], dim=2)
            value = torch.cat([past_values[index], split_heads(value, self.heads)], dim=2)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
            x = x + attend.o_proj(join_heads(mixed))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            keys.append(key)
            values.append(value)
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits, torch.stack(keys), torch.stack(values)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in LLaMA's half-split form: (B, H, T, D), cos and sin (B, 1, T, D).

    Su et al., arXiv 2104.09864.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
