"""Several answers to one prompt, not drawn.

Masks, one prefill, a batch of answers, and a preview of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from generator.serving.backends.graph import BadInput
from generator.serving.backends.previews import PreviewMemory, preview_rows
from generator.serving.backends.task import (
    Call,
    Encode,
    Prompt,
    TaskConfig,
    answered_codes,
    check_grid,
    condition,
    personalizer_inputs,
)


@dataclass(frozen=True)
class Answered:
    """K answers, in the order of the request."""

    codes: list[list[int]]
    logprobs: NDArray[np.float64]  # (K,)
    sampling_logprobs: NDArray[np.float64]  # (K,)
    previews: NDArray[np.float32]  # (K, D), unit rows
    history_previews: NDArray[np.float32]  # (H, D), unit rows


def answer(
    config: TaskConfig,
    prompt: Prompt,
    alphas: Sequence[float],
    temperatures: Sequence[float],
    seed: int,
    adapter_version: int,
    encode: Encode,
    call: Call,
    memory: PreviewMemory | None = None,
) -> Answered:
    """Samples an answer per (α, temperature); answer i is sampled with (seed, i), temperature 0 is greedy.

    `memory` keeps previews for further requests.

    Raises:
        BadInput: an α outside 0..1, temperatures that do not fit, a negative seed, or a prompt that is too long.
    """
    check_grid(alphas, seed)
    if len(temperatures) != len(alphas):
        raise BadInput(f"temperatures: {len(temperatures)} for {len(alphas)} alphas; give one per alpha")
    prompts, references = condition(config, prompt, alphas, seed, encode, call)
    answers = call(
        "personalizer",
        {
            **personalizer_inputs(config, prompts, references, seed, call),
            "temperatures": np.array(temperatures, dtype=np.float64),
        },
        ["tokens", "counts", "logprobs", "sampling_logprobs"],
        version=adapter_version,
    )
    codes = answered_codes(config, answers)
    previews = preview_rows(config, [*codes, *prompt.history_tokens], call, memory)
    return Answered(
        codes, answers["logprobs"], answers["sampling_logprobs"], previews[: len(codes)], previews[len(codes) :]
    )
