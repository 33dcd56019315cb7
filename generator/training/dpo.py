"""Direct preference optimization (Rafailov et al., NeurIPS 2023, arXiv 2305.18290) of Pigeon's LoRA.

The champion's adapter is the frozen reference; its log-probabilities are computed once. Only LoRA learns: the mask generator
and the reference adapter stay the champion's, so both answers of a pair have one and the same prompt.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generator.pigeon.checkpoint import load_adapter, load_model, save_adapter
from generator.pigeon.model import PigeonModel
from generator.pigeon.personalizer import Personalizer
from generator.pigeon.prompt import IGNORED_LABEL, MASKED, PromptBatch, assemble, mask_inputs, masked, prompt_text_ids
from generator.pigeon.sampling import gumbel_row
from generator.training.processes import ProcessGroup
from generator.training.trainer import Part, Trainer, TrainerConfig
from schemas.errors import InputError
from schemas.preferences import PreferencePair

DpoProgress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, loss)."""

SCORE_BATCH = 16
SAVE_EVERY_SECONDS = 10.0
KL_PAIRS = 48
"""The first so many training pairs estimate the result's KL; the gate measures it on held-out ones."""


@dataclass(frozen=True)
class DpoConfig:
    """The paper's values (PIGEON.md section 5). One epoch sees each pair once, in an order drawn from the seed.

    `part_size`: at most so many pairs at once (gradient accumulation); it changes memory and not the result.
    """

    beta: float = 0.1
    learning_rate: float = 5e-6
    batch_size: int = 8
    epochs: int = 2
    warmup_steps: int = 5
    seed: int = 0
    part_size: int | None = None


@dataclass(frozen=True)
class DpoLoss:
    """All (B,)."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


@dataclass(frozen=True)
class DpoResult:
    """Per step: mean loss, share of pairs ranked as preferred, mean reward margin; at the end: KL from the reference."""

    losses: list[float]
    accuracies: list[float]
    margins: list[float]
    kl: float
    adapter_dir: Path


@dataclass(frozen=True)
class PairMargins:
    """How an adapter ranks pairs against a reference adapter."""

    margins: list[float]
    """Per pair β·[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]."""
    kls: list[float]
    """Per pair Σ_t KL(π ‖ π_ref) in nats over the next token, along the logged answers, mean of the two answers."""

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


def dpo_loss(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> DpoLoss:
    """-log σ(β[(log π − log π_ref)(chosen) − (log π − log π_ref)(rejected)]), equation 7; all arguments and results (B,)."""
    chosen = beta * (policy_chosen - reference_chosen)
    rejected = beta * (policy_rejected - reference_rejected)
    return DpoLoss(-F.logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())


@dataclass(frozen=True)
class Answers:
    """Prompts with one answer each, ready for LLaMA: embeds (B, T, C), attention (B, T), labels (B, T)."""

    embeds: Tensor
    attention: Tensor
    labels: Tensor


@dataclass(frozen=True)
class NightMasks:
    """What the night kept of each pair's prompt: rows (B, N) as `prompt.mask_inputs` lays them out."""

    tokens: Tensor
    types: Tensor
    keep: Tensor


@torch.no_grad()
def prepare(model: PigeonModel, pairs: Sequence[PreferencePair]) -> Answers:
    """2B rows, all chosen answers, then all rejected ones, behind the night's masks and condition.

    Raises:
        InputError: a pair holds a code that this model's codebook does not have.
    """
    _check_codes(pairs, model.config.tokenizer.codebook_size)
    personalizer = model.personalizer
    masks = night_masks(model, pairs)
    reference = personalizer.reference_embedding(masks.tokens, masks.types, masks.keep)
    batch = answered_prompts(model, pairs, masks.keep)
    tokens = torch.from_numpy(batch.tokens)
    embeds = personalizer.token_embeddings(tokens)
    place = (tokens < MASKED)[..., None]  # EMBEDDING
    embeds = embeds + place * reference.repeat(2, 1)[:, None]
    return Answers(embeds, torch.from_numpy(batch.attention), torch.from_numpy(batch.labels))


def _check_codes(pairs: Sequence[PreferencePair], codebook_size: int) -> None:
    for pair in pairs:
        prompt = pair.prompt
        rows = (*prompt.history_tokens, prompt.reference_tokens, pair.chosen_tokens, pair.rejected_tokens)
        worst = max((code for row in rows for code in row), default=0)
        if worst >= codebook_size or any(code < 0 for row in rows for code in row):
            raise InputError(
                f"pair {pair.pair_id}: code {worst} is not in the codebook of {codebook_size}; "
                "was it drawn by another checkpoint?"
            )


