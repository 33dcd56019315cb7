"""Stage 2's pairs: which candidate is chosen over which, and what the pair remembers of the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from generator.pigeon import diffusion
from generator.pigeon.checkpoint import load_model
from generator.pigeon.pipeline import Candidate, Item, PigeonPipeline, Task, TaskResult
from generator.training.dpo.train import DpoConfig
from generator.training.nano.stages import preference
from generator.training.nano.stages.preference import ranked, score_pairs_of, train_preference
from schemas.errors import InputError
from tests.support.tiny_training import checkpoint

PICTURE = np.zeros((8, 8, 3), np.uint8)
TASK = Task([Item("a", PICTURE), Item("b", PICTURE)], Item("c", PICTURE, "A poster with a c."), 5, (0.0, 0.5, 1.0))


def result(*scores: float | None, codes: tuple[list[int], ...] = ([1, 2], [3, 4], [5, 6])) -> TaskResult:
    candidates = [
        Candidate(alpha, own, PICTURE, cs=50.0, cis_history=score)
        for alpha, own, score in zip(TASK.alphas, codes, scores, strict=True)
    ]
    return TaskResult([[7, 8], [9]], [10, 11], candidates)


def test_the_likest_of_the_history_is_chosen_over_the_least_like():
    pair = ranked(3, TASK, result(20.0, 30.0, 10.0))
    assert pair is not None
    assert (pair.chosen_tokens, pair.rejected_tokens, pair.alpha) == ((3, 4), (5, 6), 0.5)
    assert pair.prompt.history_tokens == ((7, 8), (9,))
    assert pair.prompt.history_titles == ("a", "b")
    assert (pair.prompt.title, pair.prompt.description) == ("c", "A poster with a c.")
    assert pair.prompt.reference_tokens == (10, 11)
    assert (pair.source, pair.seed) == ("score", 5)


def test_candidates_that_say_the_same_make_no_pair():
    assert ranked(0, TASK, result(20.0, 30.0, 10.0, codes=([1], [1], [1]))) is None


def test_nearly_equal_candidates_make_no_pair():
    assert ranked(0, TASK, result(20.0, 20.5, 19.0)) is None


def test_an_answer_without_codes_is_neither_chosen_nor_rejected():
    pair = ranked(0, TASK, result(20.0, 30.0, 90.0, codes=([1], [2], [])))
    assert pair is not None
    assert (pair.chosen_tokens, pair.rejected_tokens) == ((2,), (1,))


def test_without_scores_nothing_can_be_ranked():
    with pytest.raises(InputError, match="image_scorer"):
        ranked(0, TASK, result(None, None, None))


def asked(_: object, count: int, seed: int = 0) -> Iterator[Task]:
    rng = np.random.default_rng(seed)

    def item() -> Item:
        return Item("w7", rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "w8 w9")

    for number in range(count):
        yield Task([item(), item()], item(), number, (0.0, 0.5, 0.9))


def test_pairs_are_what_the_whole_pipeline_would_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only answers that differ are drawn; pictures and scores are those of the grid all the same."""
    model = load_model(checkpoint(tmp_path))
    monkeypatch.setattr(preference, "tasks", asked)
    monkeypatch.setattr(preference, "AT_ONCE", 2)
    monkeypatch.setattr(preference, "LEAST_GAP", 0.0)
    monkeypatch.setattr(preference, "TEMPERATURE", model.config.generation.temperature)
    prompts: Any = SimpleNamespace()  # `tasks`, which alone reads them, is replaced
    found = {pair.pair_id: pair for pair in score_pairs_of(model, prompts, 5)}
    tasks = list(asked(None, 5))
    for number, (task, result) in enumerate(zip(tasks, PigeonPipeline(model)(tasks), strict=True)):
        first: dict[tuple[int, ...], Candidate] = {}
        for candidate in result.candidates:
            first.setdefault(tuple(candidate.codes), candidate)
        whole = TaskResult(result.history_codes, result.reference_codes, list(first.values()))
        assert found.get(f"simulated-{number}") == ranked(number, task, whole)
    assert found, "a random model does not give one answer thrice to everybody"


def test_a_model_that_sketches_is_ranked_by_its_sketches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No picture is drawn; the scores are those of the sketches."""
    model = load_model(checkpoint(tmp_path))
    model.diffusion.config = model.diffusion.config.model_copy(update={"sketched": True})
    # This preset's conditions are too short to hold one.
    monkeypatch.setattr(diffusion, "sketch", lambda embeds, *_: embeds[:, :4, :8, None] * torch.ones(8))
    monkeypatch.setattr(model.diffusion, "draw", lambda *_: pytest.fail("a picture was drawn"))
    monkeypatch.setattr(preference, "tasks", asked)
    monkeypatch.setattr(preference, "LEAST_GAP", 0.0)
    prompts: Any = SimpleNamespace()
    found = score_pairs_of(model, prompts, 5)
    assert found
    pipeline = PigeonPipeline(model)
    for pair in found:
        task = list(asked(None, 5))[int(pair.user_id.rpartition("-")[2])]
        answers = [list(pair.chosen_tokens), list(pair.rejected_tokens)]
        sketches = model.diffusion.preview(pipeline.decode(answers)[0])
        ((_, best), (_, worst)), *_ = pipeline.score([task], sketches[None])
        assert best > worst


def test_the_stage_goes_on_from_the_pairs_that_it_has_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    prompts: Any = SimpleNamespace(model=load_model(checkpoint(tmp_path / "model")))
    monkeypatch.setattr(preference, "tasks", asked)
    monkeypatch.setattr(preference, "LEAST_GAP", 0.0)
    config = DpoConfig(learning_rate=3e-2, batch_size=2, epochs=2)
    first = train_preference(tmp_path / "stage", prompts, users=4, config=config)
    monkeypatch.setattr(preference, "score_pairs_of", lambda *_: pytest.fail("the pairs were drawn again"))
    again = train_preference(tmp_path / "stage", prompts, users=4, config=config)
    assert again.losses == first.losses
    assert first.losses[0] == pytest.approx(np.log(2), abs=1e-5)
    assert (tmp_path / "stage/adapter/llama/adapter_model.safetensors").exists()
