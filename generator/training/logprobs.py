"""Log-probabilities of answers, from which pretraining, stage 1 and DPO make their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from generator.pigeon.personalizer import Personalizer
from generator.pigeon.prompt import IGNORED_LABEL


@dataclass(frozen=True)
class Answers:
    """Prompts with their answers, ready for LLaMA.

    A label is the token at its own place; it is predicted from the places before.
    """

    embeds: Tensor
    """Input embeddings (B, T, C)."""
    labels: Tensor
    """Token ids (B, T), IGNORED_LABEL where none is asked for."""
    attention: Tensor | None = None
    """(B, T) of 0/1 for rows that are padded in front; none for rows that are padded behind."""

    @property
    def asked(self) -> Tensor:
        """(B, T - 1) bool: places that predict a label."""
        return self.labels[:, 1:] != IGNORED_LABEL

    @property
    def targets(self) -> Tensor:
        """(n,): the labels, row by row."""
        return self.labels[:, 1:][self.asked]


def label_distributions(personalizer: Personalizer, answers: Answers) -> Tensor:
    """Log-probabilities (n, V) of the whole vocabulary at every label, row by row, in float32.

    Nothing is computed for the other places: the vocabulary's matrix is a third of the cost.
    """
    attention = None if answers.attention is None else answers.attention.to(answers.embeds.device)
    positions = None if attention is None else (attention.cumsum(dim=1) - 1).clamp(min=0)
    base: Any = personalizer.llama.get_base_model()
    hidden = base.model(
        inputs_embeds=answers.embeds, attention_mask=attention, position_ids=positions, use_cache=False
    ).last_hidden_state
    logits: Tensor = base.lm_head(hidden[:, :-1][answers.asked.to(hidden.device)])
    return logits.float().log_softmax(dim=-1)


def of_labels(distributions: Tensor, answers: Answers) -> Tensor:
    """`label_distributions` (n, V) -> the log-probability of each label (n,)."""
    return -F.nll_loss(distributions, answers.targets.to(distributions.device), reduction="none")


def label_logprobs(personalizer: Personalizer, answers: Answers) -> Tensor:
    """Log-probability of each label (n,), row by row."""
    return of_labels(label_distributions(personalizer, answers), answers)


def sum_by_row(values: Tensor, answers: Answers) -> Tensor:
    """A number per label (n,) -> its sum over each row's labels (B,)."""
    rows = answers.asked.nonzero()[:, 0].to(values.device)
    return values.new_zeros(len(answers.labels)).index_add(0, rows, values)


def answer_logprobs(personalizer: Personalizer, answers: Answers) -> Tensor:
    """Log-probability of each row's answer (B,), its end token included."""
    return sum_by_row(label_logprobs(personalizer, answers), answers)
