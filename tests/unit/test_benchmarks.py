"""What the benchmarks compute rather than measure: verdicts, and what more users would need."""

from __future__ import annotations

import math

import pytest

from tests.benchmarks.simulated import Asked, Novelty, simulate
from tests.benchmarks.table import Figure, table


@pytest.mark.parametrize(
    ("value", "goal", "verdict"),
    [(3.5, ">= 3.5", "met"), (3.4, ">= 3.5", "missed"), (1.0, "<= 1", "met"), (1.1, "<= 1", "missed"), (7, "", "")],
)
def test_a_figure_says_whether_its_goal_is_met(value: float, goal: str, verdict: str) -> None:
    figure = Figure("row", "what", value, goal, "how")
    assert figure.verdict == verdict
    assert table([figure]).splitlines()[2] == f"| row | what | {value:.2f} | {goal} | {verdict} | how |"


@pytest.mark.parametrize("novelty", [Novelty(0.5, 0.0), Novelty(3.0, 0.4), Novelty(32.0, 0.9)])
def test_the_ways_in_which_three_answers_can_be_alike_add_up_to_one(novelty: Novelty) -> None:
    ways = {(3,): 1, (2, 1): 3, (1, 1, 1): 1}
    assert sum(count * math.exp(novelty.log_likelihood(way)) for way, count in ways.items()) == pytest.approx(1)
    assert novelty.chance(2, 1) == pytest.approx((novelty.strength + novelty.discount) / (novelty.strength + 2))


def asked(item: str, *codes: int) -> Asked:
    return Asked(item, tuple((code,) for code in codes), len(codes))


def test_answers_that_repeat_are_fitted_with_less_novelty_than_answers_that_do_not() -> None:
    alike = Novelty.fitted([asked("a", 1, 2) for _ in range(20)])
    apart = Novelty.fitted([asked("a", number, number + 1000) for number in range(20)])
    assert alike.chance(40, 2) < 0.1
    assert apart.chance(40, 40) > 0.8


def test_more_users_of_the_same_items_need_fewer_pictures_per_poster() -> None:
    tasks = [asked("a", 1, 2), asked("a", 1, 3), asked("b", 4), asked("b", 5, 4)]
    novelty = Novelty.fitted(tasks)
    few, many = ({f"u{number}": ["a", "b"] for number in range(users)} for users in (5, 500))
    assert simulate(many, tasks, novelty, seed=1).per_poster < simulate(few, tasks, novelty, seed=1).per_poster
    assert simulate(few, tasks, novelty, seed=1) == simulate(few, tasks, novelty, seed=1)


def test_the_answers_of_one_task_are_different_pictures() -> None:
    task = asked("a", 1, 2, 3)
    assert simulate({"u": ["a"]}, [task], Novelty(2.0**-6, 0.0), seed=0).pictures == 3
