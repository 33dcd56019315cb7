"""Stage 1 of any checkpoint on a data set, with validation and early stop.

Masked preference reconstruction, PIGEON.md section 5.
What is learned (LoRA, mask generator, reference adapter) is an adapter's folder, as `pigeon models` takes it.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from generator.pigeon.checkpoint import load_adapter, load_model, save_adapter
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import TrainingBatch
from generator.pigeon.placement import Placement
from generator.pigeon.prompt import assemble, mask_inputs, prompt_text_ids
from generator.training.catalog.dataset.codes import ImageCodes, image_codes
from generator.training.catalog.dataset.manifest import TRAINING, Split, check_fits
from generator.training.catalog.dataset.pictures import Progress
from generator.training.catalog.dataset.reader import Dataset, WindowIndex
from generator.training.reconstruction import base_hash, mask_draws, masked_logprobs, reconstruction_loss
from generator.training.trainer import Trainer, TrainerConfig, append_row
from schemas.errors import InputError

VALIDATION = "validation.csv"
ADAPTER = "adapter"
VALIDATION_SEED = 1
VALIDATION_ROWS = 32
"""Windows that are validated at once."""


@dataclass(frozen=True)
class AlignConfig:
    """Settings of a training; the defaults are for `nano` (the paper's: lr 1e-5, batch 16).

    `part_rows`: at most so many windows at once (gradient accumulation); it changes memory and not the result.
    """

    steps: int = 2_000
    batch_size: int = 16
    learning_rate: float = 4e-4
    warmup_steps: int = 20
    seed: int = 0
    part_rows: int | None = None
    validate_every: int = 200
    validation_windows: int = 512
    """Windows that are validated, the first of the split in a random order; all where there are fewer."""
    patience: int = 5
    """Validations without a better one after which training stops."""
    checkpointing: bool = False
    """Whether activations are computed again in the backward pass (gradient checkpointing)."""
    shuffle: bool = True
    """Whether each epoch has an order of its own; else the windows come as the data set has them."""


@dataclass(frozen=True)
class Aligned:
    """A finished training."""

    adapter: Path
    steps: int
    first: float
    """Validation loss before the first step, nats per code."""
    best: float
    """Lowest validation loss, the result's."""
    best_step: int
    stopped: bool
    """Whether it ended before its last step, for want of progress."""


class WindowBatches:
    """A split's windows as training batches: prompts with answers, and the mask generator's rows."""

    def __init__(self, dataset: Dataset, split: Split, model: PigeonModel, codes: ImageCodes, cache: Path) -> None:
        self._dataset, self._model, self._codes = dataset, model, codes
        self.index = WindowIndex(dataset, split, cache)
        self._apart = self.index.image_hashes
        self._texts: dict[str, list[int]] = {}
        self._drawn: tuple[tuple[int, int], npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, rows: Sequence[int]) -> TrainingBatch:
        """The windows with these numbers, whole; masks are drawn later."""
        config, items = self._model.config, self._dataset.items
        ids = config.ids
        texts, images, histories, references, answers = [], [], [], [], []
        for row in rows:
            *past, reference, apart = self.index.rows[row].tolist()
            titles = [items[number].title for number in past]
            item = items[reference]
            texts.append(prompt_text_ids(config.wording, titles, item.title, item.description, self._encode, ids))
            codes = [self._codes[items[number].image] for number in past]
            images.append([ids.image(one) for one in codes])
            histories.append(codes)
            references.append(self._codes[item.image])
            answers.append(ids.image(self.target(row, reference, apart)))
        room = config.language.max_positions
        try:
            prompt = assemble(texts, images, ids, answers=answers, max_tokens=room)
        except ValueError as error:
            raise InputError(
                f"data set {self._dataset.manifest.dataset_id[:12]}: windows {list(rows)}: {error}"
            ) from error
        return TrainingBatch.from_arrays(prompt, mask_inputs(histories, references, ids))

    def target(self, row: int, reference: int, apart: int) -> list[int]:
        """Codes that are to be rebuilt: given ones, those of a picture given apart, or the reference's own."""
        given = self.index.target(row)
        if given is not None:
            return given
        return self._codes[self._apart[apart] if apart >= 0 else self._dataset.items[reference].image]

    def _encode(self, text: str) -> list[int]:
        """Text ids; remembered, because the same sentences and titles come again and again."""
        if text not in self._texts:
            self._texts[text] = self._model.encode_text(text)
        return self._texts[text]

    def order(self, step: int, count: int, seed: int, shuffle: bool) -> list[int]:
        """Numbers of a step's windows: each once an epoch, in an order drawn per epoch from the seed."""
        start, total = step * count, len(self)
        out: list[int] = []
        for place in range(start, start + count):
            epoch, number = divmod(place, total)
            out.append(int(self._permutation(epoch, seed)[number]) if shuffle else number)
        return out

    def _permutation(self, epoch: int, seed: int) -> npt.NDArray[np.int64]:
        """The order of an epoch; the last one that was asked for is kept."""
        if self._drawn is None or self._drawn[0] != (epoch, seed):
            self._drawn = ((epoch, seed), np.random.default_rng([seed, epoch]).permutation(len(self)))
        return self._drawn[1]


def align(
    dataset: Dataset,
    checkpoint: Path,
    out: Path,
    config: AlignConfig,
    *,
    cache: Path,
    progress: Progress,
    start: Path | None = None,
    placement: Placement | None = None,
) -> Aligned:
    """Train in the folder `out`, resuming what is there; the result is `out/adapter`.

    start: an adapter to begin from, in the place of the checkpoint's own; cache: where codes and indices are kept.
    Under `accelerate launch` the processes share each batch.

    Raises:
        InputError: the data set is for another tokenizer, `out` holds a training of another, or the disk is full.
        ModelError: the checkpoint or the adapter cannot be loaded.
        TrainingDiverged: the loss stopped being a number; the last good state is kept.
    """
    model = load_model(checkpoint, placement=placement)
    check_fits(dataset.manifest, checkpoint, model.config.history, model.config.tokenizer.vision.image_size)
    if start is not None:
        load_adapter(model.personalizer, start)
    codes = image_codes(dataset, model, cache, progress)
    training = Alignment(dataset, model, codes, out, config, cache, progress, placement)
    training.claim(checkpoint, start)
    return training.run()


class Alignment:
    """One training in its folder."""

    def __init__(
        self,
        dataset: Dataset,
        model: PigeonModel,
        codes: ImageCodes,
        out: Path,
        config: AlignConfig,
        cache: Path,
        progress: Progress,
        placement: Placement | None = None,
    ) -> None:
        self._dataset, self._model, self._out, self._config, self._progress = dataset, model, out, config, progress
        self._train = WindowBatches(dataset, "train", model, codes, cache)
        self._validation = WindowBatches(dataset, "validation", model, codes, cache)
        self._personalizer = model.personalizer
        self._personalizer.set_trainable()
        if config.checkpointing:
            self._personalizer.recompute_activations()
        base = base_hash(self._personalizer)
        self._trainer = Trainer(self._personalizer, self._loss, out, self._trainer_config(), placement, base=base)
        self._found: list[tuple[int, float]] = []  # step, validation loss

    def _trainer_config(self) -> TrainerConfig:
        config = self._config
        return TrainerConfig(
            steps=config.steps,
            lr=config.learning_rate,
            warmup_steps=config.warmup_steps,
            cooldown_share=1.0,
            weight_decay=0.0,
            ema_decay=0.99,
            seed=config.seed,
        )

    def claim(self, checkpoint: Path, start: Path | None) -> None:
        """Refuse to mix two trainings in one folder.

        Raises:
            InputError: it holds another one.
        """
        about = {
            "dataset": self._dataset.manifest.dataset_id,
            "preset": self._model.config.name,
            "checkpoint": checkpoint.name,
            "start": start and start.name,
            "config": {
                name: value
                for name, value in asdict(self._config).items()
                if name not in ("part_rows", "checkpointing")
            },
        }
        path = self._out / TRAINING
        if self._trainer.group.rank == 0:
            self._out.mkdir(parents=True, exist_ok=True)
            if path.exists() and json.loads(path.read_text()) != about:
                raise InputError(
                    f"{self._out}: holds a training of another data set or other settings; give another folder or delete it"
                )
            path.write_text(json.dumps(about, indent=1) + "\n")
        self._trainer.group.wait()

    def run(self) -> Aligned:
        """Train, validate, stop early; the best weights become the adapter."""
        self._read_validations()
        if not self._found:
            self._validate()
        self._trainer.run(on_step=self._after_step, enough=self._is_enough)
        if self._found[-1][0] != self._trainer.step:
            self._validate()
        best_step, best = self._best()
        if self._trainer.group.rank == 0:
            shutil.copyfile(self._out / TRAINING, self._out / ADAPTER / TRAINING)
            plot_curves(self._out)
        self._trainer.group.wait()
        stopped = self._trainer.step < self._config.steps
        return Aligned(self._out / ADAPTER, self._trainer.step, self._found[0][1], best, best_step, stopped)

    def _loss(self, step: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, dict[str, float]]]:
        config = self._config
        batch = self._train.batch(self._train.order(step, config.batch_size, config.seed, config.shuffle))
        return reconstruction_loss(self._personalizer, batch, rng, self._trainer.group, config.part_rows)

    def _after_step(self, figures: dict[str, float]) -> None:
        step = self._trainer.step
        self._progress("Align", step, self._config.steps)
        if step % self._config.validate_every == 0:
            self._validate()

    def _is_enough(self) -> bool:
        """Whether the last validations brought nothing better; it follows from the steps up to this one alone."""
        done = [one for one in self._found if one[0] <= self._trainer.step]
        best = min(range(len(done)), key=lambda place: done[place][1])
        return len(done) - 1 - best >= self._config.patience

    def _best(self) -> tuple[int, float]:
        return min(self._found, key=lambda one: (one[1], one[0]))

    def _validate(self) -> None:
        """Measure the averaged weights, and keep them if they are the best.

        The windows and their masks are the same each time.
        """
        self._personalizer.eval()
        with self._averaged():
            loss = self._validation_loss()
            better = not self._found or loss < self._best()[1]
            if better and self._trainer.group.rank == 0:
                self._save_adapter()
        self._personalizer.train()
        self._found.append((self._trainer.step, loss))
        if self._trainer.group.rank == 0:
            append_row(self._out / VALIDATION, {"step": float(self._trainer.step), "loss": loss})

    @torch.no_grad()
    def _validation_loss(self) -> float:
        order = np.random.default_rng(VALIDATION_SEED).permutation(len(self._validation))
        chosen = order[: self._config.validation_windows].tolist()
        figures = {"nats": 0.0, "codes": 0.0}
        group = self._trainer.group
        with torch.random.fork_rng(devices=[]):
            for part in group.parts(len(chosen), VALIDATION_ROWS):
                # Seeded by the place, so that the masks do not depend on how the windows are shared out.
                torch.manual_seed(VALIDATION_SEED + part.start)
                batch = self._validation.batch(chosen[part])
                draws = mask_draws(batch, np.random.default_rng([VALIDATION_SEED, part.start]))
                logprobs = masked_logprobs(self._personalizer, batch, draws)
                figures["nats"] -= float(logprobs.sum())
                figures["codes"] += len(logprobs)
        summed = group.sum_figures(figures)
        return summed["nats"] / summed["codes"]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The averaged weights in the place of the last ones, for a `with` block."""
        trainer = self._trainer
        last = [parameter.detach().clone() for parameter in trainer.parameters]
        try:
            _put(trainer.parameters, trainer.ema)
            yield
        finally:
            _put(trainer.parameters, last)

    def _save_adapter(self) -> None:
        partial = self._out / f"{ADAPTER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            save_adapter(self._personalizer, partial, torch.float32)
        except OSError as error:
            raise InputError(f"{partial}: {error.strerror}; free some space and run it again") from error
        shutil.rmtree(self._out / ADAPTER, ignore_errors=True)
        partial.rename(self._out / ADAPTER)

    def _read_validations(self) -> None:
        """Resume, and forget validations of steps that were lost with the killed process."""
        self._out.mkdir(parents=True, exist_ok=True)
        self._trainer.resume()
        path = self._out / VALIDATION
        if not path.exists():
            return
        with path.open(newline="") as file:
            rows = [(int(float(row["step"])), float(row["loss"])) for row in csv.DictReader(file)]
        self._found = [row for row in dict(rows).items() if row[0] <= self._trainer.step]
        if self._found and not (self._out / ADAPTER).is_dir():
            self._found = []
        if self._trainer.group.rank == 0:
            path.unlink()
            for step, loss in self._found:
                append_row(path, {"step": float(step), "loss": loss})


def _put(parameters: Sequence[torch.nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def plot_curves(folder: Path) -> None:
    """Draw training and validation losses as curves.svg."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("loss.csv", "training", "-"), (VALIDATION, "validation", "o-")):
        path = folder / name
        if not path.exists():
            continue
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        axes.plot(
            [float(row["step"]) for row in rows], [float(row["loss"]) for row in rows], style, label=label, markersize=3
        )
    axes.set_xlabel("step")
    axes.set_ylabel("nats per code")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "curves.svg")
