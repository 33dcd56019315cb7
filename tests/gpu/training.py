"""Steps of stage 1 and of DPO in bf16: seconds, tokens a second, memory beside the computed one."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from generator.pigeon.model import PigeonModel
from generator.training.dpo.loss import dpo_loss
from generator.training.dpo.reference import pair_logprobs, reference_logprobs
from generator.training.memory import StepSize, step_needed
from generator.training.reconstruction import mask_draws, masked_logprobs
from tests.gpu.batches import pairs, training_batch
from tests.gpu.models import large_model, nano_model
from tests.gpu.rig import GIB, Rig


def run(rig: Rig) -> None:
    for name, make, sizes, steps in (
        ("nano", nano_model, (8, 64), 10),
        ("lavit-7b", large_model, (1, 4), 3),
    ):
        with rig.attempt(f"{name}: made"):
            rig.forget_peak()
            started = time.perf_counter()
            model = make(rig.half, rig.rehearse)
            rig.wait()
            rig.row(f"{name}: made", seconds=time.perf_counter() - started, peak_gib=rig.peak_gib())
            for checkpointing in (False, True):
                if checkpointing:
                    model.personalizer.recompute_activations()
                for size in sizes[:1] if rig.rehearse else sizes:
                    label = f"{name}, {size} rows" + (", activations recomputed" if checkpointing else "")
                    with rig.attempt(f"stage 1: {label}"):
                        stage_1(rig, label, model, size, 1 if rig.rehearse else steps, checkpointing)
                    with rig.attempt(f"DPO: {label}"):
                        dpo(rig, label, model, size, 1 if rig.rehearse else steps, checkpointing)
            del model


def stage_1(rig: Rig, label: str, model: PigeonModel, rows: int, steps: int, checkpointing: bool) -> None:
    personalizer = model.personalizer
    personalizer.set_trainable()
    batch = training_batch(model.config, rows)
    draws = mask_draws(batch, np.random.default_rng(0))
    labels = int((batch.labels[0] >= 0).sum())

    def loss() -> Tensor:
        return -masked_logprobs(personalizer, batch, draws).mean()

    size = StepSize(rows, batch.tokens.shape[1], labels)
    measured(rig, f"stage 1: {label}", model, loss, size, steps, checkpointing)


def dpo(rig: Rig, label: str, model: PigeonModel, rows: int, steps: int, checkpointing: bool) -> None:
    model.personalizer.set_trainable()
    some = pairs(model.config, rows)
    with rig.half.autocast():
        reference = reference_logprobs(model, some)

    def loss() -> Tensor:
        policy = pair_logprobs(model, some)
        return dpo_loss(policy[0], policy[1], reference[0], reference[1], 0.1).losses.mean()

    answer = len(some[0].chosen_tokens)
    tokens = (model.config.history + 1) * (answer + 2) + 64
    measured(rig, f"DPO: {label}", model, loss, StepSize(2 * rows, tokens, answer + 1), steps, checkpointing)


def measured(
    rig: Rig,
    name: str,
    model: PigeonModel,
    loss: Callable[[], Tensor],
    size: StepSize,
    steps: int,
    checkpointing: bool,
) -> None:
    """One row: `steps` steps of AdamW after one that does not count."""
    learning = [p for p in model.personalizer.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, foreach=True)
    found: list[float] = []

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with rig.half.autocast():
            value = loss()
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))

    rig.forget_peak()
    before = torch.cuda.memory_allocated(rig.device) / GIB if rig.device.type == "cuda" else None
    seconds = rig.seconds(step, steps)
    need = step_needed(model.config, rig.half, size, checkpointing=checkpointing)
    rig.row(
        name,
        seconds=seconds,
        tokens_per_second=size.rows * size.tokens / seconds,
        first_loss=found[0],
        last_loss=found[-1],
        weights_gib=before,
        peak_gib=rig.peak_gib(),
        computed_step_gib=need.total / GIB,
    )
