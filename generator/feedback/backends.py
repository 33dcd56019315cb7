"""The ports on the product's own parts: DPO by generator.training, adapters in Triton by serving.

Both are imported when they are needed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from generator.feedback.ports import Echo, PairScores, RetrainContext, Trained
from generator.feedback.reward_pairs import AnsweredTask
from generator.serving.repository import (
    MANIFEST,
    check_repository,
    checkpoint_folder,
    combined_hash,
    repository_folder,
    tree_hashes,
)
from generator.storage.objects import Store
from generator.storage.postgres import connect
from schemas.errors import InputError, ModelError, ServerUnavailable
from schemas.preferences import PreferencePair
from schemas.settings import Settings
from schemas.settings_compute import ComputeSettings
from schemas.settings_retrain import RetrainSettings

if TYPE_CHECKING:
    from generator.pigeon.placement import Placement
    from generator.serving.client import TritonPigeon
    from generator.training.dpo.train import DpoConfig


SECONDS_BETWEEN_LINES = 10.0


def open_context(settings: Settings, echo: Echo) -> RetrainContext:
    """The steps' context on the servers that the settings name; nothing is contacted yet.

    Raises:
        ModelError: the checkpoint is missing.
    """
    checkpoint = checkpoint_folder(settings)
    return RetrainContext(
        settings=settings,
        engine=connect(settings.database),
        store=Store(settings.s3),
        serving=TritonServing(settings),
        trainer=Dpo(checkpoint, settings.retrain, echo, settings.compute),
        base_sha256=combined_hash(tree_hashes(checkpoint)),
        echo=echo,
    )


class Dpo:
    """`AdapterTrainer` by generator.training.dpo."""

    def __init__(
        self, checkpoint: Path, settings: RetrainSettings, echo: Echo, compute: ComputeSettings | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._settings = settings
        self._echo = echo
        self._compute = compute or ComputeSettings()

    @cached_property
    def _placement(self) -> Placement:
        """Raises InputError when the machine lacks the settings' device or precision."""
        from generator.pigeon.placement import Placement

        return Placement.of(self._compute.device, self._compute.precision)

    def train(self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path) -> Trained:
        """DPO with the settings' β, rate, batch, epochs and seed; progress on stderr.

        Raises:
            InputError: no such device, or a precision that it lacks.
            ModelError: the loss stopped being a number, or checkpoint and adapter do not fit.
        """
        from generator.training.dpo.train import train_dpo
        from generator.training.trainer import TrainingDiverged

        try:
            config, searched = self._config(champion, pairs, out)
            with training_progress() as progress:
                result = train_dpo(self._checkpoint, champion, list(pairs), out, config, progress, self._placement)
        except TrainingDiverged as error:
            raise ModelError(f"DPO diverged: {error}") from error
        steps, last = len(result.losses), max(1, len(result.losses) // config.epochs)
        figures = {
            "pairs": len(pairs),
            "beta": config.beta,
            "learning_rate": config.learning_rate,
            "steps": steps,
            "first_loss": result.losses[0],
            "last_epoch_loss": fmean(result.losses[-last:]),
            "last_epoch_accuracy": fmean(result.accuracies[-last:]),
            "last_epoch_margin": fmean(result.margins[-last:]),
            "last_epoch_chosen": fmean(result.chosen[-last:]),
            "chosen_length": result.length,
            "kl": result.kl,
            "displaced": result.displaced,
            "grid": searched,
        }
        self._echo(
            f"DPO: {len(pairs)} pairs x {config.epochs} epochs, {steps} steps: loss {figures['first_loss']:.4f} -> "
            f"{figures['last_epoch_loss']:.4f} (last epoch), {figures['last_epoch_accuracy']:.0%} ranked as preferred, "
            f"log π(chosen) {figures['last_epoch_chosen']:+.3f} nats, KL {result.kl:.3f} nats"
        )
        if result.displaced:
            self._echo(
                "DPO stopped early: log π of the chosen answers had fallen by more than retrain.max_displacement"
            )
        return Trained(result.adapter_dir, figures)

    def _config(
        self, champion: Path | None, pairs: Sequence[PreferencePair], out: Path
    ) -> tuple[DpoConfig, list[dict[str, float]]]:
        """The training's configuration, and what a search over the grid around it found, if there was one."""
        from generator.training.dpo.train import DpoConfig

        s = self._settings
        config = DpoConfig(
            beta=s.beta,
            learning_rate=s.learning_rate,
            batch_size=s.batch_size,
            epochs=s.epochs,
            seed=s.seed,
            label_smoothing=s.label_smoothing,
            max_displacement=s.max_displacement,
            part_size=self._compute.part_rows,
            checkpointing=self._compute.checkpointing,
        )
        if not s.cross_validate:
            return config, []
        from generator.training.dpo.grid import search

        found = search(self._checkpoint, champion, pairs, out / "grid", config, self._placement)
        if not found:
            self._echo("cross-validation: too few users for two folds; the settings' β and rate are used")
            return config, []
        best = found[0]
        self._echo(
            f"cross-validation: β {best.config.beta:g}, rate {best.config.learning_rate:g}, "
            f"log-loss {best.log_loss:.4f} on users not trained on (untrained: 0.6931)"
        )
        return best.config, [
            {"beta": one.config.beta, "learning_rate": one.config.learning_rate, "log_loss": one.log_loss}
            for one in found
        ]

    def judge(self, adapter: Path, champion: Path | None, pairs: Sequence[PreferencePair]) -> PairScores:
        """Score pairs that were not trained on, against the champion as reference."""
        from generator.training.dpo.train import measure_pairs

        found = measure_pairs(self._checkpoint, adapter, champion, list(pairs), self._settings.beta, self._placement)
        users = tuple(pair.user_id for pair in pairs)
        return PairScores(users, tuple(found.margins), tuple(found.kls), tuple(found.chosen))

    def answer_logprobs(self, adapter: Path | None, tasks: Sequence[AnsweredTask]) -> list[npt.NDArray[np.float64]]:
        """log π (K,) of each task's K answers under an adapter."""
        from generator.training.dpo.train import score_answers

        rows = [
            (task.prompt, task.seed, min(1.0, answer.alpha), answer.codes) for task in tasks for answer in task.answers
        ]
        scores = np.array(score_answers(self._checkpoint, adapter, rows, self._placement), dtype=np.float64)
        ends = np.cumsum([len(task.answers) for task in tasks])
        return np.split(scores, ends[:-1])


@contextmanager
def training_progress() -> Iterator[Callable[[int, int, float], None]]:
    """A bar on a terminal, elsewhere a line now and then; takes (steps done, steps in all, loss)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("DPO")
            yield lambda done, total, loss: bar.update(
                task, completed=done, total=total, description=f"DPO, loss {loss:.4f}"
            )
        return
    printed_at = time.monotonic()

    def line(done: int, total: int, loss: float) -> None:
        nonlocal printed_at
        if time.monotonic() - printed_at >= SECONDS_BETWEEN_LINES:
            printed_at = time.monotonic()
            print(f"DPO: {done} of {total} steps, loss {loss:.4f}", file=sys.stderr, flush=True)  # noqa: T201

    yield line


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
        """Adapter numbers that are ready on every server in use; where none can be loaded from here, on any."""
        here = (repository_folder(self._settings) / MANIFEST).is_file()
        return frozenset(self.model.loaded_versions("personalizer", anywhere=not here))

    def check_base(self) -> None:
        """Refuse unless repository and server have the checkpoint of the settings.

        Raises:
            ModelError: the repository or the server has another one.
        """
        settings = self._settings
        checkpoint = checkpoint_folder(settings)
        manifest = check_repository(repository_folder(settings), settings.models.preset, checkpoint)
        self.model.check_served(manifest)

    def install(self, number: int, adapter: Path) -> None:
        """Put the adapter into the repository and load it, in place of another one with its number.

        Numbers are the registry's: another adapter there belongs to a registry that is gone.
        """
        from generator.serving.adapters import install_adapter, remove_adapter

        try:
            install_adapter(self._settings, number, adapter)
        except InputError:  # left over from a registry that is gone
            remove_adapter(self._settings, number)
            self._gone(number)
            install_adapter(self._settings, number, adapter)

    def _gone(self, number: int) -> None:
        """Wait until a removed adapter has stopped serving: Triton unloads behind our back."""
        deadline = time.monotonic() + self._settings.triton.start_timeout_seconds
        while number in self.model.loaded_versions("personalizer", anywhere=True):
            if time.monotonic() > deadline:
                raise ServerUnavailable(f"Triton at {self._settings.triton.url}: still serves removed adapter {number}")
            time.sleep(0.2)

    def probe(self, number: int) -> None:
        """Draw one small image with it."""
        from generator.serving.adapters import probe

        probe(self._settings, number)

    def remove(self, number: int) -> None:
        """Take it out of the repository."""
        from generator.serving.adapters import remove_adapter

        remove_adapter(self._settings, number)