@torch.no_grad()
def night_masks(model: PigeonModel, pairs: Sequence[PreferencePair]) -> NightMasks:
    """The masks of the night that drew the pairs: its noise follows from each task's seed."""
    inputs = mask_inputs(_histories(pairs), [pair.prompt.reference_tokens for pair in pairs], model.config.ids)
    tokens, positions, types = map(torch.from_numpy, (inputs.tokens, inputs.positions, inputs.types))
    noise = np.zeros(inputs.tokens.shape, dtype=np.float32)
    for row, pair in enumerate(pairs):
        used = int((inputs.types[row] != 0).sum())
        noise[row, :used] = gumbel_row(pair.seed, 0, used)  # the night's own draw
    alpha = torch.tensor([pair.alpha for pair in pairs])
    keep = model.personalizer.masks(tokens, positions, types, alpha, noise=torch.from_numpy(noise)).keep
    return NightMasks(tokens, types, keep)


def answered_prompts(model: PigeonModel, pairs: Sequence[PreferencePair], keep: Tensor) -> PromptBatch:
    """2B prompts of the night, masked by `keep` (B, N): with the chosen answers, then the rejected."""
    config = model.config
    ids = config.ids
    texts = [
        prompt_text_ids(
            config.wording,
            pair.prompt.history_titles,
            pair.prompt.title,
            pair.prompt.description,
            model.encode_text,
            ids,
        )
        for pair in pairs
    ]
    images = [[ids.image(codes) for codes in history] for history in _histories(pairs)]
    answers = [ids.image(pair.chosen_tokens) for pair in pairs] + [ids.image(pair.rejected_tokens) for pair in pairs]
    whole = assemble(texts * 2, images * 2, ids, answers=answers, max_tokens=config.language.max_positions)
    return masked(whole, keep.repeat(2, 1).numpy())


def _histories(pairs: Sequence[PreferencePair]) -> list[list[list[int]]]:
    return [list(map(list, pair.prompt.history_tokens)) for pair in pairs]


