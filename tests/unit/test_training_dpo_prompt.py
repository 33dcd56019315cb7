"""DPO learns behind the prompt that the night answered: ids and kept codes of both are compared."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from generator.nightly.frozen_prompt import task_seed
from generator.pigeon.model import PigeonModel
from generator.pigeon.prompt import IGNORED_LABEL, kept_reference
from generator.serving.backends import task as served
from generator.training.dpo.prompts import answered_prompts, night_masks
from schemas.preferences import PreferencePair, PromptSnapshot
from tests.support.tiny_serving import tiny_model

ALPHAS = (0.0, 0.3, 0.6, 0.9, 1.0)


@pytest.fixture(scope="module")
def model() -> PigeonModel:
    return tiny_model()


def snapshots() -> list[PromptSnapshot]:
    """Histories of different lengths, among them a picture without codes."""
    rng = np.random.default_rng(4)

    def codes(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(0, 24, count).tolist())

    return [
        PromptSnapshot(
            history_titles=("w5", "w6 w7", "w8"),
            history_tokens=(codes(3), codes(lengths), codes(4)),
            title="w9 w10",
            description="w11",
            reference_tokens=codes(reference),
        )
        for lengths, reference in ((1, 7), (5, 10), (0, 12))
    ]


def condition(model: PigeonModel, snapshot: PromptSnapshot, alphas: tuple[float, ...], seed: int) -> tuple[Any, Any]:
    """What the served backend assembles, with the mask generator in this process."""
    config = SimpleNamespace(
        ids=model.config.ids,
        wording=model.config.wording,
        history_ratio=model.config.mask.history_ratio,
        max_prompt=model.config.language.max_positions,
    )

    def call(name: str, inputs: Mapping[str, Any], outputs: list[str], version: int = -1) -> dict[str, Any]:
        assert (name, outputs) == ("mask_generator", ["scores"])
        tokens, positions, types = (torch.from_numpy(inputs[key]) for key in ("tokens", "positions", "types"))
        personalizer = model.personalizer
        with torch.no_grad():
            scores = personalizer.mask_generator.scores(personalizer.token_embeddings(tokens), positions, types)
        return {"scores": scores.numpy()}

    prompt = served.Prompt.from_json(snapshot.model_dump(), model.config.ids.codebook_size)
    return served.condition(config, prompt, alphas, seed, model.encode_text, call)  # type: ignore[arg-type]


def pair(snapshot: PromptSnapshot, alpha: float, seed: int) -> PreferencePair:
    return PreferencePair(
        pair_id="p",
        user_id="u",
        item_id="i",
        prompt=snapshot,
        alpha=alpha,
        seed=seed,
        chosen_poster_id="a",
        rejected_poster_id="b",
        chosen_tokens=(1, 2, 3),
        rejected_tokens=(4, 5),
        source="feedback",
        weight=1.0,
    )


def test_the_prompt_that_is_trained_on_is_the_prompt_that_was_answered(model: PigeonModel) -> None:
    seeds = [task_seed("u", str(number), "weights", "answers") for number in range(4)]
    cases = [(snapshot, seed) for snapshot in snapshots() for seed in seeds]
    different = set()
    for alpha in ALPHAS:
        # As stored: a float4 column.
        pairs = [pair(snapshot, float(np.float32(alpha)), seed) for snapshot, seed in cases]
        masks = night_masks(model, pairs)
        batch = answered_prompts(model, pairs, masks.keep)
        for row, (snapshot, seed) in enumerate(cases):
            ids, references = condition(model, snapshot, ALPHAS, seed)
            wanted, place = ids[ALPHAS.index(alpha)], ALPHAS.index(alpha)
            for half in (0, len(pairs)):  # chosen, rejected
                real = batch.attention[row + half] == 1
                before_answer = batch.labels[row + half] == IGNORED_LABEL
                assert batch.tokens[row + half][real & before_answer].tolist() == wanted.tolist()
            keep = masks.keep[row].numpy()
            assert kept_reference(snapshot.reference_tokens, snapshot.history_tokens, keep) == references[place]
            different.add((tuple(wanted.tolist()), tuple(references[place])))
    assert len(different) > len(cases), "masks differ between seeds and alphas, else nothing was compared"


def test_another_seed_masks_another_history(model: PigeonModel) -> None:
    first, second = (condition(model, snapshots()[1], (0.3,), seed)[0] for seed in (1, 2))
    assert first.tolist() != second.tolist()
