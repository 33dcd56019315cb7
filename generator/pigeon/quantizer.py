"""Codebook lookup: the nearest of K rows for a normalised vector, with an EMA-trained codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.layers import straight_through
from generator.pigeon.placement import in_float32


class VectorQuantizer(nn.Module):
    """The nearest codebook row of an L2-normalised vector (squared distance).

    The codebook is `embedding.weight` (K, d), no gradient reaches it. In training mode `forward` moves it by an
    exponential moving average of the vectors assigned to each row (normalised), and gives rows that nothing has used
    for long to random vectors of the batch. Call `.eval()` to freeze it.
    """

    usage: Tensor

    def __init__(self, codebook_size: int, code_dim: int, decay: float = 0.99, revive_below: float = 0.01) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.embedding.weight.requires_grad_(False)
        self.decay = decay
        self.revive_below = revive_below
        with torch.no_grad():
            self.embedding.weight.copy_(F.normalize(torch.randn(codebook_size, code_dim), dim=-1))
        # How often each row is used per batch, decayed; a training state, so it is not part of a checkpoint.
        self.register_buffer("usage", torch.ones(codebook_size), persistent=False)

    def nearest(self, vectors: Tensor) -> Tensor:
        """(..., d), not yet normalised -> row numbers (...), int64. Ties go to the lowest row."""
        vectors = F.normalize(vectors, dim=-1)
        codebook = self.embedding.weight
        # |v - e|^2 = |v|^2 - 2 v.e + |e|^2, and |v|^2 is the same for every row.
        with in_float32(vectors.device):
            return (codebook.square().sum(dim=-1) - 2 * vectors @ codebook.t()).argmin(dim=-1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """vectors (B, N, d) -> code vectors (B, N, d), ids (B, N) and the commitment loss ().

        Code vectors are straight-through to `vectors`; the loss is the mean squared distance of the vectors to their rows.
        In training mode the codebook follows the vectors.
        """
        normalised = F.normalize(vectors, dim=-1)
        ids = self.nearest(vectors)
        codes = self.embedding(ids)
        loss = (normalised - codes).square().sum(dim=-1).mean()
        if self.training:
            self._follow(normalised.detach().flatten(0, -2), ids.flatten())
        return straight_through(codes, normalised), ids, loss

    @torch.no_grad()
    def _follow(self, vectors: Tensor, ids: Tensor) -> None:
        """vectors (n, d) normalised, ids (n,): one EMA step of the codebook."""
        if not len(ids):
            return
        codebook = self.embedding.weight
        count = torch.zeros_like(self.usage).index_add_(0, ids, torch.ones_like(ids, dtype=self.usage.dtype))
        total = torch.zeros_like(codebook).index_add_(0, ids, vectors)
        used = count > 0
        mean = F.normalize(total[used] / count[used, None], dim=-1)
        codebook[used] = F.normalize(torch.lerp(codebook[used], mean, 1 - self.decay), dim=-1)
        self.usage.lerp_(count, 1 - self.decay)
        dead = (self.usage < self.revive_below).nonzero().flatten()
        if len(dead):
            chosen = torch.randint(len(vectors), (len(dead),)).to(vectors.device)  # the CPU's, as all random numbers
            codebook[dead] = vectors[chosen]
            self.usage[dead] = 1.0
