"""What the loop asks of training and serving, and the real ones.

Protocols, so that faults can be injected where the parts meet; the product uses `Dpo` and `TritonServing` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Engine

from generator.serving.api import InferenceError, InferenceUnavailable, ServedPigeon
from generator.storage.objects import Store
from generator.storage.postgres import plain_errors
from schemas.errors import ModelError, ServerUnavailable
from schemas.preferences import PreferencePair
from schemas.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A finished training: where the adapter is, and figures for the registry."""

    adapter_dir: Path
    figures: dict[str, Any]


@dataclass(frozen=True)
class PairScores:
    """How an adapter ranks pairs that it was not trained on, against the champion as reference."""

    accuracy: float
    """Share of pairs with a positive reward margin."""
    margin: float
    """Mean of β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]."""
    kl: float
    """Mean log π − log π_ref per answer, nats, as estimated by generator.training.dpo."""


class AdapterTrainer(Protocol):
    """DPO from the champion's adapter (None: the checkpoint's own) as the frozen reference."""

    def train(self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path) -> Trained:
        """Train, resuming what is in `out`."""

    def judge(self, adapter: Path, champion: Path | None, pairs: Sequence[PreferencePair]) -> PairScores:
        """Score pairs without training."""


class Serving(Protocol):
    """Adapters in the inference server, side by side."""

    @property
    def model(self) -> ServedPigeon:
        """The served model."""

    def loaded(self) -> frozenset[int]:
        """Adapter numbers that are ready."""

    def check_base(self) -> None:
        """Refuse (ModelError) unless the server serves the very checkpoint that the settings name."""

    def install(self, number: int, adapter: Path) -> None:
        """Load an adapter beside the others; loading the same one again is fine."""

    def probe(self, number: int) -> None:
        """Draw one small picture with it."""

    def remove(self, number: int) -> None:
        """Take it out; one that is not there is fine."""


@dataclass(frozen=True)
class RetrainContext:
    """All that the loop's steps share."""

    settings: Settings
    engine: Engine
    store: Store
    serving: Serving
    trainer: AdapterTrainer
    base_sha256: str
    say: Say

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
    """What servers and drivers raise, as errors with an exit code.

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
