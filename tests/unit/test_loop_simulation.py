"""The simulation on codes alone: arms meet the same world, and the truth is what it is said to be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from generator.feedback.clicks.examples import Showings
from generator.feedback.clicks.simulation import (
    PALETTES,
    STYLES,
    Chooser,
    Shown,
    World,
    build,
    distinct_answers,
    oracle,
    run,
)
from generator.nightly.policies import ModelPolicy
from schemas.settings import NightSettings
from tests.support.loop_simulation import Learner, chooser_of, greedy

SMALL = World(seed=3, effect=0.4, users=60, days=4)


@pytest.fixture(scope="module")
def days() -> list:
    return build(SMALL)


def test_a_world_is_the_same_again_and_another_with_another_seed(days: list) -> None:
    again, other = build(SMALL), build(World(seed=4, effect=0.4, users=60, days=4))
    assert run(again, greedy).showings.clicked.tolist() == run(days, greedy).showings.clicked.tolist()
    assert run(other, greedy).rates.tolist() != run(days, greedy).rates.tolist()


def test_arms_that_show_the_same_answer_see_the_same_click(days: list) -> None:
    policy = chooser_of(ModelPolicy(), NightSettings(policy="model"))
    model, frozen = run(days, policy), run(days, greedy)
    same = model.showings.answers == frozen.showings.answers
    assert 0.5 < same.mean() < 1
    assert (model.showings.clicked == frozen.showings.clicked)[same].all()
    assert model.explored_share == pytest.approx(0.25, abs=0.05)


def test_what_is_logged_happens_as_often_as_it_says(days: list) -> None:
    shown = run(days, chooser_of(ModelPolicy(), NightSettings(policy="model"))).showings
    assert (1 / shown.propensities).mean() == pytest.approx(
        np.mean([len(one.logprobs) for one in shown.candidates]), rel=0.15
    ), "the mean inverse propensity is the number of answers that could have been shown"


def test_the_oracle_is_above_every_arm_and_the_click_rate_is_near_eight_percent(days: list) -> None:
    assert (oracle(days) > run(days, greedy).rates).all()
    assert 0.05 < run(days, greedy).rates.mean() < 0.14
    assert 3.5 < distinct_answers(days) < 5.5
    assert all(task.truth.shape == (PALETTES * STYLES,) for task in days[0])


def test_what_was_learned_is_shown_from_the_next_night_on(days: list) -> None:
    asked: list[int] = []

    def learn(showings: Showings) -> Chooser | None:
        asked.append(len(showings))
        return last if len(asked) == 2 else None

    def last(answers: Sequence, history: object, seed: int) -> list[Shown]:
        return [Shown(len(answers) - 1, 1.0, 1.0)]

    arm, frozen = run(days, greedy, learn, after=(0, 1)), run(days, greedy)
    assert asked == [240, 480]
    assert arm.rates[:2].tolist() == frozen.rates[:2].tolist()
    assert arm.rates[2:].tolist() != frozen.rates[2:].tolist()


def test_the_products_click_model_finds_a_strong_effect_and_gains_by_it() -> None:
    """An effect of 1, so that one small world suffices."""
    days = build(World(seed=1, effect=1.0, users=120, days=6))
    learner = Learner()
    policy = chooser_of(ModelPolicy(), NightSettings(policy="model"))
    loop, frozen = run(days, policy, learner, after=(2, 3)), run(days, greedy)
    assert learner.verdicts[-1]
    assert loop.rates[-2:].mean() > 1.1 * frozen.rates[-2:].mean()
