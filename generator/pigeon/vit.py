"""The image encoder: EVA-CLIP's ViT, under its published weight names.

Also the image tower of the scorer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import VisionConfig
from generator.pigeon.layers import Mlp, join_heads, split_heads


class PatchEmbed(nn.Module):
    """Pixels (B, 3, S, S) -> (B, patches, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.proj(pixels)
        return out.flatten(2).transpose(1, 2)


class EvaAttention(nn.Module):
    """Self-attention (B, N, C) -> (B, N, C) with biases on queries and values and none on keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query = split_heads(query + self.q_bias, self.heads)
        value = split_heads(value + self.v_bias, self.heads)
        mixed = F.scaled_dot_product_attention(query, split_heads(key, self.heads), value)
        out: Tensor = self.proj(join_heads(mixed))
        return out


class EvaBlock(nn.Module):
    """(B, N, C) -> (B, N, C), pre-norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = EvaAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x


class EvaVit(nn.Module):
    """Normalised pixels (B, 3, S, S) -> all tokens before the final norm (B, 1 + patches, C)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, config.width))
        self.blocks = nn.ModuleList(EvaBlock(config) for _ in range(config.depth))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels.to(self.cls_token))
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = x
        return out
