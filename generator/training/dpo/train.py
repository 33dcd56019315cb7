"""Direct preference optimization (Rafailov et al., NeurIPS 2023, arXiv 2305.18290) of Pigeon's LoRA.

The champion's adapter is the frozen reference; its log-probabilities are computed once. Only LoRA learns: the mask generator
and the reference adapter stay the champion's, so both answers of a pair have one and the same prompt.

A margin can grow while both answers become less likely, the chosen one too (likelihood displacement, Razin et al. 2025); then
something that nobody asked for becomes likelier. So log π(chosen) is recorded, and training stops when it has fallen too far.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generator.pigeon.checkpoint import PIGEON, load_adapter, load_model, save_adapter
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import Personalizer
from generator.pigeon.placement import Placement
from generator.pigeon.weights import weights_hash
from generator.training.dpo.loss import dpo_loss
from generator.training.dpo.memory import check_room
from generator.training.dpo.prompts import prepare
from generator.training.dpo.reference import in_parts, kept_reference, pair_logprobs, pairs_hash, reference_logprobs
from generator.training.logprobs import Answers, answer_logprobs, label_distributions, of_labels, sum_by_row
from generator.training.processes import ProcessGroup
from generator.training.trainer import Part, Trainer, TrainerConfig
from schemas.errors import InputError
from schemas.preferences import PreferencePair, PromptSnapshot

DpoProgress = Callable[[int, int, float], None]
"""Callback that takes (steps done, steps in all, loss)."""

REFERENCE = "reference.json"
"""File of the reference's log-probabilities in a training's folder."""
DISPLACEMENT_STEPS = 8
"""Number of steps over which the fall of log π(chosen) is averaged; a smaller training is never stopped by it."""
SAVE_EVERY_SECONDS = 10.0
MEMORY_ONLY = frozenset({"part_size", "checkpointing"})
"""Names of the settings that a training may be resumed with others of."""
KL_PAIRS = 48
"""Number of training pairs, the first ones, that estimate the result's KL; the gate measures it on held-out ones."""


@dataclass(frozen=True)
class DpoConfig:
    """Settings of a training; the defaults are the paper's (PIGEON.md section 5).

    One epoch sees each pair once, in an order drawn from the seed.

    `part_size`: at most so many pairs at once (gradient accumulation); `checkpointing`: activations are computed again in the
    backward pass. Both change memory and not the result.
    """

    beta: float = 0.1
    learning_rate: float = 5e-6
    batch_size: int = 8
    epochs: int = 2
    warmup_steps: int = 5
    seed: int = 0
    part_size: int | None = None
    checkpointing: bool = False
    label_smoothing: float = 0.0
    max_displacement: float | None = None
    """Nats that log π(chosen) may fall below the champion's, mean of the last `DISPLACEMENT_STEPS` steps; then training stops."""


@dataclass(frozen=True)
class DpoResult:
    """Figures per step, the KL divergence from the reference at the end, and where the adapter is.

    Per step: mean loss, share of pairs ranked as preferred, mean reward margin.
    """

    losses: list[float]
    accuracies: list[float]
    margins: list[float]
    kl: float
    adapter_dir: Path
    chosen: list[float]
    """Mean of (log π − log π_ref)(chosen) per step, nats."""
    length: float
    """Codes per chosen answer, mean."""
    displaced: bool
    """Whether training stopped because log π(chosen) had fallen too far."""


@dataclass(frozen=True)
class PairMargins:
    """How an adapter ranks pairs against a reference adapter."""

    margins: list[float]
    """Margin per pair, β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]."""
    kls: list[float]
    """Divergence per pair, Σ_t KL(π ‖ π_ref) in nats over the next token, along the logged answers, mean of the two answers."""
    chosen: list[float]
    """(log π − log π_ref)(chosen) per pair, nats."""

    @property
    def accuracy(self) -> float:
        """Share of pairs with a positive margin."""
        return statistics.fmean(margin > 0 for margin in self.margins)

    @property
    def margin(self) -> float:
        return statistics.fmean(self.margins)

    @property
    def kl(self) -> float:
        return statistics.fmean(self.kls)


