"""The loop's real parts: DPO by generator.training, adapters in Triton by generator.serving, both imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from generator.feedback.parts import Judged, Loop, Say, Trained
from generator.nightly.database import connect
from generator.nightly.store import Store
from generator.serving.repository import checkpoint_folder, combined_hash, tree_hashes
from schemas.errors import InputError
from schemas.preferences import PreferencePair
from schemas.settings import RetrainSettings, Settings

if TYPE_CHECKING:
    from generator.serving.client import TritonPigeon


def open_loop(settings: Settings, say: Say) -> Loop:
    """The loop on the servers that the settings name; nothing is contacted yet.

    Raises:
        ModelError: the checkpoint is missing.
    """
    checkpoint = checkpoint_folder(settings)
    return Loop(
        settings=settings,
        engine=connect(settings.database),
        store=Store(settings.s3),
        serving=TritonServing(settings),
        trainer=Dpo(checkpoint, settings.retrain, say),
        base_sha256=combined_hash(tree_hashes(checkpoint)),
        say=say,
    )


class Dpo:
    """`Trainer` by generator.training.dpo."""

    def __init__(self, checkpoint: Path, settings: RetrainSettings, say: Say) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._say = say

    def train(self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path) -> Trained:
        """DPO with the settings' β, rate, batch, epochs and seed; a line per report of the trainer."""
        from generator.training.dpo import DpoConfig, train_dpo

        s = self._settings
        config = DpoConfig(
            beta=s.beta, learning_rate=s.learning_rate, batch_size=s.batch_size, epochs=s.epochs, seed=s.seed
        )
        result = train_dpo(self._checkpoint, champion, list(pairs), out, config)
        self._say(f"DPO: loss {result.losses[0]:.4f} -> {result.losses[-1]:.4f} in {len(result.losses)} steps")
        figures = {"first_loss": result.losses[0], "last_loss": result.losses[-1], "steps": len(result.losses)}
        return Trained(result.adapter_dir, figures)

    def judge(self, adapter: Path, champion: Path | None, pairs: Sequence[PreferencePair]) -> Judged:
        """Reward margins of pairs that were not trained on."""
        from generator.training.dpo import score_pairs

        scores = score_pairs(self._checkpoint, adapter, champion, list(pairs))
        return Judged(scores.accuracy, scores.margin, scores.kl)


class TritonServing:
    """`Serving` by generator.serving."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def model(self) -> TritonPigeon:
        """The client; made at first use, so that listing versions needs no Triton."""
        from generator.serving.client import TritonPigeon

        return TritonPigeon(self._settings)

    def loaded(self) -> frozenset[int]:
        """Adapter numbers that are ready."""
        return frozenset(self.model.loaded_versions("personalizer"))

    def install(self, number: int, adapter: Path) -> None:
        """Put the adapter into the repository and load it; the registry gives out the numbers, so another's file gives way."""
        from generator.serving.adapters import install_adapter, remove_adapter

        try:
            install_adapter(self._settings, number, adapter)
        except InputError:  # left over from a registry that is gone
            remove_adapter(self._settings, number)
            install_adapter(self._settings, number, adapter)

    def probe(self, number: int) -> None:
        """Draw one small picture with it."""
        from generator.serving.adapters import probe

        probe(self._settings, number)

    def remove(self, number: int) -> None:
        """Take it out of the repository."""
        from generator.serving.adapters import remove_adapter

        remove_adapter(self._settings, number)
