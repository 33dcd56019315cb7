"""One training loop for every stage: exact resume, a last good checkpoint, a loss curve.

A step's data and noise are drawn from generators seeded with (seed, step) alone, so a run that is stopped and resumed
follows the same trajectory as one that was not.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map

from generator.pigeon.placement import Placement
from generator.training.processes import ProcessGroup
from schemas.errors import InputError, ModelError, PigeonError
from schemas.faultpoints import reach
from schemas.runtime.stop_signals import stop_signals

log = logging.getLogger(__name__)

Part = tuple[torch.Tensor, dict[str, float]]
LossFunction = Callable[[int, np.random.Generator], Part | Iterator[Part]]
"""Function of (step, generator) that gives the step's loss and figures to log, or an iterator of parts that add up to them. A part is
backpropagated before the next one is asked for, so parts cost time and not memory. Each process of a group gives its own."""


class TrainingDiverged(PigeonError):
    """The loss or a gradient stopped being a number.

    The last good checkpoint is still in the stage's folder.
    """


@dataclass(frozen=True)
class TrainerConfig:
    """How long and how fast is trained.

    The learning rate is constant between a linear warm-up and a linear cool-down to a hundredth.
    """

    steps: int
    lr: float = 1e-3
    warmup_steps: int = 100
    cooldown_share: float = 0.3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    save_every_seconds: float = 120.0
    log_every_seconds: float = 20.0
    budget_seconds: float | None = None
    """Wall-clock limit in seconds over all resumed runs: the cool-down then ends here, and a resume is exact only up to timing."""


class Trainer:
    """Training of `module` on `loss` inside `folder`.

    Under `accelerate launch` the first process alone writes there.

    The folder holds `state.pt` (weights, their averages, optimizer, step), `loss.csv` and `loss.svg`.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction,
        folder: Path,
        config: TrainerConfig,
        placement: Placement | None = None,
        base: str | None = None,
    ) -> None:
        """`module` is where it is to be trained.

        placement: what the loss is computed in (default: float32). base: hash of the frozen weights; they are then not part of
        the state, which is that of the other weights and fits this base alone. Without it the state holds all of the module.
        """
        self.module, self.loss, self.folder, self.config = module, loss, folder, config
        self.placement, self.base = placement or Placement(), base
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim > 1]
        plain = [p for p in self.parameters if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.lr,
            betas=config.betas,
            foreach=True,
        )
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.group = ProcessGroup.join(self.placement.device().type)
        self._figures: dict[str, list[float]] = {}  # since the last line

    def run(
        self, on_step: Callable[[dict[str, float]], None] | None = None, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Train until `steps` or the budget is reached; resumes from the folder's state when there is one.

        on_step: called after each step with its loss, grad_norm and figures. SIGTERM saves and exits (main thread only).
        enough: asked before each step; ends the training when true. It has to follow from the state alone, so that a resumed
            run, and each process of a group, ends at the same step.

        Raises:
            InputError: the disk has no room for the state (looked at first), or ran full; the last good one is kept.
            ModelError: the folder's state is of another base.
            TrainingDiverged: a NaN or infinity appeared; nothing was saved after it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.check_room()
        self.resume()
        self.group.wait()
        if self.group.rank == 0:
            (self.folder / "trainer.json").write_text(json.dumps(self.config.__dict__, indent=1))
        self.module.train()
        saved = logged = last = time.monotonic()
        stopped = threading.Event()
        stop = False
        with stop_signals(lambda _: stopped.set(), numbers=(signal.SIGTERM,)):
            while self.progress() < 1.0 and not stop and not enough():
                figures = self._one_step()
                reach("step done")
                if on_step is not None:
                    on_step(figures)
                now = time.monotonic()
                self.seconds += now - last
                last = now
                stop, self.seconds = self.group.agree(stopped.is_set(), self.seconds)
                if now - logged >= self.config.log_every_seconds:
                    self._log_line()
                    logged = now
                if now - saved >= self.config.save_every_seconds:
                    self.save()
                    saved = now
        self._log_line()
        self.save()
        self.group.wait()
        if stop:
            raise SystemExit(143)

    def progress(self) -> float:
        by_steps = self.step / self.config.steps
        budget = self.config.budget_seconds
        return by_steps if budget is None else max(by_steps, self.seconds / budget)

    def learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / max(1, self.config.warmup_steps))
        left = (1.0 - self.progress()) / max(1e-9, self.config.cooldown_share)
        return self.config.lr * warm * max(0.01, min(1.0, left))

    def _one_step(self) -> dict[str, float]:
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        torch.manual_seed((config.seed << 32) + self.step)
        self.optimizer.zero_grad(set_to_none=True)
        figures: dict[str, float] = {"loss": 0.0}
        for loss, more in self._parts(np.random.default_rng([config.seed, self.step])):
            loss.backward()  # type: ignore[no-untyped-call]
            for name, figure in {"loss": float(loss.detach()), **more}.items():
                figures[name] = figures.get(name, 0.0) + figure
        self.group.sum_gradients(self.parameters)
        figures = self.group.sum_figures(figures)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, config.clip_norm))
        value = figures["loss"]
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise TrainingDiverged(
                f"step {self.step}: loss {value}, gradient norm {norm}; the last good checkpoint is {self.folder}/state.pt: "
                "lower lr and run the stage again"
            )
        self.optimizer.step()
        self.step += 1
        # Early on the average must not remember the random start.
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.parameters], 1.0 - decay)
        figures = {"loss": value, "grad_norm": norm, **figures}
        for name, figure in figures.items():
            self._figures.setdefault(name, []).append(figure)
        return figures

    def _parts(self, rng: np.random.Generator) -> Iterator[Part]:
        """The step's parts, each computed under the placement's autocast.

        Their backward passes are outside of it.
        """
        with self.placement.autocast():
            parts = self.loss(self.step, rng)
        if isinstance(parts, tuple):
            yield parts
            return
        while True:
            with self.placement.autocast():
                part = next(parts, None)
            if part is None:
                return
            yield part

    def _log_line(self) -> None:
        if not self._figures:
            return
        row = {"step": float(self.step), "seconds": round(self.seconds, 1), "lr": self.learning_rate()}
        row |= {name: statistics.fmean(found) for name, found in self._figures.items()}  # of the steps that had it
        self._figures = {}
        if self.group.rank:
            return
        append_row(self.folder / "loss.csv", row)
        log.info("%s %s", self.folder.name, " ".join(f"{name}={value:.5g}" for name, value in row.items()))

    def check_room(self) -> None:
        """Refuse to start without room for one more state beside the old one.

        Raises:
            InputError: the disk cannot hold it: weights, EMA and AdamW's two moments.
        """
        tensors = [*_learned(self.module, self.base).values(), *self.ema * 3]
        needed = sum(value.numel() * value.element_size() for value in tensors if isinstance(value, torch.Tensor))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise InputError(
                f"{self.folder}: {free / 1e6:.0f} MB are free, the state of this training needs {needed / 1e6:.0f} MB; "
                "free some space or give another folder"
            )

    def save(self) -> None:
        """Write the state and the plot.

        Raises:
            InputError: they cannot be written; the last good state is still there.
        """
        if self.group.rank:
            return
        state = {
            "module": _on_cpu(_learned(self.module, self.base)),
            "ema": _on_cpu(self.ema),
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "base": self.base,
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = self.folder / "state.pt.tmp"
        try:
            torch.save(state, partial)
            reach("state written")
            partial.replace(self.folder / "state.pt")
            reach("state saved")
            plot_losses(self.folder)
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter when the disk is full
            partial.unlink(missing_ok=True)
            raise InputError(
                f"{self.folder}: step {self.step} cannot be saved ({str(error).splitlines()[0]}); the last good state is "
                "kept: free some space and run it again"
            ) from error

    def resume(self) -> bool:
        """Continue from the folder's last saved state, if any; True when there was one.

        Raises:
            ModelError: it is of another base, or of another module.
        """
        path = self.folder / "state.pt"
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        _fit(self.module, state, path, self.base)
        self.optimizer.load_state_dict(state["optimizer"])
        for average, saved in zip(self.ema, state["ema"], strict=True):
            average.copy_(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("%s: resumed at step %d after %.0f s", self.folder.name, self.step, self.seconds)
        return True


def load_averaged(module: nn.Module, folder: Path, base: str | None = None) -> int:
    """Load a stage's EMA weights into `module` (built as in the stage); returns the step they are from.

    base: hash of the frozen weights that `module` has, which must be the stage's.

    Raises:
        ModelError: the stage has not been trained, or on another base.
    """
    path = folder / "state.pt"
    if not path.exists():
        raise ModelError(f"{path} is missing: train that stage first (pigeon train stage {folder.name})")
    state = torch.load(path, map_location="cpu", weights_only=True)
    _fit(module, state, path, base)
    trained = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter, average in zip(trained, state["ema"], strict=True):
            parameter.copy_(average)
    return int(state["step"])


def _learned(module: nn.Module, base: str | None) -> dict[str, Any]:
    """What a state keeps of a module: all, or with a base all but the weights that do not learn."""
    state: dict[str, Any] = module.state_dict()
    if base is None:
        return state
    frozen = {name for name, p in module.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def _fit(module: nn.Module, state: Mapping[str, Any], path: Path, base: str | None) -> None:
    """Load a state's weights into a module that has the state's base.

    Raises:
        ModelError: it has another one.
    """
    known = state.get("base")
    if known is None:  # all of the module
        module.load_state_dict(state["module"])
        return
    if base is not None and base != known:
        raise ModelError(
            f"{path}: was trained on other frozen weights (base {known[:12]}, here {base[:12]}): give the checkpoint and the "
            "precision that it was trained with, or another folder"
        )
    missing = set(_learned(module, known)) - set(state["module"])
    if missing:
        raise ModelError(f"{path}: {min(missing)} is missing; is this state of this checkpoint?")
    module.load_state_dict(state["module"], strict=False)


def _on_cpu(value: Any) -> Any:
    """The same with its tensors on the CPU, so that a state is read where there is no such device."""
    return tree_map(lambda part: part.cpu() if isinstance(part, torch.Tensor) else part, value)


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append to a CSV; a figure that earlier rows lack becomes a new column, empty in them."""
    earlier: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            earlier = list(csv.DictReader(file))
    columns = list(dict.fromkeys([*(earlier[0] if earlier else ()), *row]))
    if earlier and columns == list(earlier[0]):
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
        return
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(earlier)
        writer.writerow(row)


def plot_losses(folder: Path) -> None:
    """Draw the folder's loss.csv as loss.svg."""
    path = folder / "loss.csv"
    if not path.exists():
        return
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4))
    axes = figure.subplots()
    axes.plot([float(r["step"]) for r in rows], [float(r["loss"]) for r in rows], linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_title(folder.name)
    axes.grid(alpha=0.3)
    figure.savefig(folder / "loss.svg")