class Learning(nn.Module):
    """LoRA's matrices and the record of the steps: what a resumed training continues from."""

    def __init__(self, personalizer: Personalizer) -> None:
        super().__init__()
        matrices = [p for name, p in personalizer.llama.named_parameters() if "lora_" in name]
        self.lora = nn.ParameterList(matrices)
        self.record: list[tuple[float, ...]] = []
        """Per step: loss, accuracy, margin, (log π − log π_ref)(chosen)."""

    def get_extra_state(self) -> list[tuple[float, ...]]:
        return list(self.record)

    def set_extra_state(self, state: Any) -> None:
        self.record = [tuple(map(float, row)) for row in state]

    def is_displaced(self, limit: float | None) -> bool:
        """Whether log π(chosen) of the last steps has fallen by more than `limit` nats.

        The record alone decides.
        """
        last = [row[3] for row in self.record[-DISPLACEMENT_STEPS:]]
        return limit is not None and len(last) == DISPLACEMENT_STEPS and statistics.fmean(last) < -limit


def load_policy(checkpoint_dir: Path, adapter_dir: Path | None, placement: Placement | None = None) -> PigeonModel:
    """The checkpoint with an adapter (none: its own).

    No dropout, so that policy and reference agree at the first step.
    """
    model = load_model(checkpoint_dir, placement=placement)
    if adapter_dir is not None:
        load_adapter(model.personalizer, adapter_dir)
    return model


def train_dpo(
    checkpoint_dir: Path,
    champion_adapter_dir: Path | None,
    pairs: list[PreferencePair],
    out_dir: Path,
    config: DpoConfig | None = None,
    progress: DpoProgress | None = None,
    placement: Placement | None = None,
) -> DpoResult:
    """Train on the pairs, resuming what is in `out_dir`.

    The new adapter is `out_dir/adapter`, in full precision.

    Under `accelerate launch` the processes share each batch's pairs; all get the result.
    placement: where and how precise the one base is that policy and reference share; the reference's log-probabilities are kept
    in `out_dir`, so that a resumed training does not compute them again.

    Raises:
        InputError: no pairs, a pair of another checkpoint, too little memory, `out_dir` holds a training of other pairs or settings, or its
            disk is full.
        ModelError: the checkpoint or the adapter cannot be loaded.
        TrainingDiverged: the loss stopped being a number.
    """
    config = config or DpoConfig()
    if not pairs:
        raise InputError("pairs: none given; DPO needs at least one")
    placement = placement or Placement()
    group = ProcessGroup.join(placement.device().type)
    if group.rank == 0:
        _claim(out_dir, champion_adapter_dir, pairs, config)
    at_once = min(config.part_size or config.batch_size, config.batch_size)
    check_room(checkpoint_dir, placement, pairs, at_once, checkpointing=config.checkpointing)
    model = load_policy(checkpoint_dir, champion_adapter_dir, placement)
    if config.checkpointing:
        model.personalizer.recompute_activations()
    champion = adapter_weights(model)
    known = weights_hash(model.personalizer.state_dict())
    with placement.autocast():  # before anything is resumed: LoRA still is the champion's
        reference = kept_reference(
            out_dir / REFERENCE, known, pairs, lambda: reference_logprobs(model, pairs), write=group.rank == 0
        )
    objective = Objective(model, pairs, config, group, reference.to(placement.device()))
    learning = Learning(model.personalizer)
    learning.requires_grad_(True)

    def record(figures: dict[str, float]) -> None:
        learning.record.append(tuple(figures[name] for name in ("loss", "accuracy", "margin", "chosen")))
        if progress is not None:
            progress(trainer.step, objective.steps, figures["loss"])

    settings = TrainerConfig(
        steps=objective.steps,
        lr=config.learning_rate,
        warmup_steps=config.warmup_steps,
        cooldown_share=1.0,
        weight_decay=0.0,
        seed=config.seed,
        save_every_seconds=SAVE_EVERY_SECONDS,
    )
    trainer = Trainer(learning, objective, out_dir, settings, placement, base=known)
    trainer.run(on_step=record, enough=lambda: learning.is_displaced(config.max_displacement))
    adapter = out_dir / "adapter"
    if group.rank == 0:
        save_adapter(model.personalizer, adapter, torch.float32)
    group.wait()
    with placement.autocast():
        scores = compare_adapters(model, adapter_weights(model), champion, pairs[:KL_PAIRS], config.beta)
    losses, accuracies, margins, chosen = (list(column) for column in zip(*learning.record, strict=True))
    length = statistics.fmean(len(pair.chosen_tokens) for pair in pairs)
    displaced = learning.is_displaced(config.max_displacement)
    return DpoResult(losses, accuracies, margins, scores.kl, adapter, chosen, length, displaced)


