"""The token decoder: codes -> the conditions of the diffusion model.

PIGEON.md section 4; LaVIT, arXiv 2309.04669.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.config import DecoderConfig
from generator.pigeon.layers import CrossAttention, Mlp, SelfAttention, compact, join_heads, split_heads

DECODER_EPS = 1e-5
PADDING_BIAS = -1e4


class DecoderBlock(nn.Module):
    """queries (B, Q, C), memory (B, N, C), bias (B, 1, 1, N) -> (B, Q, C)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.norm0 = nn.LayerNorm(config.width, eps=DECODER_EPS)
        self.self_attn = SelfAttention(config.width, config.heads)
        self.norm1 = nn.LayerNorm(config.width, eps=DECODER_EPS)
        self.cross_attn = CrossAttention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=DECODER_EPS)
        self.mlp = Mlp(config.width, config.mlp_ratio)

    def forward(self, queries: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        queries = queries + self.self_attn(self.norm0(queries))
        queries = queries + self.cross_attn(self.norm1(queries), memory, bias=bias)
        queries = queries + self.mlp(self.norm2(queries))
        return queries


class AttentionPool(nn.Module):
    """CLIP's attention pooling with the mean token as the query: (B, Q, C) -> (B, out)."""

    def __init__(self, tokens: int, width: int, heads: int, out_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(tokens + 1, width) * width**-0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding  # (B, 1 + Q, C)
        query = split_heads(self.q_proj(x[:, :1]), self.heads)
        key = split_heads(self.k_proj(x), self.heads)
        value = split_heads(self.v_proj(x), self.heads)
        pooled = join_heads(F.scaled_dot_product_attention(query, key, value))  # (B, 1, C)
        out: Tensor = self.c_proj(pooled[:, 0])
        return out


class HighresVQDecoder(nn.Module):
    """Code vectors (B, N, d) and their lengths (B,) -> prompt_embeds (B, Q, a + b), pooled (B, p).

    Rows are padded behind.

    With a `config.code_table` d is the codebook's width and the table's, and the sum of all vectors moves the queries.
    N may be anything from 1 to `config.max_tokens`.
    `hidden` alone gives the reference condition's features.
    """

    def __init__(self, config: DecoderConfig, code_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.code_table is not None:
            count, table_width = config.code_table
            code_dim += table_width
            self.code_table = nn.Embedding(config.max_tokens * count, table_width)
            self.whole_proj = nn.Linear(code_dim, config.queries * width)
            nn.init.normal_(self.code_table.weight, std=0.02)
        self.in_proj = nn.Linear(code_dim, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.max_tokens, width))
        self.query_embed = nn.Parameter(torch.zeros(1, config.queries, width))
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=DECODER_EPS)
        self.decode_task_layer = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.unet_proj_1 = nn.Linear(width, config.projections[0])
        self.unet_proj_2 = nn.Linear(width, config.projections[1])
        self.unet_attnpool = AttentionPool(config.queries, width, config.heads, config.pooled_width)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.query_embed, std=0.02)

    def hidden(self, code_vectors: Tensor, lengths: Tensor) -> Tensor:
        """(B, N, d), (B,) -> the queries' outputs (B, Q, C).

        An image without tokens (length 0) is decoded from one zero vector, whatever the padded length.
        """
        code_vectors = code_vectors.to(self.pos_embed)
        count = code_vectors.shape[1]
        memory = self.in_proj(code_vectors) + self.pos_embed[:, :count]
        padding = torch.arange(count, device=lengths.device)[None] >= lengths[:, None].clamp(min=1)  # (B, N)
        bias = padding[:, None, None, :].to(memory.dtype) * PADDING_BIAS
        queries = self.query_embed.expand(memory.shape[0], -1, -1)
        if self.config.code_table is not None:
            queries = queries + self.whole_proj(code_vectors.sum(dim=1)).reshape(queries.shape)
        for block in self.blocks:
            queries = block(queries, memory, bias)
        out: Tensor = self.decode_task_layer(self.norm(queries))
        return out

    def forward(self, code_vectors: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(code_vectors, lengths)
        prompt_embeds = torch.cat([self.unet_proj_1(hidden), self.unet_proj_2(hidden)], dim=-1)
        pooled: Tensor = self.unet_attnpool(hidden)
        return prompt_embeds, pooled


class CodeDecoder(nn.Module):
    """The token decoder behind its codebook: code ids in, conditions out. This is the graph to export.

    codes (B, N) int64, 0..K-1, padded behind with any valid code; lengths (B,) -> prompt_embeds (B, Q, a + b), pooled (B, p).
    """

    codebook: Tensor

    def __init__(self, decoder: HighresVQDecoder, codebook: Tensor) -> None:
        """codebook (K, d): `tokenizer.quantize.embedding.weight`, shared, not copied."""
        super().__init__()
        self.decoder = decoder
        self.register_buffer("codebook", codebook.detach(), persistent=False)

    def forward(self, codes: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        codes, lengths = codes.to(self.codebook.device), lengths.to(self.codebook.device)
        real = torch.arange(codes.shape[1], device=codes.device)[None] < lengths[:, None]
        vectors = self.vectors(codes)
        vectors = vectors * real[..., None].to(vectors.dtype)
        out: tuple[Tensor, Tensor] = self.decoder(vectors, lengths)
        return out

    def vectors(self, codes: Tensor, places: Tensor | None = None) -> Tensor:
        """codes (B, N), places (B, N), the row's by default -> what the decoder reads of them (B, N, d)."""
        vectors = F.embedding(codes, self.codebook)
        if self.decoder.config.code_table is None:
            return vectors
        if places is None:
            places = torch.arange(codes.shape[1], device=codes.device)[None]
        own = self.decoder.code_table(places * self.decoder.config.code_table[0] + codes)
        return torch.cat([vectors, own], dim=-1)

    def decode_kept(self, codes: Tensor, keep: Tensor, places: Tensor | None = None) -> Tensor:
        """Decode the codes (B, N) whose keep (B, N) is 1, in order -> prompt_embeds, differentiable in `keep`.

        places: each code's place in its picture (B, N), if that is not its place in the row; for a `code_table`.
        More than `max_tokens` kept codes are cut.
        """
        vectors, lengths = compact(self.vectors(codes, places) * keep[..., None], keep)
        limit = self.decoder.config.max_tokens
        prompt_embeds: Tensor = self.decoder(vectors[:, :limit], lengths.clamp(max=limit))[0]
        return prompt_embeds


def pad_codes(codes: list[Tensor], max_tokens: int) -> tuple[Tensor, Tensor]:
    """Pad each image's code ids (n,) or code vectors (n, d) -> (B, max_tokens[, d]), lengths (B,).

    Zeros stand behind.

    More than `max_tokens` are cut, as the published code does.
    """
    codes = [row[:max_tokens] for row in codes]
    lengths = torch.tensor([len(row) for row in codes], device=codes[0].device)
    padded = codes[0].new_zeros((len(codes), max_tokens, *codes[0].shape[1:]))
    for row, values in zip(padded, codes, strict=True):
        row[: len(values)] = values
    return padded, lengths
