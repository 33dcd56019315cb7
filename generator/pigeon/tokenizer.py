"""The dynamic visual tokenizer: an image -> a variable number of discrete codes (LaVIT, arXiv 2309.04669, section 3.1).

Encoder (a ViT) -> keep decision per patch -> merger (kept tokens take in what the dropped ones held) -> quantizer.
Modules bear the published weight names, so that published weights load as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import TokenizerConfig
from generator.pigeon.layers import CrossAttention, Mlp, SelfAttention, gumbel_noise, straight_through
from generator.pigeon.quantizer import VectorQuantizer
from generator.pigeon.vit import EvaVit

Sampling = Literal["argmax", "gumbel"]
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


@dataclass(frozen=True)
class TokenizerOutput:
    """What `DynamicVisualTokenizer.forward` gives; every patch has an entry, `keep` says which ones count."""

    code_vectors: Tensor  # (B, P, d), straight-through to the encoder
    code_ids: Tensor  # (B, P) int64, 0..K-1
    keep: Tensor  # (B, P) of 0.0/1.0, straight-through to the keep decision
    keep_probability: Tensor  # (B, P), differentiable: a rate penalty goes here
    commitment_loss: Tensor  # ()


class DynamicVisualTokenizer(nn.Module):
    """Normalised pixels (B, 3, S, S) -> codes. `encode_dense` to infer, `encode` for lists, `forward` to train.

    Training: `out = tokenizer.train()(pixels, temperature=1.0, generator=g)`, then
    `padded, lengths = compact(out.code_vectors * out.keep[..., None], out.keep)` goes to `HighresVQDecoder`; add
    `out.commitment_loss` and a penalty on `out.keep_probability.mean()` to the task's loss. The codebook learns by EMA inside
    `forward` while `tokenizer.quantize.training` is true.
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
        out: Tensor = self.encode_task_layer(merged.to(self.quantize.embedding.weight.dtype))
        return out

    def forward(
        self, pixels: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> TokenizerOutput:
        """Training pass: hard Gumbel keep decisions with a soft gradient. At least one patch per image is kept."""
        features = self.features(pixels)
        logprobs: Tensor = self.token_predictor(features)
        noise = gumbel_noise(tuple(logprobs.shape), generator, logprobs)
        keep_soft = ((logprobs + noise) / temperature).softmax(dim=-1)[..., 0]
        keep = straight_through(at_least_one((keep_soft > 0.5).to(keep_soft.dtype), logprobs), keep_soft)
        merged = self.causal_encoder(features, keep)
        vectors, ids, loss = self.quantize(self.to_codebook(merged), keep)
        return TokenizerOutput(vectors, ids, keep, logprobs[..., 0].exp(), loss)

    def encode_dense(
        self, pixels: Tensor, sampling: Sampling = "argmax", generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Normalised pixels (B, 3, S, S) -> code ids (B, P) int64 and keep (B, P) bool.

        No shape depends on the data, so this is the graph to export. `argmax` is deterministic;
        `gumbel` draws the keep decisions as the published code does.
        """
        features = self.features(pixels)
        logprobs: Tensor = self.token_predictor(features)
        scores = logprobs
        if sampling == "gumbel":
            scores = logprobs + gumbel_noise(tuple(logprobs.shape), generator, logprobs)
        keep = (scores[..., 0] >= scores[..., 1]).to(scores.dtype)  # argmax: a tie goes to channel 0
        merged = self.causal_encoder(features, keep)
        return self.quantize.nearest(self.to_codebook(merged)), keep > 0.5

    @torch.no_grad()
    def encode(
        self, pixels: Tensor, sampling: Sampling = "argmax", generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """Normalised pixels (B, 3, S, S) -> per image the kept code ids (n,), n = 0..P."""
        ids, keep = self.encode_dense(pixels, sampling, generator)
        return [row[kept] for row, kept in zip(ids, keep, strict=True)]


def at_least_one(keep: Tensor, logprobs: Tensor) -> Tensor:
    """keep (B, P) of 0/1, logprobs (B, P, 2) -> keep with each empty row's most probable patch switched on."""
    best = F.one_hot(logprobs[..., 0].argmax(dim=-1), keep.shape[-1]).to(keep.dtype)  # (B, P)
    empty = (keep.sum(dim=-1, keepdim=True) == 0).to(keep.dtype)
    return torch.maximum(keep, best * empty)
