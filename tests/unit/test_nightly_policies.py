"""Which answers are asked for, and which of them are drawn."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from generator.nightly.answers import as_set, ladder, request_of, with_choice
from generator.nightly.click_models import policy_of
from generator.nightly.policies import EXPLORATION_FLOOR, Choice, ModelPolicy, PaperPolicy
from generator.serving.api import Answer, AnswerRequest, Answers, InferenceCorrupt
from schemas.answers import AnswerSet, StoredAnswer, distinct
from schemas.preferences import PromptSnapshot
from schemas.settings import NightSettings
from schemas.tables import NightTask

PREVIEW = np.array([1, 0], np.float32)
HISTORY = np.zeros((1, 2), np.float32)
PROMPT = PromptSnapshot(
    history_titles=("H",), history_tokens=((1,),), title="T", description="d", reference_tokens=(2,)
)


def answer(*codes: int, logprob: float = -1.0, cs: float = 0.0, cis: float = 0.0) -> StoredAnswer:
    return StoredAnswer(codes, 0.3, 1.0, logprob, logprob, PREVIEW, cs, cis)


def test_the_ladder_is_greedy_first_and_pairs_every_alpha_with_every_temperature() -> None:
    settings = NightSettings(answers=17)
    alphas, temperatures = ladder(settings)
    assert (alphas[0], temperatures[0]) == (0.0, 0.0)
    others = list(zip(alphas, temperatures, strict=True))[1:]
    assert sorted(others) == sorted((a, t) for a in settings.alphas for t in settings.temperatures)
    assert ladder(NightSettings(answers=1)) == ((0.0,), (0.0,))
    alphas, temperatures = ladder(NightSettings())
    assert len(alphas) == 8
    assert set(alphas) == set(settings.alphas), "eight answers already see the whole grid"
    assert set(temperatures) == {0.0, *settings.temperatures}


def test_equal_answers_are_one_and_one_without_codes_is_none() -> None:
    assert distinct([answer(1), answer(1), answer(), answer(2), answer(1, 2), answer(2)]) == [0, 3, 4]
    assert ModelPolicy().choose([answer(), answer()], 2, 1, HISTORY) == []
    assert PaperPolicy(0.5).choose([answer()], 2, 1, HISTORY) == []


def test_the_models_best_answer_is_always_chosen_and_the_others_by_their_probability() -> None:
    answers = [answer(1), answer(2, logprob=-1.0), answer(2, logprob=-9.0), answer(3, logprob=-1.0 - math.log(3))]
    share = EXPLORATION_FLOOR / 2 + (1 - EXPLORATION_FLOOR) * 3 / 4
    seen = Counter[int]()
    for seed in range(4000):
        best, explored = ModelPolicy().choose(answers, 2, seed, HISTORY)
        assert best == Choice(0, 1.0, explored=False)
        assert explored.explored
        assert explored.probability == pytest.approx(share if explored.index == 1 else 1 - share)
        seen[explored.index] += 1
    assert set(seen) == {1, 3}
    assert seen[1] / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))


def test_further_choices_come_without_replacement_and_a_task_chooses_the_same_again() -> None:
    answers = [answer(n, logprob=-float(n)) for n in range(1, 7)]
    for seed in range(50):
        choices = ModelPolicy().choose(answers, 4, seed, HISTORY)
        assert len({choice.index for choice in choices}) == 4
        assert choices == ModelPolicy().choose(answers, 4, seed, HISTORY)
        assert choices[:2] == ModelPolicy().choose(answers, 2, seed, HISTORY), (
            "fallbacks do not change the first choice"
        )
    everything = ModelPolicy().choose(answers, 99, 3, HISTORY)
    assert sorted(choice.index for choice in everything) == list(range(6))
    assert everything[-1].probability == 1, "nothing else was left"


def test_hopeless_answers_are_tried_now_and_then() -> None:
    answers = [answer(1), answer(2, logprob=-1.0), answer(3, logprob=-800.0)]
    chosen = [ModelPolicy().choose(answers, 2, seed, HISTORY)[1] for seed in range(400)]
    assert {choice.probability for choice in chosen if choice.index == 2} == {EXPLORATION_FLOOR / 2}
    assert all(choice.probability > 0 for choice in chosen)


def test_the_papers_choice_is_the_score_of_the_previews() -> None:
    answers = [answer(1, cs=30, cis=50), answer(2, cs=60, cis=30), answer(3, cs=10, cis=79)]
    paper = policy_of(NightSettings(policy="paper"))
    assert [choice.index for choice in paper.choose(answers, 2, 5, HISTORY)] == [1, 2]
    assert {(c.probability, c.explored) for c in paper.choose(answers, 3, 5, HISTORY)} == {(1.0, False)}
    blind = [answer(n, cs=math.nan, cis=cis) for n, cis in ((1, 10.0), (2, 30.0), (3, 20.0))]
    assert [choice.index for choice in paper.choose(blind, 3, 5, HISTORY)] == [1, 2, 0], "texts are in another space"


def test_answers_are_stored_with_their_scores_and_then_with_the_choice() -> None:
    task = NightTask(run_id="r", user_id="u", item_id="i", seed=7, adapter_version=3)
    request = request_of(task, PROMPT, NightSettings(answers=2))
    assert request == AnswerRequest("r/u/i", PROMPT, (0.0, 0.0), (0.0, 1.0), 7, 3)
    drawn = tuple(
        Answer(0.0, temperature, (5, number), -1.5, -2.5, np.array(preview, np.float32))
        for number, (temperature, preview) in enumerate(((0.0, (1, 0)), (1.0, (0, 1))))
    )
    text, history = np.array([1, 0], np.float32), np.array([[1, 0], [0.6, 0.8]], np.float32)
    found = as_set(request, Answers(drawn, "sketch", history), text)
    assert [(a.cs, pytest.approx(a.cis_history)) for a in found.answers] == [(100, 80), (0, 40)]
    assert all(math.isnan(a.cs) for a in as_set(request, Answers(drawn, "conditions", history), text).answers)
    with pytest.raises(InferenceCorrupt, match="1 answers for 2"):
        as_set(request, Answers(drawn[:1], "sketch", history), text)
    chosen = with_choice(found, "model 1", [Choice(1, 0.25, explored=True)], {1: 0})
    back = AnswerSet.unpack(chosen.pack())
    assert back.chooser == "model 1"
    assert [(a.variant, a.chosen_with) for a in back.answers] == [(-1, 0.0), (0, 0.25)]
