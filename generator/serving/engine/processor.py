"""vLLM's interface to our sampler: a logits processor that leaves the drawn id and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from generator.serving.engine.answers import UNTOUCHED, AnswerRows

ANSWER_KEY = "pigeon_answer"
"""Name in a request's `extra_args` of the key that its answer was opened with."""


def logits_processor(rows: AnswerRows) -> type[Any]:
    """A class for `LLM(logits_processors=[...])` whose one object, which vLLM makes, draws for `rows`.

    For an engine whose core runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0). Requests need temperature 0: then vLLM
    takes the likeliest id, which is the only one that is left.
    """
    from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality

    class OurSampler(LogitsProcessor):  # type: ignore[misc]  # vllm is not there when types are checked
        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
            pass  # nothing of vLLM's configuration counts: the rule is the checkpoint's

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any | None) -> None:
            if batch_update is None:
                return
            rows.update(
                batch_update.removed,
                (
                    (row, (params.extra_args or {}).get(ANSWER_KEY), output)
                    for row, params, _, output in batch_update.added
                ),
                ((first, second, kind is MoveDirectionality.SWAP) for first, second, kind in batch_update.moved),
            )

        def apply(self, logits: Tensor) -> Tensor:
            return leave_drawn(logits, rows.draw(logits.float().cpu().numpy()))

    return OurSampler


def leave_drawn(logits: Tensor, ids: np.ndarray[Any, np.dtype[np.int64]]) -> Tensor:
    """Change logits (B, V) in place: 0 at a row's id (B,), -inf elsewhere; UNTOUCHED rows stay."""
    drawn = torch.from_numpy(ids)
    rows = torch.nonzero(drawn != UNTOUCHED)[:, 0]
    places = (rows.to(logits.device), drawn[rows].to(logits.device))
    logits[places[0]] = -torch.inf
    logits[places] = 0.0
    return logits
