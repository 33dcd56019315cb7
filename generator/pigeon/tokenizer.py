"""The dynamic visual tokenizer: an image -> a variable number of discrete codes.

LaVIT, arXiv 2309.04669, section 3.1.

Encoder (a ViT) -> keep decision per patch -> merger (kept tokens take in what the dropped ones held) -> quantizer.
Modules bear the published weight names, so that published weights load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from generator.pigeon.config import TokenizerConfig
from generator.pigeon.layers import CrossAttention, Mlp, SelfAttention
from generator.pigeon.placement import in_float32
from generator.pigeon.quantizer import VectorQuantizer
from generator.pigeon.vit import EvaVit

MERGER_EPS = 1e-5


class KeepPredictor(nn.Module):
    """Patch features (B, P, C) -> log-probabilities (B, P, 2); channel 0 = keep."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width, eps=MERGER_EPS), nn.Linear(width, width), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 2),
        )

    def forward(self, features: Tensor) -> Tensor:
        # These decide which patches count, and stay in float32 whatever the encoder's precision.
        with in_float32(features.device):
            local, shared = self.in_conv(features.float()).chunk(2, dim=-1)  # (B, P, C/2) each
            shared = shared.mean(dim=1, keepdim=True).expand_as(local)
            out: Tensor = self.out_conv(torch.cat([local, shared], dim=-1))
            return out.log_softmax(dim=-1)


class MergerBlock(nn.Module):
    """One block of the merger: x (B, P, C), origin (B, P, C), two policies (B, 1, P or 1, P) -> (B, P, C)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(width, eps=MERGER_EPS)
        self.token_causal_attn = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=MERGER_EPS)
        self.token_cross_attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=MERGER_EPS)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x: Tensor, origin: Tensor, kept_policy: Tensor, dropped_policy: Tensor) -> Tensor:
        x = x + self.token_causal_attn(self.norm0(x), kept_policy)
        x = x + self.token_cross_attn(self.norm1(x), origin, policy=dropped_policy)
        x = x + self.mlp(self.norm2(x))
        return x


class TokenMerger(nn.Module):
    """Raw patch features (B, P, C) and a 0/1 keep mask (B, P) -> merged features (B, P, C).

    Differentiable in the mask. Rows of dropped patches are computed too, but mean nothing.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        width = config.vision.width
        self.ln_vision = nn.LayerNorm(width, eps=MERGER_EPS)
        self.blocks = nn.ModuleList(
            MergerBlock(width, config.merger_heads, config.mlp_ratio) for _ in range(config.merger_depth)
        )
        self.norm = nn.LayerNorm(width, eps=MERGER_EPS)

    def forward(self, features: Tensor, keep: Tensor) -> Tensor:
        origin = self.ln_vision(features)
        keep = keep.to(features.dtype)
        patches = features.shape[1]
        causal = torch.ones(patches, patches, dtype=keep.dtype, device=keep.device).tril(-1)
        itself = torch.eye(patches, dtype=keep.dtype, device=keep.device)
        kept_policy = keep[:, None, None, :] * causal + itself  # (B, 1, P, P): earlier kept tokens and itself
        dropped_policy = 1 - keep[:, None, None, :]  # (B, 1, 1, P)
        x = features
        for block in self.blocks:
            x = block(x, origin, kept_policy, dropped_policy)
        out: Tensor = self.norm(x)
        return out


class DynamicVisualTokenizer(nn.Module):
    """Normalised pixels (B, 3, S, S) -> codes: `encode_dense` as tensors, `encode` as lists.

    A keep decision is the more probable one; the published code can also draw it, with Gumbel noise.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.vision.width
        self.encoder = EvaVit(config.vision)
        self.token_predictor = KeepPredictor(width)
        self.causal_encoder = TokenMerger(config)
        self.encode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, config.code_dim))
        self.quantize = VectorQuantizer(config.codebook_size, config.code_dim)

    def features(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) -> patch features (B, P, C), the class token dropped."""
        out: Tensor = self.encoder(pixels)
        return out[:, 1:]

    def to_codebook(self, merged: Tensor) -> Tensor:
        """Merged features (B, P, C) -> vectors (B, P, d) in the quantizer's own precision."""
        with in_float32(merged.device):
            out: Tensor = self.encode_task_layer(merged.to(self.quantize.embedding.weight.dtype))
        return out

    def encode_dense(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, S, S) -> code ids (B, P) int64 and keep (B, P) bool.

        No shape depends on the data, so this is the graph to export.
        """
        features = self.features(pixels)
        logprobs: Tensor = self.token_predictor(features)
        keep = (logprobs[..., 0] >= logprobs[..., 1]).to(logprobs.dtype)  # argmax: a tie goes to channel 0
        merged = self.causal_encoder(features, keep)
        return self.quantize.nearest(self.to_codebook(merged)), keep > 0.5

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) -> per image the kept code ids (n,), n = 0..P."""
        ids, keep = self.encode_dense(pixels)
        return [row[kept] for row, kept in zip(ids, keep, strict=True)]
