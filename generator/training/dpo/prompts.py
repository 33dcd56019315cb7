"""Prompts and answers of preference pairs as LLaMA sees them.

The night's prompts, masked as the night masked them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generator.pigeon.model import PigeonModel
from generator.pigeon.prompt import MASKED, PromptBatch, assemble, mask_inputs, masked, prompt_text_ids
from generator.pigeon.sampling import gumbel_row
from generator.training.logprobs import Answers
from schemas.errors import InputError
from schemas.preferences import PreferencePair


@dataclass(frozen=True)
class NightMasks:
    """What the night kept of each pair's prompt: rows (B, N) as `prompt.mask_inputs` lays them out."""

    tokens: Tensor
    types: Tensor
    keep: Tensor


@torch.no_grad()
def prepare(model: PigeonModel, pairs: Sequence[PreferencePair]) -> Answers:
    """Prompts and answers of the pairs in 2B rows: all chosen answers, then all rejected ones.

    Masks and the reference condition are the night's.

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
    place = (tokens < MASKED)[..., None].to(embeds.device)  # EMBEDDING
    embeds = embeds + place * reference.repeat(2, 1)[:, None]
    return Answers(embeds, torch.from_numpy(batch.labels), torch.from_numpy(batch.attention))


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
    return masked(whole, keep.repeat(2, 1).cpu().numpy())


def _histories(pairs: Sequence[PreferencePair]) -> list[list[list[int]]]:
    return [list(map(list, pair.prompt.history_tokens)) for pair in pairs]
