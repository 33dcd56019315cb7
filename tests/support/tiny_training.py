"""Tiny trainings of stages 1 and 2, in this process or started by `accelerate launch` (`python -m tests.support.tiny_training`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from generator.pigeon.checkpoint import load_model, save_model
from generator.pigeon.model import new_model
from generator.pigeon.personalizer import TrainingBatch
from generator.pigeon.placement import Placement
from generator.pigeon.presets import tiny
from generator.pigeon.prompt import TokenIds, assemble, mask_inputs
from generator.training.dpo.train import DpoConfig, DpoResult, train_dpo
from generator.training.reconstruction import train_reconstruction
from generator.training.trainer import TrainerConfig
from schemas.preferences import PreferencePair, PromptSnapshot

DPO = DpoConfig(learning_rate=3e-2, batch_size=3, epochs=2, warmup_steps=1)
RECONSTRUCTION = TrainerConfig(steps=3, lr=1e-2, warmup_steps=1, weight_decay=0.0, log_every_seconds=0.0)
ROWS = 5


def checkpoint(folder: Path) -> Path:
    """Random weights, no dropout: parts and processes would draw it differently, and nothing else."""
    torch.manual_seed(5)
    fields = tiny().model_dump(mode="json")
    for part, name in (("language", "lora_dropout"), ("mask", "dropout"), ("adapter", "dropout")):
        fields[part][name] = 0.0
    config = type(tiny()).model_validate(fields)
    model = new_model(config, Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3")))
    save_model(model, folder, torch.float32)
    return folder


def seeing_checkpoint(folder: Path) -> Path:
    """The same, whose tokenizer keeps every patch; random weights decide to keep none."""
    path = checkpoint(folder) / "visual_tokenizer/tokenizer_encoder.safetensors"
    state = load_file(path)
    state["token_predictor.out_conv.4.bias"] = torch.tensor([9.0, -9.0])
    save_file(state, path, metadata={"format": "pt"})
    return folder


def pair(number: int, **changes: object) -> PreferencePair:
    fields = {
        "pair_id": f"p{number}",
        "user_id": f"u{number}",
        "item_id": "i",
        "prompt": PromptSnapshot(
            history_titles=("w5", "w6"),
            history_tokens=((1, 2, 3), (4, 5 + number)),
            title="w7",
            description="w8",
            reference_tokens=(7, 8, 9, 10),
        ),
        "alpha": 0.3,
        "seed": number,
        "chosen_poster_id": "a",
        "rejected_poster_id": "b",
        "chosen_tokens": (11, 12, 13),
        "rejected_tokens": (14, 15),
        "source": "feedback",
        "weight": 1.0,
    }
    return PreferencePair.model_validate(fields | changes)


PAIRS = [pair(number, weight=1.0 + number % 2) for number in range(5)]


def run_dpo(folder: Path, out: Path, config: DpoConfig = DPO) -> DpoResult:
    return train_dpo(folder, None, PAIRS, out, config)


def random_batch(ids: TokenIds, count: int, rng: np.random.Generator) -> TrainingBatch:
    """Prompts of random codes, answers of different lengths."""

    def codes() -> list[int]:
        return rng.integers(0, ids.codebook_size, int(rng.integers(1, 7))).tolist()

    history = [[codes(), codes()] for _ in range(count)]
    text = [1, 5, ids.image_start, 6, ids.image_start, 7, ids.image_end, 8, ids.image_start]
    prompt = assemble(
        [text] * count,
        [[ids.image(one) for one in row] for row in history],
        ids,
        answers=[ids.image(codes()) for _ in range(count)],
    )
    return TrainingBatch.from_arrays(prompt, mask_inputs(history, [codes() for _ in range(count)], ids))


def run_reconstruction(
    folder: Path,
    out: Path,
    part_rows: int | None = None,
    config: TrainerConfig = RECONSTRUCTION,
    placement: Placement | None = None,
    checkpointing: bool = False,
) -> None:
    model = load_model(folder, placement=placement)

    def batches(step: int, rng: np.random.Generator) -> TrainingBatch:
        return random_batch(model.config.ids, ROWS, rng)

    train_reconstruction(out, model.personalizer, batches, config, part_rows, placement, checkpointing)


def main(stage: str, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    if stage == "reconstruction":
        run_reconstruction(Path(folder), Path(out))
        return
    result = run_dpo(Path(folder), Path(out))
    rank = torch.distributed.get_rank()
    (Path(out) / f"rank-{rank}.json").write_text(json.dumps({"losses": result.losses, "kl": result.kl}))


if __name__ == "__main__":
    main(*sys.argv[1:])
