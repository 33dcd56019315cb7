"""Off-policy values against the truth of a simulation, diversity by hand.

Also what a reward-ranked pair is.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from generator.feedback import diversity, off_policy
from generator.feedback.diversity import AnswerGrid
from generator.feedback.gate import NotJudged
from generator.feedback.off_policy import LoggedShowings, OffPolicyValue, evaluate, shown_probabilities
from generator.feedback.reward_pairs import ExpectedClicks, best_over_worst
from schemas.answers import StoredAnswer

READER = np.array([0.75, 0.25])


def simulated(
    rng: np.random.Generator, showings: int = 6000, *, model_error: float = 0.0, better: float = 1.0
) -> tuple[LoggedShowings, float]:
    """Showings of 5 answers under the champion's policy, and the challenger's true gain.

    better: how much the challenger's log π leans to what is clicked; below 0 it leans away. model_error: of the click model.
    """
    users = [f"u{n % 150}" for n in range(showings)]
    columns: list[tuple[float, ...]] = []
    gains = []
    for _ in range(showings):
        truth = rng.beta(2, 18, 5)
        base = rng.standard_normal(5)
        champion, challenger = (shown_probabilities(base + lean * 20 * (truth - 0.1), READER) for lean in (0.0, better))
        shown = int(rng.choice(5, p=champion))
        expected = truth + model_error * rng.standard_normal(5)
        columns.append(
            (
                float(rng.random() < truth[shown]),
                champion[shown],
                champion[shown],
                challenger[shown],
                expected[shown],
                float(champion @ expected),
                float(challenger @ expected),
            )
        )
        gains.append(float((challenger - champion) @ truth))
    clicks, logged, base_p, new_p, mean, base_mean, new_mean = np.array(columns).T
    return LoggedShowings(tuple(users), clicks, logged, base_p, new_p, mean, base_mean, new_mean), float(np.mean(gains))


def test_both_estimates_find_the_true_gain_and_the_model_makes_it_surer() -> None:
    rng = np.random.default_rng(1)
    found, truth = simulated(rng)
    value = evaluate(found, 0.95, 100, 1)
    assert isinstance(value, OffPolicyValue)
    assert truth > 0.01
    for estimate in (value.snips, value.doubly_robust):
        assert estimate is not None
        assert estimate.low < truth < estimate.high
    assert value.doubly_robust is not None
    assert value.gain == value.doubly_robust
    assert value.doubly_robust.high - value.doubly_robust.low < value.snips.high - value.snips.low
    assert 100 < value.effective_samples < value.showings == 6000
    assert value.champion == pytest.approx(found.clicks.mean()), "it logged them: all its weights are one"


def test_a_wrong_click_model_does_not_mislead_the_doubly_robust_estimate() -> None:
    found, truth = simulated(np.random.default_rng(2), model_error=0.2)
    value = evaluate(found, 0.95, 100, 1)
    assert isinstance(value, OffPolicyValue)
    assert value.doubly_robust is not None
    assert value.doubly_robust.low < truth < value.doubly_robust.high


def test_a_worse_challenger_is_surely_worse() -> None:
    found, truth = simulated(np.random.default_rng(3), better=-1.0)
    value = evaluate(found, 0.95, 100, 1)
    assert isinstance(value, OffPolicyValue)
    assert truth < 0
    assert value.gain.high < 0


def test_too_small_a_log_cannot_be_judged() -> None:
    found, _ = simulated(np.random.default_rng(4), showings=60)
    judged = evaluate(found, 0.95, 100, 1)
    assert isinstance(judged, NotJudged)
    assert "off_policy_min_samples is 100" in judged.reason
    unclicked = evaluate(found, 0.95, 1, 1000)
    assert isinstance(unclicked, NotJudged)
    assert "off_policy_min_clicks is 1000" in unclicked.reason
    few, _ = simulated(np.random.default_rng(4), showings=9)
    assert isinstance(evaluate(few, 0.95, 1, 1), NotJudged)


def test_the_effective_sample_size_by_hand() -> None:
    assert off_policy.effective_samples(np.ones(10)) == 10
    assert off_policy.effective_samples(np.array([1.0, 0, 0, 0])) == 1
    assert off_policy.effective_samples(np.zeros(3)) == 0
    assert off_policy.effective_samples(np.array([3.0, 1.0])) == pytest.approx(1.6)
    assert off_policy.ratios(np.array([0.9, 0.2]), np.array([0.01, 0.4])).tolist() == [off_policy.MAX_RATIO, 0.5]


def test_the_joint_propensity_is_the_policys_and_the_readers() -> None:
    logprobs = np.log(np.array([0.5, 0.3, 0.2]))
    found = shown_probabilities(logprobs, READER)
    floor = off_policy.EVEN_SHARE / 2
    second = [floor + 0.9 * 0.6, floor + 0.9 * 0.4]
    assert found == pytest.approx([0.75, 0.25 * second[0], 0.25 * second[1]])
    assert shown_probabilities(logprobs[:1], READER).tolist() == [1.0], "one answer is always shown"
    three = off_policy.variant_probabilities(logprobs, 3)
    assert three.sum(axis=1) == pytest.approx([1, 1, 1])
    assert three[2, 1] == pytest.approx(second[1], abs=0.03), "what was not second is third"


def test_the_nights_policy_draws_with_the_probabilities_that_are_assumed_of_it() -> None:
    """By frequency: the policy of generator/nightly/policies.py, 4000 times."""
    from generator.nightly.policies import ModelPolicy

    logprobs = np.array([-1.0, -1.4, -2.0, -3.5])
    answers = [answer((n,), logprob=value) for n, value in enumerate(logprobs)]
    found = np.zeros((3, 4))
    history = np.zeros((1, 2), np.float32)
    for seed in range(4000):
        for variant, choice in enumerate(ModelPolicy().choose(answers, 3, seed, history)):
            found[variant, choice.index] += 1 / 4000
    assert np.abs(found - off_policy.variant_probabilities(logprobs, 3)).max() < 0.03


def answer(codes: tuple[int, ...], logprob: float = -1.0) -> StoredAnswer:
    return StoredAnswer(codes, 0.3, 1.0, logprob, -1.0, np.array([1.0, 0.0], np.float32))


def test_a_reward_ranked_pair_is_the_best_over_the_worst_by_how_sure_the_model_is() -> None:
    answers = [answer((1,)), answer((2,)), answer(()), answer((3,))]
    mean = np.array([0.05, 0.08, 0.9, 0.02])
    sure = ExpectedClicks(mean, mean, np.eye(4) * 0.01**2)
    ranked = best_over_worst(answers, sure, 0.8)
    assert ranked is not None
    assert ranked[:2] == (1, 3), "an answer without codes is none"
    assert ranked[2] == pytest.approx(math.erf(0.06 / (0.01 * math.sqrt(2)) / math.sqrt(2)))
    assert best_over_worst(answers, ExpectedClicks(mean, mean, np.eye(4) * 0.2**2), 0.8) is None
    together = ExpectedClicks(mean, mean, np.eye(4) * 0.01**2 + 0.2**2)
    assert best_over_worst(answers, together, 0.8) == ranked, "an error that all have in common decides nothing"
    twice = np.array([0.1, 0.5])
    assert best_over_worst([answer((1,)), answer((1,))], ExpectedClicks(twice, twice, np.zeros((2, 2))), 0.8) is None
    assert best_over_worst(answers, ExpectedClicks(np.full(4, 0.1), np.zeros(4), np.zeros((4, 4))), 0.8) is None


def grid(rows: list[list[list[int]]]) -> AnswerGrid:
    """rows[user][item]: the answers as numbers."""
    users = tuple(f"u{n}" for n in range(len(rows)))
    return AnswerGrid(users, tuple(tuple(tuple((code,) for code in answers) for answers in row) for row in rows))


def test_diversity_by_hand() -> None:
    personal = diversity.measure(grid([[[n, n]] for n in range(4)]))
    assert (personal.users, personal.answers, personal.per_item) == (1.0, 0.5, 0.5)
    assert personal.information == pytest.approx(math.log(4))
    alike = diversity.measure(grid([[[7, 8]] for _ in range(4)]))
    assert alike.users == pytest.approx(0.5)
    assert alike.answers == 1.0
    assert alike.information == pytest.approx(0.0)


def test_one_taste_for_everybody_is_a_loss_and_the_same_model_is_none() -> None:
    rng = np.random.default_rng(0)
    before = grid([[rng.integers(0, 12, 4).tolist() for _ in range(3)] for _ in range(16)])
    collapsed = grid([[[5, 5, 5, 5] for _ in range(3)] for _ in range(16)])
    lost = diversity.drops(before, collapsed, 0.95)
    assert lost["user_diversity_drop"].low > 0.8
    assert lost["answer_diversity_drop"].low > 0.4
    assert lost["information_drop"].value == pytest.approx(1.0)
    same = diversity.drops(before, before, 0.95)
    assert {(one.value, one.low, one.high) for one in same.values()} == {(0.0, 0.0, 0.0)}
