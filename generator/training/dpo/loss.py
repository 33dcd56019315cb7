"""The loss of direct preference optimization, as a pure function."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DpoLoss:
    """A batch's losses and rewards, all (B,)."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> DpoLoss:
    """Equation 7 of Rafailov et al. 2023, labels smoothed; all arguments and results (B,).

    -(1 − ε) log σ(z) − ε log σ(−z) with z = β[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]: the cross-entropy when a
    preference is wrong with probability ε, the label smoothing. Its minimum is at a finite z, log((1 − ε) / ε).
    """
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    z = chosen - rejected
    losses = -(1 - label_smoothing) * F.logsigmoid(z) - label_smoothing * F.logsigmoid(-z)
    return DpoLoss(losses, chosen.detach(), rejected.detach())
