"""The mutual (reference-aware) mask generator (Xu et al., WWW 2025, section 3; PIGEON.md section 2).

It scores each history token and each reference token by how much they say about each other, and keeps the best part of
each: the history's noise and the reference's replaceable look are masked before LLaMA sees them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import MaskConfig
from generator.pigeon.layers import HIDDEN, gumbel_noise, join_heads, split_heads, straight_through
from generator.pigeon.placement import in_float32
from generator.pigeon.prompt import HISTORY, REFERENCE

LAYER_NORM_EPS = 1e-5
RATIO_EPS = 1e-7


class PositionTable(nn.Module):
    """Sinusoidal positions: (B, N) int64 -> (B, N, C). Positions past the table's end use its last row."""

    pe: Tensor

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        position = torch.arange(positions, dtype=torch.float32)[:, None]
        rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
        pe = torch.zeros(positions, width)
        pe[:, 0::2] = torch.sin(position * rate)
        pe[:, 1::2] = torch.cos(position * rate)
        self.register_buffer("pe", pe)

    def forward(self, positions: Tensor) -> Tensor:
        # With 256 tokens and the two markers an image is longer than the published table of 257 rows.
        return self.pe[positions.clamp(max=self.pe.shape[0] - 1)]


class PackedAttention(nn.Module):
    """torch.nn.MultiheadAttention under its weight names: (B, N, C), bias (B, 1, 1, N) -> (B, N, C).

    Written as plain operations.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = (split_heads(part, self.heads) for part in packed.chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        out: Tensor = self.out_proj(
            join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout))
        )
        return out


class MaskEncoderLayer(nn.Module):
    """torch.nn.TransformerEncoderLayer under its weight names: (B, N, C), (B, 1, 1, N) -> (B, N, C).

    Post-norm, ReLU.
    """

    def __init__(self, width: int, config: MaskConfig) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, config.heads, config.dropout)
        self.linear1 = nn.Linear(width, config.mlp_width)
        self.linear2 = nn.Linear(config.mlp_width, width)
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.self_attn(x, bias)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        x = self.norm2(x + self.dropout(self.linear2(hidden)))
        return x


class MaskEncoder(nn.Module):
    """A stack of one, because the published names say `encoder.layers.0`."""

    def __init__(self, width: int, config: MaskConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MaskEncoderLayer(width, config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, bias)
        return x


@dataclass(frozen=True)
class MaskOutput:
    """What is kept and why; all (B, N)."""

    keep: Tensor  # 0.0/1.0, straight-through; 0 at padding
    scores: Tensor  # cosine
    history_probability: Tensor  # sums to 1 over the history's positions
    reference_probability: Tensor  # sums to 1 over the reference's positions


class MutualMaskGenerator(nn.Module):
    """LLaMA input embeddings of history tokens then reference tokens -> which of them to keep.

    Inputs are right-padded: embeds (B, N, C); positions (B, N), 1..n within each image, 0 for padding; types (B, N),
    1 history, 2 reference, 0 padding. The history comes without image start and end, the reference with both.
    Training: `generator(embeds, positions, types, ratio, invert_reference=True, noise=...)` in `.train()`.
    """

    def __init__(self, width: int, config: MaskConfig) -> None:
        super().__init__()
        self.config = config
        self.position_embedding = PositionTable(config.positions, width)
        self.type_embedding = nn.Embedding(3, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.encoder = MaskEncoder(width, config)
        self.dense = nn.Linear(width, width)

    def scores(self, embeds: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        """-> cosine of each input embedding and its encoding (B, N). This is the graph to export."""
        with in_float32(embeds.device):
            return self._scores(embeds.to(self.dense.weight.dtype), positions, types)

    def _scores(self, embeds: Tensor, positions: Tensor, types: Tensor) -> Tensor:
        x = self.LayerNorm(embeds + self.position_embedding(positions) + self.type_embedding(types))
        padding = types == 0
        bias = torch.zeros_like(embeds[..., 0]).masked_fill(padding, HIDDEN)[:, None, None, :]
        x = self.encoder(x, bias)
        x = x.masked_fill(padding[..., None], 0.0)  # as torch's padded fast path does, so that padding is defined
        out = torch.tanh(self.dense(self.LayerNorm(x)))
        return F.cosine_similarity(embeds, out, dim=-1)

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor,
        types: Tensor,
        reference_ratio: Tensor | float,
        *,
        invert_reference: bool = False,
        noise: Tensor | None = None,
    ) -> MaskOutput:
        """reference_ratio (B,) or one number: the share of the reference to mask, 0..1.

        invert_reference: keep what is *least* preference-like (1 - p), as in training.
        noise (B, N): standard Gumbel noise (`draw_noise`); none = deterministic.
        """
        scores = self.scores(embeds, positions, types)
        ratio = torch.as_tensor(reference_ratio, dtype=torch.float64, device=scores.device).expand(scores.shape[0])
        history_ratio = torch.full_like(ratio, self.config.history_ratio)
        history_p = type_probability(scores, types == HISTORY)
        reference_p = type_probability(scores, types == REFERENCE)
        history = keep_top(history_p, types == HISTORY, history_ratio, noise=noise)
        wanted = 1 - reference_p if invert_reference else reference_p
        reference = keep_top(wanted, types == REFERENCE, ratio, noise=noise)
        return MaskOutput(history + reference, scores, history_p, reference_p)


def type_probability(scores: Tensor, member: Tensor) -> Tensor:
    """scores (B, N), member (B, N) bool -> softmax of the scores over the members, 0 elsewhere (B, N)."""
    # Cosines lie in -1..1, so exp needs no shift; a row without members stays all zero.
    weights = scores.exp() * member
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def keep_count(members: Tensor, ratio: Tensor) -> Tensor:
    """max(1, floor(n * (1 - ratio))), at most n; members (B,) counts, ratio (B,) -> (B,) int64.

    1 - ratio is rounded up by float32's rounding error, so that 10 tokens at ratio 0.9 keep 1 and not 0.99999.
    """
    count = (members * (1 - ratio.double() + RATIO_EPS)).floor().to(torch.int64)
    return torch.minimum(count.clamp(min=1), members)


def keep_top(probability: Tensor, member: Tensor, ratio: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """Keeps the `keep_count` most probable members of each row; ties go to the earlier one.

    probability, member, noise (B, N), ratio (B,) -> (B, N) of 0.0/1.0, forward hard, backward the softmax of the (noisy)
    log-probabilities over the members.
    """
    logits = probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
    if noise is not None:
        logits = logits + noise
    logits = logits.masked_fill(~member, torch.finfo(logits.dtype).min)
    order = logits.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)  # (B, N): 0 = best
    hard = (rank < keep_count(member.sum(dim=-1), ratio)[:, None]) & member
    soft = logits.softmax(dim=-1) * member
    return straight_through(hard.to(probability.dtype), soft)


def draw_noise(types: Tensor, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Gumbel noise (B, N) for a batch whose types are (B, N)."""
    return gumbel_noise(tuple(types.shape), generator, like)
