"""nano's tasks on the icon world's users, as `answers` asks the personalizer for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from generator.pigeon.model import PigeonModel
from generator.pigeon.pipeline import PigeonPipeline, Task
from generator.serving.backends.task import Call, Prompt, TaskConfig, condition, personalizer_inputs
from generator.training.nano.samples import IconSamples

ALPHAS = (0.0, 0.3, 0.6, 0.9, 0.0, 0.3, 0.6, 0.9)
TEMPERATURES = (0.0, 0.7, 0.7, 0.7, 1.3, 1.3, 1.6, 2.0)


@dataclass(frozen=True)
class PersonalizerTask:
    """What the Triton model `personalizer` is asked for: K answers to one prompt."""

    prompts: NDArray[np.int64]  # (K, T)
    condition: NDArray[np.float32]  # (K, E)
    seed: int

    @property
    def streams(self) -> list[tuple[int, int]]:
        return [(self.seed, variant) for variant in range(len(self.prompts))]

    def tensors(self, rows: Sequence[int] | None = None) -> dict[str, NDArray[np.generic]]:
        """The request, or that of some of its answers."""
        chosen = list(range(len(self.prompts))) if rows is None else list(rows)
        return {
            "prompt_ids": self.prompts[chosen],
            "condition": self.condition[chosen],
            "variants": np.array(chosen, dtype=np.int64),
            "temperatures": np.array(TEMPERATURES)[chosen],
        }


@torch.no_grad()
def nano_tasks(model: PigeonModel, config: TaskConfig, call: Call, cache: Path, count: int) -> list[PersonalizerTask]:
    """Held-out users' tasks; `call` has mask generator and token decoder."""
    pipeline = PigeonPipeline(model)
    return [
        _asked(model, pipeline, config, call, sample.task)
        for sample in IconSamples(cache).choose(count, 1, ALPHAS, held_out=True)
    ]


def _asked(
    model: PigeonModel, pipeline: PigeonPipeline, config: TaskConfig, call: Call, task: Task
) -> PersonalizerTask:
    history, references = pipeline.encode([task])
    prompt = Prompt(
        [item.title for item in task.history],
        history[0],
        task.reference.title,
        task.reference.description,
        references[0],
    )
    prompts, kept = condition(config, prompt, ALPHAS, task.seed, model.encode_text, call)
    inputs = personalizer_inputs(config, prompts, kept, task.seed, call)
    return PersonalizerTask(inputs["prompt_ids"], inputs["condition"], task.seed)
