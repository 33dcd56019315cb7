"""Planted challengers before gate and canary: a small run, and what was recorded of the long one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from generator.feedback import off_policy
from tests.support import challengers
from tests.support.challengers import PLANTED_LIFT, USERS, build, challenge, horizon_of, run, show

RECORDED = Path(__file__).parents[2] / "deploy/models/nano/evaluation/loop/challengers.json"


@pytest.mark.timeout(600)
def test_of_planted_challengers_the_better_are_promoted_and_the_worse_are_not() -> None:
    found = run(6)
    assert found["worse"]["by_kind"] == {"coins": 2, "shuffled": 2, "others": 2}
    assert found["worse"]["passed_the_gate"] <= 1
    assert found["worse"]["promoted"] == 0
    assert found["better"]["passed_the_gate"] >= 5
    assert found["better"]["promoted"] >= 4
    assert all(one["true_lift"] == pytest.approx(PLANTED_LIFT) for one in found["outcomes"] if one["kind"] == "better")


def test_the_recorded_long_run_keeps_its_promises_and_is_of_this_world() -> None:
    recorded = json.loads(RECORDED.read_text())
    assert recorded["written_down_before"]["horizon_days"] == horizon_of(PLANTED_LIFT)
    assert (recorded["worse"]["challengers"], recorded["better"]["challengers"]) == (20, 20)
    assert recorded["worse"]["passed_the_gate"] <= 1
    assert recorded["worse"]["promoted"] == 0
    assert recorded["better"]["promoted"] >= 15
    first = recorded["outcomes"][0]
    again = challenge(first["kind"], first["seed"], 1)
    assert (again.passed, again.true_lift) == (first["passed"], pytest.approx(first["true_lift"]))


def test_the_log_of_the_world_is_logged_as_the_policy_and_the_reader_did_it() -> None:
    world = build(3, 0.0)
    log = show(world, np.random.default_rng(3))
    answers = log.answers[5, 7]
    expected = off_policy.shown_probabilities(world.champion[5, answers], challengers.READER)
    assert log.propensities[5, 7] == pytest.approx(expected[log.shown[5, 7]])
    assert 0.03 < log.clicked.mean() < 0.14
    users, chosen, rejected = log.pairs()
    assert len(users) > USERS
    assert (chosen != rejected).all()
