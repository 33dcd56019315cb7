"""Whether a training on pairs fits, before anything is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from generator.pigeon.checkpoint import read_config, weights_needed
from generator.pigeon.memory import MemoryNeed, check_memory
from generator.pigeon.placement import Placement
from generator.training.memory import StepSize, step_needed
from schemas.preferences import PreferencePair

log = logging.getLogger(__name__)
LETTERS_PER_TOKEN = 3
"""Number of letters of a text that are counted as a token; English has more."""


def check_room(
    checkpoint: Path, placement: Placement, pairs: Sequence[PreferencePair], at_once: int, *, checkpointing: bool
) -> MemoryNeed:
    """Compute what a training of `at_once` pairs at once needs, log it, and refuse what does not fit.

    Raises:
        InputError: the device has less memory free.
        ModelError: the checkpoint has no configuration.
    """
    device = placement.device()
    size = step_size(pairs, at_once)
    preset = read_config(checkpoint)
    step = step_needed(preset, placement, size, checkpointing=checkpointing)
    need = weights_needed(checkpoint, placement=placement).get(device, MemoryNeed({})) + step
    log.info("DPO needs %s on %s: %d rows of %d tokens at once", need, device, size.rows, size.tokens)
    check_memory(need, device, "lower compute.part_rows, or set compute.checkpointing or compute.precision bf16")
    return need


def step_size(pairs: Sequence[PreferencePair], at_once: int) -> StepSize:
    """The largest part of a step: two rows a pair, as long as the longest pair."""
    tokens = max(_tokens(pair) for pair in pairs)
    labels = 1 + max(max(len(pair.chosen_tokens), len(pair.rejected_tokens)) for pair in pairs)
    return StepSize(2 * min(at_once, len(pairs)), tokens, labels)


def _tokens(pair: PreferencePair) -> int:
    """Tokens of a pair's prompt and longer answer: codes with start and end marks, texts by their letters."""
    prompt = pair.prompt
    images = (*prompt.history_tokens, max(pair.chosen_tokens, pair.rejected_tokens, key=len))
    letters = sum(map(len, (*prompt.history_titles, prompt.title, prompt.description)))
    return sum(len(codes) + 2 for codes in images) + letters // LETTERS_PER_TOKEN + 128
