"""The whole path on a tiny random model, and the tokenizer's codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from generator.pigeon.model import PigeonModel, new_model
from generator.pigeon.pipeline import Item, PigeonPipeline, Task
from generator.pigeon.presets import tiny
from generator.pigeon.tokenizer import DynamicVisualTokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> PigeonModel:
    torch.manual_seed(5)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(40)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    made = new_model(tiny(), words)
    with torch.no_grad():
        for parameter in made.tokenizer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
        made.personalizer.llama.get_input_embeddings().weight.normal_()
    return made


def image(seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def tasks() -> list[Task]:
    def item(n: int) -> Item:
        return Item(f"w{n} w{n + 1}", image(n, (32 + n, 40)), "w5 " * n)

    return [
        Task([item(row * 4 + n) for n in range(row + 1)], item(20 + row), seed=row + 2**40, alphas=(0.0, 0.5, 1.0))
        for row in range(3)
    ]


def test_a_batch_equals_its_tasks_alone(model: PigeonModel) -> None:
    pipeline = PigeonPipeline(model)
    steps: list[tuple[int, int]] = []
    together = pipeline(tasks(), progress=lambda done, of: steps.append((done, of)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    for task, result in zip(tasks(), together, strict=True):
        (alone,) = pipeline([task])
        assert alone.history_codes == result.history_codes
        assert alone.reference_codes == result.reference_codes
        assert len(result.history_codes) == min(len(task.history), model.config.history)
        for ours, theirs in zip(alone.candidates, result.candidates, strict=True):
            assert ours.codes == theirs.codes
            assert ours.image.shape == (32, 32, 3)
            assert np.abs(ours.image.astype(int) - theirs.image).max() <= 1
            assert ours.score == pytest.approx(theirs.score, abs=0.5)
            assert -100 <= ours.cs <= 100
        assert len({candidate.image.tobytes() for candidate in result.candidates}) == 3


def test_a_picture_is_tokenized_once_and_scored_in_one_pass(model: PigeonModel) -> None:
    pipeline = PigeonPipeline(model)
    shared = tasks()[2].history
    calls = [Task(shared, task.reference, task.seed, task.alphas) for task in tasks()]
    tokenized: list[int] = []
    scored: list[int] = []
    counters = (
        model.tokenizer.encoder.register_forward_hook(lambda _m, _i, out: tokenized.append(len(out))),
        model.scorer.image.register_forward_hook(lambda _m, _i, out: scored.append(len(out))),
    )
    try:
        first = pipeline(calls)
        second = pipeline(calls[:1])
    finally:
        for counter in counters:
            counter.remove()
    recent = model.config.history
    assert tokenized == [recent + 3]
    assert scored == [9 + recent, 3 + recent]
    assert first[0].candidates[0].codes == second[0].candidates[0].codes


def test_another_seed_is_another_poster(model: PigeonModel) -> None:
    task = tasks()[0]
    pipeline = PigeonPipeline(model)
    again = Task(task.history, task.reference, task.seed, task.alphas)
    other = Task(task.history, task.reference, task.seed + 1, task.alphas)
    first, second, third = (pipeline([t])[0].candidates[1] for t in (task, again, other))
    assert (first.image == second.image).all()
    assert (first.image != third.image).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"history": []}, "task 0: history is empty"),
        ({"alphas": (0.5, 1.5)}, "task 0: alpha 1.5 must lie between 0 and 1"),
        ({"seed": -1}, "task 0: seed -1"),
        ({"reference": Item("t", np.zeros((8, 8), np.uint8))}, r"picture 1: is uint8 \(8, 8\)"),
    ],
)
def test_bad_tasks_are_named(model: PigeonModel, change: dict, message: str) -> None:
    task = tasks()[0]
    with pytest.raises(ValueError, match=message):
        PigeonPipeline(model)([Task(**{**vars(task), **change})])


def test_the_codebook_follows_the_vectors_in_training_and_only_then() -> None:
    torch.manual_seed(6)
    quantizer = DynamicVisualTokenizer(tiny().tokenizer).quantize.train()
    before = quantizer.embedding.weight.clone()
    vectors = torch.randn(4, 5, before.shape[1], requires_grad=True)
    codes, ids, commitment = quantizer(vectors)
    torch.testing.assert_close(codes, before[ids])
    nearest = torch.nn.functional.normalize(vectors, dim=-1) - before[ids]
    torch.testing.assert_close(commitment, nearest.square().sum(dim=-1).mean())
    (codes.sum() + commitment).backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert quantizer.embedding.weight.grad is None
    assert (quantizer.embedding.weight != before).any()
    frozen = quantizer.embedding.weight.clone()
    quantizer.eval()(vectors)
    assert torch.equal(quantizer.embedding.weight, frozen)


def test_a_pictures_codes_are_those_of_the_patches_that_are_kept(model: PigeonModel) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    ids, keep = model.tokenizer.encode_dense(pixels)
    rows = model.tokenizer.encode(pixels)
    assert [row.tolist() for row in rows] == [i[k].tolist() for i, k in zip(ids, keep, strict=True)]
