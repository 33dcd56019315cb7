"""The simulation of the loop: one world for all arms, and figures that a killed run continues."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from generator.cli import build_app
from generator.feedback.simulation import arms as arms_module
from generator.feedback.simulation import run as running
from generator.feedback.simulation.arms import ARMS, ArmResult, retrain_nights, run_arm
from generator.feedback.simulation.drawing import Histories, Shift, answer, codes_of, look_of
from generator.feedback.simulation.learning import REACH, Retrained, minimise_dpo
from generator.feedback.simulation.log import Log
from generator.feedback.simulation.run import deciding, simulate
from generator.feedback.simulation.showing import Shown
from generator.feedback.simulation.store import Key, Plan, Store
from generator.feedback.simulation.summary import cost_of_exploring, summarise
from generator.feedback.simulation.world import LOOKS, STYLES, Draws, World
from schemas.errors import InputError
from schemas.settings import Settings

SETTINGS = Settings()
HALF_EXPLORED = Settings(night={"exploration": 0.5})
"""Settings with which readers show the other of two variants in a quarter of the showings."""
SMALL = World(seed=3, strength=0.4, users=60, nights=4)
TINY = Plan("codes", 3, 1, (1, 2), (0.4,), ("frozen_history", "loop", "oracle"), 12, 3, 40, deciding(SETTINGS))


@pytest.fixture(scope="module")
def draws() -> Draws:
    return Draws(SMALL)


def logged(draws: Draws, settings: Settings) -> Log:
    """The showings of a loop that learns nothing."""
    loop = arms_module._Loop(draws, settings)
    loop.run(())
    return loop._log


def test_a_world_is_the_same_again_and_strengths_share_all_random_numbers(draws: Draws) -> None:
    again, weaker, other = Draws(SMALL), Draws(replace(SMALL, strength=0.2)), Draws(replace(SMALL, seed=4))
    assert (again.truth == draws.truth).all()
    assert run_arm("loop", again, (), SETTINGS).clicks == run_arm("loop", draws, (), SETTINGS).clicks
    assert run_arm("loop", other, (), SETTINGS).rates != run_arm("loop", draws, (), SETTINGS).rates
    assert (weaker.common == draws.common / 2).all()
    for name in ("dice", "gumbels", "items", "catalogue", "official", "appeal"):
        assert (getattr(weaker, name) == getattr(draws, name)).all(), name
        assert (getattr(other, name) != getattr(draws, name)).any(), name


def test_an_arm_that_neither_explores_nor_learns_is_the_baseline_to_the_click(draws: Draws) -> None:
    baseline, loop = run_arm("frozen_history", draws, (), SETTINGS), run_arm("loop_unexplored", draws, (), SETTINGS)
    assert (loop.rates, loop.clicks) == (baseline.rates, baseline.clicks)
    assert loop.distinct_answers == baseline.distinct_answers
    assert run_arm("frozen", draws, (), SETTINGS).rates != baseline.rates, "clicked posters enter the history"


def test_the_oracle_is_above_every_arm_and_rates_are_a_recommenders(draws: Draws) -> None:
    arms = {name: np.array(run_arm(name, draws, (), SETTINGS).rates) for name in ("official", "frozen", "oracle")}
    assert (arms["oracle"] > arms["frozen"]).all()
    assert (arms["frozen"] > arms["official"]).all()
    assert 0.05 < arms["frozen"].mean() < 0.14
    assert 3.5 < run_arm("frozen", draws, (), SETTINGS).distinct_answers < 5.5
    assert draws.truth.shape == (4, 60, 4, LOOKS)


def test_arms_that_show_the_same_look_see_the_same_click(draws: Draws) -> None:
    exploring, best = (logged(draws, settings).tasks for settings in (HALF_EXPLORED, _one_variant()))
    looks = np.array([[look_of(task.answers[task.shown].codes) for task in tasks] for tasks in (exploring, best)])
    clicked = np.array([[task.clicked for task in tasks] for tasks in (exploring, best)])
    same = looks[0] == looks[1]
    assert 0.5 < same.mean() < 1
    assert (clicked[0] == clicked[1])[same].all()
    assert (clicked[0] != clicked[1])[~same].any()


def _one_variant() -> Settings:
    return Settings(night={"variants": 1})


def test_what_is_logged_happens_as_often_as_it_says(draws: Draws) -> None:
    tasks = logged(draws, HALF_EXPLORED).tasks
    answers = np.mean([len(task.answers) for task in tasks])
    assert np.mean([1 / task.propensity for task in tasks]) == pytest.approx(answers, rel=0.15), (
        "the mean inverse propensity is the number of answers that could have been shown"
    )


def test_what_was_learned_is_shown_from_the_next_night_on(draws: Draws, monkeypatch: pytest.MonkeyPatch) -> None:
    showings: list[int] = []

    class Last:
        def show(self, answers: Any, history: Any, seed: int, point: float) -> Shown:
            return Shown(len(answers) - 1, 1.0, 0)

    def learn(log: Log, looks: Any, reading: float, shift: Shift, *_: Any) -> Retrained:
        showings.append(len(log.tasks))
        return Retrained(Last() if len(showings) == 2 else None, shift, {})

    untaught = run_arm("loop", draws, (), SETTINGS)
    monkeypatch.setattr(arms_module, "retrain", learn)
    taught = run_arm("loop", draws, (0, 1), SETTINGS)
    assert showings == [240, 480]
    assert taught.rates[:2] == untaught.rates[:2]
    assert taught.rates[2] != untaught.rates[2]


def test_readers_explore_as_rarely_as_the_settings_say(draws: Draws) -> None:
    loop = run_arm("loop", draws, (), SETTINGS)
    often = run_arm("loop", draws, (), HALF_EXPLORED)
    shares = [sum(arm.explored) / (arm.showings * len(arm.rates)) for arm in (loop, often)]
    assert shares[0] == pytest.approx(0.03, abs=0.015)
    assert shares[1] == pytest.approx(0.25, abs=0.05)
    assert sum(often.explored) > 5 * sum(loop.explored)
    assert 0 < sum(loop.explored_loss) < 0.05 * sum(loop.clicks)


def test_the_model_answers_what_it_reads_and_what_it_learned(draws: Draws) -> None:
    histories = Histories(draws, 0)
    plain = answer(draws, 0, histories, Shift.none())
    assert plain.looks.shape == (60, 4, 8)
    palettes = histories.looks // STYLES
    most = np.array([np.bincount(row, minlength=6).max() for row in palettes])
    shown = np.array(
        [(row == palette).sum() for row, palette in zip(palettes, plain.looks[:, 0, 0] // STYLES, strict=True)]
    )
    assert (shown == most).all(), "the first answer has the history's own palette"
    moved = answer(draws, 0, histories, Shift(np.array([0, 0, 9.0, 0, 0, 0]), np.zeros(STYLES)))
    assert (moved.looks // STYLES == 2).mean() > 0.9
    assert np.exp(moved.logprobs[..., 0]).max() <= 1
    assert [look_of(codes_of(7, look)) for look in range(LOOKS)] == list(range(LOOKS))


def test_an_item_is_in_a_history_once_as_it_was_seen_last(draws: Draws) -> None:
    histories = Histories(draws, 5)
    before = histories.items[0].tolist()
    assert len(set(before)) == 5
    histories.add_poster(0, before[1], 17, 0)
    assert histories.items[0].tolist() == [before[0], *before[2:], before[1]]
    assert histories.looks[0, -1] == 17
    unseen = next(item for item in range(200) if item not in before)
    histories.add_poster(0, unseen, 3, 1)
    assert histories.items[0].tolist() == [*before[2:], before[1], unseen]
    histories.add_catalogue_clicks(0)
    clicked = int(draws.catalogue[5, 0])
    assert histories.items[0, -1] == clicked
    assert histories.looks[0, -1] == draws.official[clicked], "seen in the catalogue after that, by its own picture"


def test_the_newest_clicked_posters_are_in_a_history_up_to_the_cap(draws: Draws) -> None:
    histories, none = Histories(draws, 2), Histories(draws, 0)
    before = histories.items[0].tolist()
    unseen = [item for item in range(200) if item not in before]
    for place, item in enumerate(unseen[:3]):
        histories.add_poster(0, item, 17, place)
        none.add_poster(0, item, 17, place)
    assert histories.items[0].tolist() == [*before[2:], *unseen[1:3]]
    assert none.items[0].tolist() == before


def test_dpo_goes_its_share_of_the_way_to_the_losss_minimum() -> None:
    """With label smoothing 0.1 the minimum of pairs that all agree is at log(0.9 / 0.1) / β."""
    chosen, rejected = np.full(500, 0), np.full(500, STYLES)
    for beta in (1.0, 0.5):
        shift = minimise_dpo(chosen, rejected, np.ones(500), beta, 0.1)
        assert shift.palettes[0] - shift.palettes[1] == pytest.approx(REACH * math.log(9) / beta, rel=0.01)
        assert np.abs(shift.styles).max() < 1e-9


def test_a_strong_effect_is_learned_and_none_costs_little() -> None:
    """Small worlds; the effect is three times the largest that figures are given for."""
    world = World(seed=1, strength=1.2, users=120, nights=6)
    strong, nothing = Draws(world), Draws(replace(world, strength=0.0))
    lifts = {}
    for name, draws in (("strong", strong), ("nothing", nothing)):
        base, loop = (run_arm(arm, draws, (1, 3), SETTINGS) for arm in ("frozen_history", "loop"))
        lifts[name] = np.mean(loop.rates[-2:]) / np.mean(base.rates[-2:]) - 1
        assert [record["after_night"] for record in loop.retrains] == [2, 4]
    assert lifts["strong"] > 0.2
    assert lifts["nothing"] > -0.03


def test_the_products_click_model_finds_a_strong_effect_and_gains_by_it() -> None:
    """An effect of 1, so that one small world suffices; the frozen arm reads catalogue clicks only."""
    draws = Draws(World(seed=1, strength=1.0, users=120, nights=6))
    loop, frozen = run_arm("loop", draws, (2, 3), SETTINGS), run_arm("frozen", draws, (), SETTINGS)
    assert loop.retrains[-1]["click_model"] == "active"
    assert np.mean(loop.rates[-2:]) > 1.1 * np.mean(frozen.rates[-2:])


def test_retrains_are_spread_and_leave_the_last_nights_to_show_them() -> None:
    assert retrain_nights(10, 3) == (2, 4, 6)
    assert retrain_nights(3, 1) == (1,)
    assert retrain_nights(5, 0) == ()


def test_a_killed_run_continues_and_comes_to_the_same_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(TINY, tmp_path / "whole", SETTINGS, lambda line: None)
    ran: list[str] = []

    def killed(name: str, *arguments: Any) -> ArmResult:
        ran.append(name)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return run_arm(name, *arguments)

    monkeypatch.setattr(running, "run_arm", killed)
    with pytest.raises(KeyboardInterrupt):
        simulate(TINY, tmp_path / "killed", SETTINGS, lambda line: None)
    continued = simulate(TINY, tmp_path / "killed", SETTINGS, lambda line: None)
    assert len(ran) == 7, "three before, one that was killed, and the three that were left"
    assert repr(continued.figures) == repr(whole.figures)
    documents = [json.loads((tmp_path / name / "figures.json").read_text()) for name in ("whole", "killed")]
    assert documents[0]["strengths"] == documents[1]["strengths"]


def test_a_folder_goes_on_with_more_seeds_and_not_with_other_options(tmp_path: Path) -> None:
    Store(tmp_path, TINY)
    Store(tmp_path, replace(TINY, seeds=(1, 2, 3), arms=("official",)))
    with pytest.raises(InputError, match="nights: 3 there, 4 now"):
        Store(tmp_path, replace(TINY, nights=4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": ("loop", "lop")}, "--arm lop: there is no such arm"),
        ({"retrains": 3}, "--retrains 3: fewer than --nights 3"),
        ({"showings": 41}, "--showings 41: .* --items is 40"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        simulate(replace(TINY, **change), tmp_path, SETTINGS, lambda line: None)


def _result(rate: float) -> ArmResult:
    return ArmResult(
        rates=[0.05, rate, rate, rate], clicks=[1] * 4, explored=[0] * 4, explored_loss=[0.0] * 4, showings=100
    )


def test_lifts_gaps_and_costs_are_paired_by_seed() -> None:
    results = {
        "frozen_history": {1: _result(0.10), 2: _result(0.08)},
        "loop": {1: _result(0.11), 2: _result(0.10)},
        "loop_unexplored": {1: _result(0.12)},
        "oracle": {1: _result(0.15), 2: _result(0.12)},
    }
    found = {one.arm: one for one in summarise(results)}
    loop = found["loop"]
    assert list(found) == [name for name in ARMS if name in results]
    assert loop.lift is not None
    assert loop.lift.value == pytest.approx((0.10 + 0.25) / 2)
    assert loop.lift.low < loop.lift.value < loop.lift.high
    assert loop.gap_closed is not None
    assert loop.gap_closed.value == pytest.approx((0.10 + 0.25) / (0.5 + 0.5))
    assert loop.regret == pytest.approx(1000 * (0.04 + 0.02) / 2)
    cost = cost_of_exploring(results)
    assert cost is not None
    assert cost.value == pytest.approx(0.03 / 0.41)
    assert math.isnan(cost.low), "one seed has no interval"
    assert found["frozen_history"].lift is None


def test_the_command_prints_a_table_and_leaves_figures_and_a_plot(tmp_path: Path) -> None:
    options = [
        "--nights",
        "3",
        "--retrains",
        "1",
        "--seeds",
        "1",
        "--users",
        "12",
        "--strength",
        "0.4",
        "--out",
        str(tmp_path),
    ]
    result = CliRunner().invoke(build_app(), ["simulate", *options])
    assert result.exit_code == 0, result.output
    assert "| 0.4 | loop |" in result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {one["arm"] for one in figures["strengths"]["0.4"]} == set(ARMS)
    assert Key(0.4, 0, "loop").file_name in {path.name for path in (tmp_path / "runs").iterdir()}
    plot = ElementTree.parse(tmp_path / "plot.svg").getroot()  # noqa: S314 - our own
    assert len(plot.findall("{http://www.w3.org/2000/svg}polyline")) == len(ARMS) - 1
    again = CliRunner().invoke(build_app(), ["simulate", *options])
    assert "6 of 6 runs are there already" in again.output
