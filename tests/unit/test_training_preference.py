"""Stage 2's pairs: which candidate is chosen over which, and what the pair remembers of the prompt."""

from __future__ import annotations

import numpy as np
import pytest

from generator.pigeon.pipeline import Candidate, Item, Task, TaskResult
from generator.training.preference import ranked
from schemas.errors import InputError

PICTURE = np.zeros((8, 8, 3), np.uint8)
TASK = Task([Item("a", PICTURE), Item("b", PICTURE)], Item("c", PICTURE, "A poster with a c."), 5, (0.0, 0.5, 1.0))


def result(*scores: float | None, codes: tuple[list[int], ...] = ([1, 2], [3, 4], [5, 6])) -> TaskResult:
    candidates = [
        Candidate(ratio, own, PICTURE, text_score=50.0, history_score=score)
        for ratio, own, score in zip(TASK.ratios, codes, scores, strict=True)
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


def test_an_answer_without_codes_is_neither_chosen_nor_rejected():
    pair = ranked(0, TASK, result(20.0, 30.0, 10.0, codes=([1], [2], [])))
    assert pair is not None
    assert (pair.chosen_tokens, pair.rejected_tokens) == ((2,), (1,))


def test_without_scores_nothing_can_be_ranked():
    with pytest.raises(InputError, match="image_scorer"):
        ranked(0, TASK, result(None, None, None))
