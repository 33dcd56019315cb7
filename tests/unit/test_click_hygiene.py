"""Which showings count: robots and what is past the caps are left out, and counted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from generator.feedback.clicks.examples import Showings, build
from generator.feedback.clicks.fit import fit
from generator.feedback.clicks.hygiene import LoggedShowing, clean, find_robots
from schemas.settings_loop import ClickSettings
from tests.support.click_world import WIDTH, candidates_of, planted

START = datetime(2026, 11, 2, 8, tzinfo=UTC)
SETTINGS = ClickSettings()


def showing(user: str, minute: int, *, clicked: bool = False, day: int = 0) -> LoggedShowing:
    moment = START + timedelta(days=day, minutes=minute)
    return LoggedShowing(user, f"i{minute}", "run", (1, 2), moment, 0, "home", 0.5, clicked)


def test_people_are_kept_as_they_are() -> None:
    rows = [showing("u", n, clicked=n % 3 == 0, day=n % 4) for n in range(40)]
    kept, counts = clean(rows, SETTINGS)
    assert sorted(kept, key=id) == sorted(rows, key=id)
    assert counts == {"robots": 0, "showings_of_robots": 0, "showings_past_the_cap": 0}


def test_who_is_shown_too_much_on_one_day_is_a_robot() -> None:
    settings = ClickSettings(robot_daily_showings=100)
    busy = [showing("busy", n) for n in range(101)]
    spread = [showing("spread", n, day=n % 2) for n in range(180)]
    assert find_robots([*busy, *spread], settings) == {"busy"}
    kept, counts = clean([*busy, showing("u", 1)], settings)
    assert [one.user_id for one in kept] == ["u"]
    assert (counts["robots"], counts["showings_of_robots"]) == (1, 101)


def test_who_clicks_nearly_everything_is_a_robot_and_a_keen_newcomer_is_not() -> None:
    robot = [showing("robot", n, clicked=n != 3, day=n) for n in range(40)]
    keen = [showing("keen", n, clicked=True) for n in range(SETTINGS.robot_min_showings - 1)]
    fond = [showing("fond", n, clicked=n % 5 != 0, day=n) for n in range(100)]
    assert find_robots([*robot, *keen, *fond], SETTINGS) == {"robot"}


def test_only_the_first_showings_of_a_user_and_day_count() -> None:
    settings = ClickSettings(daily_cap=5)
    rows = [showing("u", n, day=day) for day in (0, 1) for n in range(8)]
    kept, counts = clean(rows, settings)
    assert [(one.shown_at.day, one.item_id) for one in kept] == [(day, f"i{n}") for day in (2, 3) for n in range(5)]
    assert counts["showings_past_the_cap"] == 6


def test_a_robot_that_no_rule_finds_moves_no_prediction_by_more_than_a_deviation() -> None:
    """Bound: the posterior deviation of an answer's log-odds.

    The robot clicks 80 % of 20 showings a day, always one direction's.
    """
    honest = planted([0.5, 0.0, 0.0, 0.0, 0.0], showings=6_000)
    rng = np.random.default_rng(1)
    robots = tuple(candidates_of(rng) for _ in range(200))
    wanted = [int(one.previews[:, 1].argmax()) for one in robots]
    shown = rng.integers(0, 4, 200)
    joined = Showings(
        users=np.concatenate([honest.users, np.full(200, "robot")]),
        items=np.concatenate([honest.items, np.full(200, "i1")]),
        tasks=np.arange(6_200),
        answers=np.concatenate([honest.answers, shown]),
        clicked=np.concatenate([honest.clicked, (shown == wanted) | (rng.random(200) < 0.7)]),
        days=np.concatenate([honest.days, np.repeat(np.arange(10), 20) + 739_000]),
        positions=np.concatenate([honest.positions, np.zeros(200, int)]),
        surfaces=np.full(6_200, "home"),
        propensities=np.full(6_200, 0.25),
        candidates=(*honest.candidates, *robots),
    )
    order = np.argsort(joined.days, kind="stable")
    names = ("users", "items", "tasks", "answers", "clicked", "days", "positions", "surfaces", "propensities")
    joined = replace(joined, **{name: getattr(joined, name)[order] for name in names})
    before, after = (fit(build(one, 5.0), np.array([0.0, 1.0]), "b") for one in (honest, joined))
    for _ in range(50):
        task = candidates_of(rng)
        found, moved = before.utilities(task), after.utilities(task)
        assert np.abs(moved.mean - found.mean).max() < np.sqrt(np.diag(found.covariance)).max() + 0.05
    assert len(before.weights) >= WIDTH
