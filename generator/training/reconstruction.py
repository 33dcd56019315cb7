"""Masked preference reconstruction, the paper's stage 1, on any batches of prompts and answers.

PIGEON.md section 5.

A random share of the reference is masked, least preference-like tokens first, and the answer is to be reconstructed from what
is left and from the history. LoRA, mask generator and reference adapter learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from generator.pigeon.masking import draw_noise
from generator.pigeon.personalizer import Personalizer, TrainingBatch
from generator.pigeon.placement import Placement
from generator.pigeon.prompt import IGNORED_LABEL
from generator.pigeon.weights import weights_hash
from generator.training.logprobs import Answers, label_logprobs
from generator.training.processes import ProcessGroup
from generator.training.trainer import Part, Trainer, TrainerConfig

Batches = Callable[[int, np.random.Generator], TrainingBatch]
"""Function of (step, generator) that gives the step's whole batch, of any number of rows.

What is random in it must come from the generator, which is seeded by the step: then a resumed training sees the same batches, and
every process of a group the same one."""
MaskDraws = tuple[Tensor, Tensor]
"""Masking ratios (B,) in 0..1, and Gumbel noise (B, N)."""


def train_reconstruction(
    folder: Path,
    personalizer: Personalizer,
    batches: Batches,
    config: TrainerConfig,
    part_rows: int | None = None,
    placement: Placement | None = None,
    checkpointing: bool = False,
) -> None:
    """Train LoRA, mask generator and adapter in `folder`, resuming what is there.

    `trainer.load_averaged` then loads what was learned into a personalizer of the same checkpoint.

    part_rows: at most so many rows at once (gradient accumulation). Neither it nor the number of processes that
    `accelerate launch` splits a batch over changes the result but for rounding.
    checkpointing: compute LLaMA's activations again in the backward pass, which costs time and saves memory.
    placement: the one that the personalizer was loaded with. Batches are made on the CPU and go where it is.

    Raises:
        InputError: the disk has no room for the state, or the placement does not train.
        TrainingDiverged: the loss stopped being a number.
    """
    personalizer.set_trainable()
    if checkpointing:
        personalizer.recompute_activations()

    def loss(step: int, rng: np.random.Generator) -> Iterator[Part]:
        return reconstruction_loss(personalizer, batches(step, rng), rng, trainer.group, part_rows)

    trainer = Trainer(personalizer, loss, folder, config, placement, base=base_hash(personalizer))
    trainer.run()


def base_hash(personalizer: Personalizer) -> str:
    """Hash of the frozen language model.

    A state of stage 1 holds what learned, and fits the model of this hash alone.
    """
    named = personalizer.llama.named_parameters()
    return weights_hash({name: value for name, value in named if "lora_" not in name})


def reconstruction_loss(
    personalizer: Personalizer,
    batch: TrainingBatch,
    rng: np.random.Generator,
    group: ProcessGroup,
    part_rows: int | None,
) -> Iterator[Part]:
    """A step's loss in this process's parts: cross-entropy of the answers behind the step's masks."""
    alpha, noise = mask_draws(batch, rng)
    counted = int((batch.labels[:, 1:] != IGNORED_LABEL).sum())
    for part in group.parts(len(batch.tokens), part_rows):
        logprobs = masked_logprobs(personalizer, batch.rows(part), (alpha[part], noise[part]))
        yield -logprobs.sum() / counted, {}


def mask_draws(batch: TrainingBatch, rng: np.random.Generator) -> MaskDraws:
    """A step's masking ratios, uniform in 0..1, and its noise."""
    alpha = torch.from_numpy(rng.random(len(batch.tokens)))
    return alpha, draw_noise(batch.mask_types, None, alpha.float())


def masked_logprobs(
    personalizer: Personalizer, batch: TrainingBatch, draws: MaskDraws, *, invert_reference: bool = True
) -> Tensor:
    """Log-probability of each label (n,), row by row, behind the masks of these draws.

    invert_reference: keep what is least preference-like of the reference, as in stage 1; False: the most, as a night does.
    """
    alpha, noise = draws
    rows = (batch.mask_tokens, batch.mask_positions, batch.mask_types)
    mask = personalizer.masks(*rows, alpha, invert_reference=invert_reference, noise=noise)
    reference = personalizer.reference_embedding(batch.mask_tokens, batch.mask_types, mask.keep)
    embeds = personalizer.input_embeddings(batch, mask.keep, reference)
    return label_logprobs(personalizer, Answers(embeds, batch.labels, batch.attention))
