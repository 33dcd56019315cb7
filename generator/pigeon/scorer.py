"""A CLIP-like dual encoder that scores candidates against texts and pictures.

Radford et al., arXiv 2103.00020.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import ScorerConfig
from generator.pigeon.layers import Mlp, join_heads, split_heads
from generator.pigeon.vit import EvaVit

SCORER_EPS = 1e-5


class ImageTower(nn.Module):
    """Normalised pixels (B, 3, S, S) -> L2-normalised features (B, F)."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.encoder = EvaVit(config.vision)
        self.norm = nn.LayerNorm(config.vision.width, eps=SCORER_EPS)
        self.projection = nn.Linear(config.vision.width, config.feature_width, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.encoder(pixels)
        return F.normalize(self.projection(self.norm(tokens.mean(dim=1))), dim=-1)


class TextBlock(nn.Module):
    """(B, T, C), bias (B, 1, 1, T) -> (B, T, C), pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=SCORER_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=SCORER_EPS)
        self.mlp = Mlp(width, 4.0)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        x = x + self.proj(join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=bias)))
        x = x + self.mlp(self.norm2(x))
        return x


class TextTower(nn.Module):
    """Token ids (B, T) int64 padded behind, T <= `text_tokens` -> L2-normalised features (B, F)."""

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.pad_id = config.pad_id
        self.embedding = nn.Embedding(config.text_size, config.text_width)
        self.position = nn.Parameter(torch.randn(1, config.text_tokens, config.text_width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(config.text_width, config.text_heads) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(config.text_width, eps=SCORER_EPS)
        self.projection = nn.Linear(config.text_width, config.feature_width, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self.position.device)
        real = (tokens != self.pad_id).to(self.position.dtype)  # (B, T)
        bias = ((1 - real) * -1e4)[:, None, None, :]
        x = self.embedding(tokens) + self.position[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm(x) * real[..., None]
        mean = x.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)
        return F.normalize(self.projection(mean), dim=-1)


class ImageScorer(nn.Module):
    """Two towers, `image` and `text`, whose features' cosine measures how well a picture and a text fit.

    Scores are 100 * cosine. `logit_scale` is the logarithm of the contrastive loss's inverse temperature, for training.
    """

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def pad_texts(rows: Sequence[Sequence[int]], config: ScorerConfig) -> Tensor:
    """Text ids per row -> (B, text_tokens) int64, cut or padded behind."""
    out = torch.full((len(rows), config.text_tokens), config.pad_id, dtype=torch.int64)
    for line, row in zip(out, rows, strict=True):
        cut = torch.tensor(list(row[: config.text_tokens]), dtype=torch.int64)
        line[: len(cut)] = cut
    return out
