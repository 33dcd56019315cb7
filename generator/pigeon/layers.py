"""The few layers that several networks share, under the published weight names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POLICY_EPS = 1e-6
HIDDEN = -3e4
"""Bias of a position that attention must not see. Finite, because a padded row sees nothing and a softmax over
-inf is NaN; within float16's range; its exp is 0 in float32."""


def policy_attention(query: Tensor, key: Tensor, value: Tensor, policy: Tensor) -> Tensor:
    """Attention that a 0/1 policy switches per key, differentiable in the policy.

    LaVIT; PIGEON.md section 1.3.

    query, key, value (B, H, N, D), policy broadcastable to (B, H, N, N) -> (B, H, N, D).
    A row whose keys are all switched off attends uniformly. That, and the row's maximum being taken over the switched-off
    keys too, is why this one attention is no `scaled_dot_product_attention`: no mask gives the same numbers.
    """
    scores = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).float()  # eps / N is 0 in float16
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp() * policy
    total = weights.sum(dim=-1, keepdim=True)
    weights = (weights + POLICY_EPS / key.shape[-2]) / (total + POLICY_EPS)
    out: Tensor = weights.to(value.dtype) @ value
    return out


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, H, N, C/H)."""
    batch, count, width = x.shape
    return x.reshape(batch, count, heads, width // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B, N, H*D)."""
    return x.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """(B, N, C) -> (B, N, C), hidden width int(C * ratio), GELU."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = int(width * ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class SelfAttention(nn.Module):
    """(B, N, C) -> (B, N, C). With a policy, the policy attention; without, the plain one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        mixed = (
            F.scaled_dot_product_attention(query, key, value)
            if policy is None
            else policy_attention(query, key, value, policy)
        )
        out: Tensor = self.proj(join_heads(mixed))
        return out


class CrossAttention(nn.Module):
    """x (B, N, C), memory (B, M, C) -> (B, N, C).

    Give a policy or an additive bias, each (B, 1, N or 1, M).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, *, policy: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        query = split_heads(self.query(x), self.heads)
        key = split_heads(self.key(memory), self.heads)
        value = split_heads(self.value(memory), self.heads)
        if policy is None:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        else:
            mixed = policy_attention(query, key, value, policy)
        out: Tensor = self.proj(join_heads(mixed))
        return out


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """`hard` forward, the gradient of `soft` backward (same shape)."""
    return hard.detach() + (soft - soft.detach())


def gumbel_noise(shape: torch.Size | tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard Gumbel noise of the given shape.

    Drawn on the CPU, so that a seed means the same on every device.
    """
    uniform = torch.rand(shape, generator=generator, dtype=torch.float32).clamp_(1e-9, 1 - 1e-7)
    return -torch.log(-torch.log(uniform)).to(device=like.device, dtype=like.dtype)


def compact(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the kept entries of each row to its front, in order; the padding behind is zero.

    values (B, P, d) or (B, P), keep (B, P) bool or 0/1 -> same shape as values, and lengths (B,) int64.
    Differentiable in `values`; no shape depends on the data.
    """
    kept = keep.detach() > 0.5
    order = torch.argsort(kept.to(torch.int8), dim=1, descending=True, stable=True)  # (B, P)
    lengths = kept.sum(dim=1)
    inside = torch.arange(kept.shape[1], device=kept.device)[None] < lengths[:, None]
    if values.dim() == 3:
        moved = values.gather(1, order[..., None].expand_as(values))
        return moved * inside[..., None].to(values.dtype), lengths
    return values.gather(1, order) * inside.to(values.dtype), lengths