class Objective:
    """DPO's loss of a step, as `Trainer` calls it."""

    def __init__(
        self,
        model: PigeonModel,
        pairs: Sequence[PreferencePair],
        config: DpoConfig,
        group: ProcessGroup,
        reference: Tensor,
    ) -> None:
        """reference (2, pairs): log-probabilities of chosen and rejected answers under it."""
        self._model, self._pairs, self._config, self._group = model, pairs, config, group
        self._reference = reference
        weights = torch.tensor([pair.weight for pair in pairs])
        self._weights = (weights / weights.mean()).to(reference.device)
        self._steps_per_epoch = -(-len(pairs) // config.batch_size)
        self.steps = self._steps_per_epoch * config.epochs

    def __call__(self, step: int, rng: np.random.Generator) -> Iterator[Part]:
        """The step's pairs in parts, in an order that is drawn per epoch from the seed; `rng` is not used."""
        config = self._config
        epoch, number = divmod(step, self._steps_per_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(self._pairs))
        chosen = order[number * config.batch_size :][: config.batch_size]
        for part in self._group.parts(len(chosen), config.part_size):
            some = chosen[part]
            policy = pair_logprobs(self._model, [self._pairs[i] for i in some])
            reference = self._reference[:, some]
            out = dpo_loss(policy[0], policy[1], reference[0], reference[1], config.beta, config.label_smoothing)
            margin = out.chosen_rewards - out.rejected_rewards
            gained = (policy[0].detach() - reference[0]).sum()
            figures = {"accuracy": (margin > 0).float().sum(), "margin": margin.sum(), "chosen": gained}
            yield (
                (out.losses * self._weights[some]).sum() / len(chosen),
                {name: float(figure) / len(chosen) for name, figure in figures.items()},
            )


def measure_pairs(
    checkpoint_dir: Path,
    adapter_dir: Path | None,
    reference_adapter_dir: Path | None,
    pairs: list[PreferencePair],
    beta: float = 0.1,
    placement: Placement | None = None,
) -> PairMargins:
    """Margins and KL of an adapter against a reference (none: the checkpoint's own), without training.

    Raises:
        InputError: no pairs, or a pair of another checkpoint.
        ModelError: the checkpoint or an adapter cannot be loaded.
    """
    if not pairs:
        raise InputError("pairs: none given; nothing can be scored")
    placement = placement or Placement()
    model = load_policy(checkpoint_dir, adapter_dir, placement)
    policy = adapter_weights(model)
    load_adapter(model.personalizer, reference_adapter_dir or checkpoint_dir / PIGEON)
    with placement.autocast():
        return compare_adapters(model, policy, adapter_weights(model), pairs, beta)


@torch.no_grad()
def score_answers(
    checkpoint_dir: Path,
    adapter_dir: Path | None,
    answers: Sequence[tuple[PromptSnapshot, int, float, Sequence[int]]],
    placement: Placement | None = None,
) -> list[float]:
    """log π of answers under an adapter (none: the checkpoint's own); each is (prompt, seed, α, codes).

    Raises:
        InputError: a code that this checkpoint does not have.
        ModelError: the checkpoint or the adapter cannot be loaded.
    """
    placement = placement or Placement()
    model = load_policy(checkpoint_dir, adapter_dir, placement)
    pairs = [_as_pair(number, *answer) for number, answer in enumerate(answers)]
    found: list[float] = []
    for part in in_parts(pairs):
        # The rows of "rejected" answers repeat those of the chosen ones, and are dropped before they cost anything.
        whole = prepare(model, part)
        half = Answers(
            whole.embeds[: len(part)],
            whole.labels[: len(part)],
            None if whole.attention is None else whole.attention[: len(part)],
        )
        with placement.autocast():
            found += answer_logprobs(model.personalizer, half).tolist()
    return found


def _as_pair(number: int, prompt: PromptSnapshot, seed: int, alpha: float, codes: Sequence[int]) -> PreferencePair:
    name = f"answer {number}"
    tokens = tuple(codes)
    return PreferencePair(
        pair_id=name,
        user_id=name,
        item_id=name,
        prompt=prompt,
        alpha=alpha,
        seed=seed,
        chosen_poster_id=name,
        rejected_poster_id=name,
        chosen_tokens=tokens,
        rejected_tokens=tokens,
        source="score",
        weight=1.0,
    )


AdapterWeights = dict[str, Tensor]
"""Weights of LoRA, mask generator and reference adapter by their names in the personalizer."""


def adapter_weights(model: PigeonModel) -> AdapterWeights:
    """Copies of the weights of the adapter that the model has."""
    parts = ("mask_generator.", "adapter.")
    state = model.personalizer.state_dict()
    return {name: value.clone() for name, value in state.items() if "lora_" in name or name.startswith(parts)}


@torch.no_grad()
def compare_adapters(
    model: PigeonModel,
    policy: AdapterWeights,
    reference: AdapterWeights,
    pairs: Sequence[PreferencePair],
    beta: float,
) -> PairMargins:
    """Margins and KL of one adapter against another, in a model that both fit.

    It is left with the reference.
    """
    margins: list[float] = []
    kls: list[float] = []
    chosen: list[float] = []
    for part in in_parts(pairs):
        sums, logprobs = [], []
        for weights in (policy, reference):
            model.personalizer.load_state_dict(weights, strict=False)
            answers = prepare(model, part)
            logprobs.append(label_distributions(model.personalizer, answers))
            sums.append(sum_by_row(of_labels(logprobs[-1], answers), answers).view(2, -1))
        out = dpo_loss(sums[0][0], sums[0][1], sums[1][0], sums[1][1], beta)
        margins += (out.chosen_rewards - out.rejected_rewards).tolist()
        chosen += (sums[0][0] - sums[1][0]).tolist()
        apart = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(dim=-1)  # (n,)
        kls += sum_by_row(apart, answers).view(2, -1).mean(dim=0).tolist()
    return PairMargins(margins, kls, chosen)


def _claim(out_dir: Path, champion: Path | None, pairs: Sequence[PreferencePair], config: DpoConfig) -> None:
    """Refuse to mix two trainings in one folder."""
    settings = {name: value for name, value in asdict(config).items() if name not in MEMORY_ONLY}
    identity = {"pairs_sha256": pairs_hash(pairs), "champion": champion and champion.name, "config": settings}
    path = out_dir / "training.json"
    out_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and json.loads(path.read_text()) != identity:
        raise InputError(f"{out_dir}: holds a training of other pairs or settings; give another folder or delete it")
    path.write_text(json.dumps(identity, indent=1))