def label_logits(personalizer: Personalizer, answers: Answers) -> tuple[Tensor, Tensor]:
    """Logits (n, V) of every labelled token, row by row, and the row (n,) that each belongs to."""
    base: Any = personalizer.llama.get_base_model()
    hidden = base.model(
        inputs_embeds=answers.embeds,
        attention_mask=answers.attention,
        position_ids=(answers.attention.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=False,
    ).last_hidden_state
    place = answers.labels[:, 1:] != IGNORED_LABEL
    return base.lm_head(hidden[:, :-1][place]).float(), place.nonzero()[:, 0]


def answer_logprobs(personalizer: Personalizer, answers: Answers) -> Tensor:
    """(B,): log-probability of each row's answer, its end token included."""
    logits, rows = label_logits(personalizer, answers)
    wanted = answers.labels[:, 1:]
    each = -F.cross_entropy(logits, wanted[wanted != IGNORED_LABEL], reduction="none")
    return torch.zeros(len(answers.labels)).index_add(0, rows, each)


class Learning(nn.Module):
    """LoRA's matrices and the record of the steps: what a resumed training continues from."""

    def __init__(self, personalizer: Personalizer) -> None:
        super().__init__()
        matrices = [p for name, p in personalizer.llama.named_parameters() if "lora_" in name]
        self.lora = nn.ParameterList(matrices)
        self.record: list[tuple[float, float, float]] = []

    def get_extra_state(self) -> list[tuple[float, float, float]]:
        return list(self.record)

    def set_extra_state(self, state: Any) -> None:
        self.record = [(float(a), float(b), float(c)) for a, b, c in state]


def load_policy(checkpoint_dir: Path, adapter_dir: Path | None) -> PigeonModel:
    """The checkpoint with an adapter (none: its own); no dropout, so that policy and reference agree at the first step."""
    model = load_model(checkpoint_dir)
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
) -> DpoResult:
    """Train on the pairs, resuming what is in `out_dir`; the new adapter is `out_dir/adapter`, in full precision.

    Under `accelerate launch` the processes share each batch's pairs; all get the result.

    Raises:
        InputError: no pairs, a pair of another checkpoint, `out_dir` holds a training of other pairs or settings, or its
            disk is full.
        ModelError: the checkpoint or the adapter cannot be loaded.
        TrainingDiverged: the loss stopped being a number.
    """
    config = config or DpoConfig()
    if not pairs:
        raise InputError("pairs: none given; DPO needs at least one")
    group = ProcessGroup.join()
    if group.rank == 0:
        _claim(out_dir, champion_adapter_dir, pairs, config)
    model = load_policy(checkpoint_dir, champion_adapter_dir)
    personalizer = model.personalizer
    with torch.no_grad():
        # Before anything is resumed: LoRA still is the champion's.
        parts = [
            answer_logprobs(personalizer, prepare(model, pairs[start : start + SCORE_BATCH])).view(2, -1)
            for start in range(0, len(pairs), SCORE_BATCH)
        ]
        reference = torch.cat(parts, dim=1)  # (2, pairs)
    weights = torch.tensor([pair.weight for pair in pairs])
    weights = weights / weights.mean()
    learning = Learning(personalizer)
    learning.requires_grad_(True)
    per_epoch = -(-len(pairs) // config.batch_size)
    steps = per_epoch * config.epochs

    def loss(step: int, rng: np.random.Generator) -> Iterator[Part]:
        epoch, number = divmod(step, per_epoch)
        order = np.random.default_rng([config.seed, epoch]).permutation(len(pairs))
        chosen = order[number * config.batch_size :][: config.batch_size]
        for part in trainer.group.parts(len(chosen), config.part_size):
            some = chosen[part]
            policy = answer_logprobs(personalizer, prepare(model, [pairs[i] for i in some])).view(2, -1)
            out = dpo_loss(policy[0], policy[1], reference[0, some], reference[1, some], config.beta)
            margin = out.chosen_rewards - out.rejected_rewards
            yield (
                (out.losses * weights[some]).sum() / len(chosen),
                {
                    "accuracy": float((margin > 0).float().sum()) / len(chosen),
                    "margin": float(margin.sum()) / len(chosen),
                },
            )

    def record(figures: dict[str, float]) -> None:
        learning.record.append((figures["loss"], figures["accuracy"], figures["margin"]))
        if progress is not None:
            progress(trainer.step, steps, figures["loss"])

    settings = TrainerConfig(
        steps=steps,
        lr=config.learning_rate,
        warmup_steps=config.warmup_steps,
        cooldown_share=1.0,
        weight_decay=0.0,
        seed=config.seed,
        save_every_seconds=SAVE_EVERY_SECONDS,
    )
    trainer = Trainer(learning, loss, out_dir, settings)
    trainer.run(on_step=record)
    adapter = out_dir / "adapter"
    if group.rank == 0:
        save_adapter(personalizer, adapter, torch.float32)
    group.wait()
    scores = measure_pairs(checkpoint_dir, adapter, champion_adapter_dir, pairs[:KL_PAIRS], config.beta)
    losses, accuracies, margins = (list(column) for column in zip(*learning.record, strict=True))
    return DpoResult(losses, accuracies, margins, scores.kl, adapter)


@torch.no_grad()
def measure_pairs(
    checkpoint_dir: Path,
    adapter_dir: Path | None,
    reference_adapter_dir: Path | None,
    pairs: list[PreferencePair],
    beta: float = 0.1,
) -> PairMargins:
    """Margins and KL of an adapter against a reference (none: the checkpoint's own), without training.

    Raises:
        InputError: no pairs, or a pair of another checkpoint.
        ModelError: the checkpoint or an adapter cannot be loaded.
    """
    if not pairs:
        raise InputError("pairs: none given; nothing can be scored")
    policy, reference = load_policy(checkpoint_dir, adapter_dir), load_policy(checkpoint_dir, reference_adapter_dir)
    margins: list[float] = []
    kls: list[float] = []
    for start in range(0, len(pairs), SCORE_BATCH):
        part = pairs[start : start + SCORE_BATCH]
        sums, divergence = [], torch.zeros(2 * len(part))
        logprobs = []
        for model in (policy, reference):
            answers = prepare(model, part)
            logits, rows = label_logits(model.personalizer, answers)
            logprobs.append(logits.log_softmax(dim=-1))
            wanted = answers.labels[:, 1:]
            each = logprobs[-1].gather(1, wanted[wanted != IGNORED_LABEL][:, None])[:, 0]
            sums.append(torch.zeros(2 * len(part)).index_add(0, rows, each).view(2, -1))
        each = (logprobs[0].exp() * (logprobs[0] - logprobs[1])).sum(dim=-1)
        divergence = divergence.index_add(0, rows, each).view(2, -1)
        out = dpo_loss(sums[0][0], sums[0][1], sums[1][0], sums[1][1], beta)
        margins += (out.chosen_rewards - out.rejected_rewards).tolist()
        kls += divergence.mean(dim=0).tolist()
    return PairMargins(margins, kls)


def _claim(out_dir: Path, champion: Path | None, pairs: Sequence[PreferencePair], config: DpoConfig) -> None:
    """Refuse to mix two trainings in one folder."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(pair.model_dump_json().encode())
    settings = {name: value for name, value in asdict(config).items() if name != "part_size"}
    identity = {"pairs_sha256": digest.hexdigest(), "champion": champion and champion.name, "config": settings}
    path = out_dir / "training.json"
    out_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and json.loads(path.read_text()) != identity:
        raise InputError(f"{out_dir}: holds a training of other pairs or settings; give another folder or delete it")
    path.write_text(json.dumps(identity, indent=1))
