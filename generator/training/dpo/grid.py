"""DPO's β and rate by cross-validation over users.

The best is what predicts the preferences of users that were not trained on.

The grid lies around a configuration. A candidate's score is the mean over held-out pairs of -log σ(margin), the log-loss of what
DPO's reward predicts; ln 2 is what an untrained adapter has. Every training is a folder, and every score is written down when it
is known, so a killed search goes on where it was.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from generator.pigeon.placement import Placement
from generator.training.dpo.train import DpoConfig, measure_pairs, train_dpo
from schemas.hashing import unit_interval
from schemas.preferences import PreferencePair

log = logging.getLogger(__name__)
BETA_FACTORS = (1.0, 0.3, 3.0)
RATE_FACTORS = (1.0, 0.3)
FOLDS = 2


@dataclass(frozen=True)
class Candidate:
    """A configuration and its mean log-loss on pairs of users it was not trained on."""

    config: DpoConfig
    log_loss: float


def search(
    checkpoint_dir: Path,
    champion_adapter_dir: Path | None,
    pairs: Sequence[PreferencePair],
    out_dir: Path,
    config: DpoConfig,
    placement: Placement | None = None,
) -> list[Candidate]:
    """The candidates, the best first.

    Of equal ones the one that comes first in the grid, which begins with `config`.

    Fewer than two users in a fold give no candidates.

    Raises:
        InputError, ModelError, TrainingDiverged: as `train_dpo`.
    """
    folds = [[pair for pair in pairs if fold_of(pair.user_id) == fold] for fold in range(FOLDS)]
    if any(len({pair.user_id for pair in fold}) < 2 for fold in folds):
        return []
    found = []
    for beta, rate in product(BETA_FACTORS, RATE_FACTORS):
        tried = replace(config, beta=config.beta * beta, learning_rate=config.learning_rate * rate)
        losses: list[float] = []
        for number, judged in enumerate(folds):
            rest = [pair for pair in pairs if fold_of(pair.user_id) != number]
            folder = out_dir / f"{beta:g}-{rate:g}-{number}"
            losses += _losses(checkpoint_dir, champion_adapter_dir, rest, judged, folder, tried, placement)
        found.append(Candidate(tried, math.fsum(losses) / len(losses)))
        log.info("grid: beta=%g rate=%g log_loss=%.4f", tried.beta, tried.learning_rate, found[-1].log_loss)
    return sorted(found, key=lambda candidate: candidate.log_loss)


def fold_of(user_id: str) -> int:
    """The fold in which a user judges."""
    return int(FOLDS * unit_interval(f"fold:{user_id}"))


def _losses(
    checkpoint_dir: Path,
    champion: Path | None,
    trained: Sequence[PreferencePair],
    judged: Sequence[PreferencePair],
    folder: Path,
    config: DpoConfig,
    placement: Placement | None,
) -> list[float]:
    """-log σ(margin) of each judged pair."""
    kept = folder / "losses.json"
    if kept.exists():
        return [float(loss) for loss in json.loads(kept.read_text())]
    result = train_dpo(checkpoint_dir, champion, list(trained), folder, config, placement=placement)
    measured = measure_pairs(checkpoint_dir, result.adapter_dir, champion, list(judged), config.beta, placement)
    losses = [math.log1p(math.exp(-abs(margin))) + max(0.0, -margin) for margin in measured.margins]
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(losses))
    partial.replace(kept)
    return losses
