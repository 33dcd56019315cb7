"""What the loop's steps share, and what they ask of training and serving, as protocols.

Protocols, so that tests can inject faults where the parts meet; the product has one implementation of each, `Dpo` and
`TritonServing` in backends.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine

from generator.feedback.reward_pairs import AnsweredTask, ClickModel
from generator.serving.api import InferenceError, InferenceUnavailable, ServedPigeon
from generator.storage.objects import Store
from generator.storage.postgres import plain_errors
from schemas.errors import ModelError, ServerUnavailable
from schemas.preferences import PreferencePair
from schemas.settings import Settings

Echo = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A finished training: where the adapter is, and figures for the registry."""

    adapter_dir: Path
    figures: dict[str, Any]


@dataclass(frozen=True)
class PairScores:
    """How an adapter ranks pairs that it was not trained on, against the champion as reference.

    Every field has one value per pair.
    """

    users: tuple[str, ...]
    margins: tuple[float, ...]
    """β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]."""
    kls: tuple[float, ...]
    """Σ_t KL(π ‖ π_ref) per answer, nats, over the next token along the logged answers."""
    chosen: tuple[float, ...]
    """(log π − log π_ref)(chosen), nats: below 0 where a preferred answer has become less likely."""

    @property
    def accuracy(self) -> float:
        """Share of pairs with a positive margin."""
        return fmean(margin > 0 for margin in self.margins)


class AdapterTrainer(Protocol):
    """Training of adapters from the champion's (None: the checkpoint's own) as the frozen reference."""

    def train(self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path) -> Trained:
        """Train by DPO, resuming what is in `out`."""

    def judge(self, adapter: Path, champion: Path | None, pairs: Sequence[PreferencePair]) -> PairScores:
        """Score pairs that `adapter` was not trained on; trains nothing."""

    def answer_logprobs(self, adapter: Path | None, tasks: Sequence[AnsweredTask]) -> list[npt.NDArray[np.float64]]:
        """log π (K,) of each task's K answers under an adapter."""


class Serving(Protocol):
    """Adapters in the inference server, side by side."""

    @property
    def model(self) -> ServedPigeon:
        """The served model."""

    def loaded(self) -> frozenset[int]:
        """Adapter numbers that are ready."""

    def check_base(self) -> None:
        """Refuse (ModelError) unless the server serves the checkpoint that the settings name."""

    def install(self, number: int, adapter: Path) -> None:
        """Load an adapter beside the others; loading the same one again is fine."""

    def probe(self, number: int) -> None:
        """Draw one small image with it."""

    def remove(self, number: int) -> None:
        """Take it out; one that is not there is fine."""


@dataclass(frozen=True)
class RetrainContext:
    """What the steps of a retraining or a rollout share."""

    settings: Settings
    engine: Engine
    store: Store
    serving: Serving
    trainer: AdapterTrainer
    base_sha256: str
    echo: Echo
    """Prints a line for the operator."""
    clicks: ClickModel | None = None
    """Ranks stored answers for pairs and for the off-policy value; a retraining fits one on its window when None."""

    @property
    def cache(self) -> Path:
        """Adapters that were fetched from the bucket."""
        return self.settings.state_dir / "cache" / "adapters"

    @property
    def work(self) -> Path:
        """Trainings under way; a killed one resumes from here."""
        return self.settings.state_dir / "retrain"


@contextmanager
def clear_errors(context: RetrainContext) -> Iterator[None]:
    """Turn what servers and drivers raise into errors with an exit code.

    Raises:
        ServerUnavailable: Postgres or Triton is away or too slow; the same command goes on later.
        ModelError: Triton serves the adapter, but it does not draw.
        InputError: the tables are missing.
    """
    try:
        with plain_errors(context.engine):
            yield
    except InferenceUnavailable as error:
        raise ServerUnavailable(f"Triton: {error}; run the same command again to go on") from error
    except InferenceError as error:
        raise ModelError(f"Triton: {error}") from error
