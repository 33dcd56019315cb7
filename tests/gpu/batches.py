"""Prompts, pairs and tasks of random codes, of the lengths that a night has."""

from __future__ import annotations

import numpy as np

from generator.pigeon.config import PigeonConfig
from generator.pigeon.personalizer import TrainingBatch
from generator.pigeon.pipeline import Item, Task
from generator.pigeon.prompt import assemble, mask_inputs
from schemas.preferences import PreferencePair, PromptSnapshot


def codes_of(config: PigeonConfig, rng: np.random.Generator) -> list[int]:
    """One picture's codes: a third of its patches, which is about what the published tokenizer keeps."""
    count = max(1, config.tokenizer.vision.patches // 3)
    codes: list[int] = rng.integers(0, config.ids.codebook_size, count).tolist()
    return codes


def training_batch(config: PigeonConfig, rows: int, seed: int = 0) -> TrainingBatch:
    rng, ids = np.random.default_rng(seed), config.ids
    history = [[codes_of(config, rng) for _ in range(config.history)] for _ in range(rows)]
    text = [1, *[5, ids.image_start] * config.history, 7, ids.image_end, 8, ids.image_start]
    prompt = assemble(
        [text] * rows,
        [[ids.image(one) for one in row] for row in history],
        ids,
        answers=[ids.image(codes_of(config, rng)) for _ in range(rows)],
    )
    return TrainingBatch.from_arrays(prompt, mask_inputs(history, [codes_of(config, rng) for _ in range(rows)], ids))


def pairs(config: PigeonConfig, count: int) -> list[PreferencePair]:
    rng = np.random.default_rng(1)
    return [
        PreferencePair(
            pair_id=f"p{number}",
            user_id=f"u{number}",
            item_id="i",
            prompt=PromptSnapshot(
                history_titles=("w5",) * config.history,
                history_tokens=tuple(tuple(codes_of(config, rng)) for _ in range(config.history)),
                title="w7",
                description="w8",
                reference_tokens=tuple(codes_of(config, rng)),
            ),
            alpha=0.3,
            seed=number,
            chosen_poster_id="a",
            rejected_poster_id="b",
            chosen_tokens=tuple(codes_of(config, rng)),
            rejected_tokens=tuple(codes_of(config, rng)),
            source="feedback",
            weight=1.0,
        )
        for number in range(count)
    ]


def task(config: PigeonConfig, alphas: tuple[float, ...]) -> Task:
    side = config.tokenizer.vision.image_size
    images = np.random.default_rng(2).integers(0, 256, (config.history + 1, side, side, 3), dtype=np.uint8)
    return Task([Item("w5", image) for image in images[1:]], Item("w7", images[0], "w8"), 11, alphas)
