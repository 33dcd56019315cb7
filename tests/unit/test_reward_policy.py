"""The policy `reward`: best first, exploring near the best, with the probabilities that it logs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from generator.feedback.clicks.examples import build
from generator.feedback.clicks.fit import fit
from generator.nightly.click_models import LoadedClickModel, policy_of
from generator.nightly.frozen_prompt import as_planned, drawing_settings
from generator.nightly.policies import Choice, ModelPolicy, exploration_of, reader_shares
from generator.nightly.reward_policy import DRAWS, FLOOR, RewardPolicy, best_chances, near_best, surely_best
from schemas.answers import StoredAnswer
from schemas.click_model import ClickModel, Utilities
from schemas.settings import NightSettings
from tests.support.click_world import TASTES, candidates_of, planted, stored

EFFECT = (0.8, 0.0, 0.0, 0.0, 0.0)
HISTORY = np.zeros((2, TASTES), np.float32)


@pytest.fixture(scope="module")
def model() -> ClickModel:
    return fit(build(planted(EFFECT, 3_000), 5.0), np.array([0.0, 1.0]), "base")


@pytest.fixture(scope="module")
def policy(model: ClickModel) -> RewardPolicy:
    return RewardPolicy(model, 7, ModelPolicy())


def answers(seed: int, count: int = 4) -> list[StoredAnswer]:
    return stored(candidates_of(np.random.default_rng(seed), count))


def test_the_first_choice_is_the_best_and_surely_chosen(policy: RewardPolicy) -> None:
    right = 0
    for seed in range(100):
        found = answers(seed)
        best, second = policy.choose(found, 2, seed, HISTORY)
        assert (best.probability, best.explored, second.explored) == (1.0, False, True)
        right += best.index == int(np.argmax([one.preview[0] for one in found]))
    assert right > 75
    assert policy.name == "reward 7"


def test_logged_probabilities_are_those_that_are_drawn_with() -> None:
    """Each seed has shares of its own; over the seeds each answer is drawn as often as they say."""
    wide = Utilities(np.array([0.3, 0.1, 0.0, -4.0]), np.diag([0.2, 0.2, 0.2, 1e-6]))
    policy = RewardPolicy(_Fixed(wide), 1, ModelPolicy())  # type: ignore[arg-type] # scores and nothing else
    found = _with(answers(1), np.log([0.4, 0.3, 0.2, 0.1]))
    seen, expected = Counter[int](), Counter[int]()
    for seed in range(3_000):
        _, second = policy.choose(found, 2, seed, HISTORY)
        seen[second.index] += 1
        for place, share in _shares(wide, seed).items():
            expected[place] += share
        assert second.probability == pytest.approx(_shares(wide, seed)[second.index])
    assert set(seen) == {1, 2}, "the fourth is far from the best"
    for place in (1, 2):
        assert seen[place] == pytest.approx(expected[place], abs=4 * math.sqrt(3_000 / 4))


def _shares(found: Utilities, seed: int) -> dict[int, float]:
    best = best_chances(found, np.random.default_rng(seed))
    near = near_best(found, 0)
    return {place: FLOOR / len(near) + (1 - FLOOR) * best[place] / best[near].sum() for place in near}


class _Fixed:
    """A click model that expects the same of any answers."""

    def __init__(self, found: Utilities) -> None:
        self._found = found

    def fits(self, _: object) -> bool:
        return True

    def utilities(self, _: object) -> Utilities:
        return self._found


def test_nothing_near_the_best_has_less_than_its_floor() -> None:
    sure = Utilities(np.array([1.0, 0.9, 0.8]), np.full((3, 3), 0.5) + np.diag([1e-3] * 3))
    near = near_best(sure, 0)
    assert near == [], "differences are known although levels are not"
    unsure = Utilities(np.array([1.0, 0.9, 0.2]), np.diag([0.5, 0.5, 0.5]))
    assert near_best(unsure, 0) == [1, 2]
    choices = RewardPolicy(_Fixed(unsure), 1, ModelPolicy()).choose(answers(2)[:3], 3, 4, HISTORY)  # type: ignore[arg-type]
    assert all(choice.probability >= FLOOR / 2 for choice in choices)


def test_thompsons_probabilities_are_those_of_the_normal_distribution() -> None:
    found = Utilities(np.array([0.5, 0.0]), np.diag([0.5, 0.5]))
    chances = [best_chances(found, np.random.default_rng(seed))[0] for seed in range(50)]
    exact = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    assert np.mean(chances) == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / (50 * DRAWS)))


def test_more_is_chosen_by_the_means_and_the_same_task_chooses_the_same(policy: RewardPolicy) -> None:
    found = answers(3, 6)
    choices = policy.choose(found, 6, 11, HISTORY)
    assert sorted(choice.index for choice in choices) == list(range(6))
    assert choices == policy.choose(found, 6, 11, HISTORY)
    assert choices[:2] == policy.choose(found, 2, 11, HISTORY)
    assert policy.choose([*found, *found], 6, 11, HISTORY) == choices, "equal answers are one"
    assert policy.choose([], 2, 1, HISTORY) == []
    only = policy.choose(found[:1], 2, 1, HISTORY)
    assert [(one.index, one.probability) for one in only] == [(0, 1.0)]


def test_embeddings_of_another_width_are_chosen_among_by_the_model(policy: RewardPolicy) -> None:
    found = answers(4)
    other = np.zeros((1, TASTES + 1), np.float32)
    assert policy.choose(found, 2, 5, other) == ModelPolicy().choose(found, 2, 5, other)


def test_readers_show_the_first_choice_but_for_a_small_share() -> None:
    settings = NightSettings(policy="reward", reward_exploration=0.1)
    two = [Choice(0, 1.0, explored=False), Choice(1, 0.5, explored=True)]
    assert reader_shares(two, settings) == pytest.approx([0.95, 0.05])
    assert reader_shares(two[:1], settings) == [1.0]
    assert reader_shares([], settings) == []
    assert reader_shares(two, NightSettings(policy="model", exploration=0.5)) == [0.75, 0.25]
    assert exploration_of(settings) == 0.1
    assert [reader_shares(two, NightSettings(policy=name))[1] for name in ("model", "reward")] == pytest.approx(
        [0.03] * 2
    )


def test_the_models_favourite_stays_first_unless_another_answer_is_surely_better() -> None:
    logprobs = np.log([0.7, 0.2, 0.1])
    mean = np.array([0.0, 0.3, 0.35])
    assert surely_best(Utilities(mean, np.diag([0.0, 0.04, 0.16])), logprobs) == 1, "0.35 - 0.4 is less than 0.3 - 0.2"
    assert surely_best(Utilities(mean, np.diag([0.0, 0.16, 0.16])), logprobs) == 0
    shared = np.full((3, 3), 0.5) + np.diag([0.0, 0.0, 0.01])
    assert surely_best(Utilities(mean, shared), logprobs) == 1, "what is unsure of all answers decides nothing"
    unsure = _Fixed(Utilities(mean, np.diag([0.0, 0.16, 0.16])))
    policy = RewardPolicy(unsure, 1, ModelPolicy())  # type: ignore[arg-type] # scores and nothing else
    assert policy.choose(_with(answers(5)[:3], logprobs), 1, 9, HISTORY) == [Choice(0, 1.0, explored=False)]


def _with(found: list[StoredAnswer], logprobs: np.ndarray) -> list[StoredAnswer]:
    return [replace(one, logprob=float(value)) for one, value in zip(found, logprobs, strict=True)]


def test_how_much_reward_explores_is_part_of_its_own_recipe_only() -> None:
    model = drawing_settings(NightSettings(policy="model"), "d")
    assert drawing_settings(NightSettings(policy="model", reward_exploration=0.4), "d") == model
    reward, other = (
        drawing_settings(NightSettings(policy="reward", reward_exploration=share), "d") for share in (0.1, 0.4)
    )
    assert reward != other
    assert as_planned(NightSettings(), {"recipe": other}).reward_exploration == 0.4


def test_auto_chooses_by_a_click_model_where_there_is_one(model: ClickModel) -> None:
    loaded = LoadedClickModel(3, model.model_id, model)
    assert policy_of(NightSettings()).name == "model 1"
    assert policy_of(NightSettings(), loaded).name == "reward 3"
    assert policy_of(NightSettings(policy="reward")).name == "model 1"
    assert policy_of(NightSettings(policy="model"), loaded).name == "model 1"
    assert policy_of(NightSettings(policy="paper"), loaded).name == "paper 1"
