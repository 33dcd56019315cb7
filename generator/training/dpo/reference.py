"""The frozen reference of DPO: the champion's log-probabilities, computed once on the one base.

A second copy of the base is never loaded: the reference is the model before the first step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from generator.pigeon.model import PigeonModel
from generator.training.dpo.prompts import prepare
from generator.training.logprobs import answer_logprobs
from schemas.preferences import PreferencePair

SCORE_BATCH = 16


def in_parts(pairs: Sequence[PreferencePair]) -> Iterator[Sequence[PreferencePair]]:
    """The pairs, `SCORE_BATCH` at a time."""
    for start in range(0, len(pairs), SCORE_BATCH):
        yield pairs[start : start + SCORE_BATCH]


def pair_logprobs(model: PigeonModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """Log-probabilities (2, B) of the chosen and the rejected answers under the model's adapter."""
    return answer_logprobs(model.personalizer, prepare(model, pairs)).view(2, -1)


@torch.no_grad()
def reference_logprobs(model: PigeonModel, pairs: Sequence[PreferencePair]) -> Tensor:
    """`pair_logprobs` of all pairs (2, pairs), a few at a time, without gradients."""
    return torch.cat([pair_logprobs(model, part) for part in in_parts(pairs)], dim=1)


def kept_reference(
    path: Path, weights: str, pairs: Sequence[PreferencePair], compute: Callable[[], Tensor], *, write: bool
) -> Tensor:
    """The reference's log-probabilities (2, pairs) as `path` has them, else computed.

    weights: hash of the model; of other weights or pairs nothing is taken over. write: whether to keep what was computed.
    """
    key = {"weights": weights, "pairs": pairs_hash(pairs)}
    if path.exists():
        kept = json.loads(path.read_text())
        if kept["key"] == key:
            return torch.tensor(kept["logprobs"])
    found = compute().cpu()
    if write:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"key": key, "logprobs": found.tolist()}))
        partial.replace(path)
    return found


def pairs_hash(pairs: Sequence[PreferencePair]) -> str:
    """SHA-256 of all that the pairs hold, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.model_dump_json().encode())
    return digest.hexdigest()
