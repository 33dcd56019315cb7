"""From feedback in a real Postgres to a click model, and to what drawn posters are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from subprocess import CompletedProcess

import numpy as np
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from generator.feedback.clicks import showings, versions
from generator.feedback.clicks.learning import learn_clicks
from generator.worth import estimate
from schemas.control import control_poster_id
from schemas.errors import Refused
from schemas.settings_loop import ClickSettings
from schemas.tables import ClickModel, Erasure
from tests.support.click_log import BASE_WEIGHTS, NOON, STOP, ClickLog

pytestmark = pytest.mark.integration

EFFECT = (1.2, 0.0, 0.0, 0.0, 0.0)
SETTINGS = ClickSettings()
WINDOW = (STOP - timedelta(days=28), STOP)


def read(engine: Engine, stop: datetime = STOP, settings: ClickSettings = SETTINGS) -> showings.Read:
    with Session(engine) as session:
        return showings.read(session, WINDOW[0], stop, BASE_WEIGHTS, settings)


def shown(engine: Engine, **options: object) -> list[tuple[str, int, bool]]:
    """User, position and outcome of the showings that count."""
    found = read(engine, **options).showings
    if found is None:
        return []
    rows = zip(found.users, found.positions, found.clicked, strict=True)
    return [(str(user), int(position), bool(clicked)) for user, position, clicked in rows]


def test_a_single_showing_counts_with_its_answer_and_propensity(engine: Engine) -> None:
    log = ClickLog(engine)
    posters = log.task("u", "x", seed=4)
    log.write(
        log.event(posters[2], "impression", position=3, surface="home"),
        log.event(posters[2], "click", NOON + timedelta(hours=23)),
    )
    found = read(engine)
    assert found.showings is not None
    assert shown(engine) == [("u", 3, True)]
    assert found.showings.propensities == pytest.approx([0.5 * 0.25], rel=1e-6)
    assert (found.showings.answers.tolist(), found.showings.surfaces.tolist()) == ([2], ["home"])
    assert found.showings.candidates[0].previews.shape == (4, 5)
    assert (found.counts["used"], found.counts["clicks"], found.counts["showings_without_answers"]) == (1, 1, 0)


def test_a_showing_waits_for_its_attribution_window_and_a_late_click_counts(engine: Engine) -> None:
    log = ClickLog(engine)
    (poster, *_) = log.task("u", "x")
    log.write(log.event(poster, "impression"), log.event(poster, "click", NOON + timedelta(hours=20)))
    early = NOON + timedelta(hours=23)
    assert shown(engine, stop=early) == []
    assert read(engine, stop=early).counts["showings_still_open"] == 1
    assert shown(engine, stop=NOON + timedelta(hours=25)) == [("u", -1, True)]
    short = ClickSettings(attribution_hours=10)
    assert shown(engine, settings=short) == [("u", -1, False)], "the click came after the window"
    assert read(engine, settings=short).counts["reactions_without_a_showing"] == 1


def test_repetitions_are_one_showing_and_a_click_belongs_to_its_request(engine: Engine) -> None:
    log = ClickLog(engine)
    (poster, *_) = log.task("u", "x")
    minute = timedelta(minutes=1)
    log.write(
        log.event(poster, "impression", NOON, request_id="r1", position=1),
        log.event(poster, "impression", NOON + minute, request_id="r1", position=1),  # reported again
        log.event(poster, "impression", NOON + 2 * minute, request_id="r2", position=2),
        log.event(poster, "click", NOON + 3 * minute, request_id="r1"),
        log.event(poster, "impression", NOON + 4 * minute, position=4),
        log.event(poster, "impression", NOON + 4 * minute, position=4),  # one moment, two events
        log.event(poster, "click", NOON + 5 * minute),
        log.event(poster, "dismiss", NOON + 6 * minute),
    )
    assert shown(engine) == [("u", 1, True), ("u", 2, False), ("u", 4, False)]
    assert read(engine).counts["repeated_impressions"] == 2


def test_control_showings_other_checkpoints_and_erased_users_teach_nothing(engine: Engine) -> None:
    log, other = ClickLog(engine), ClickLog(engine, "another", date(2026, 11, 1))
    (mine, *_), (theirs, *_), (gone, *_) = log.task("u", "x"), other.task("v", "x"), log.task("w", "x")
    control = control_poster_id("x")
    log.write(
        log.event(mine, "impression"),
        log.event(theirs, "impression"),
        log.event(gone, "impression"),
        log.event(control, "impression", who=("c", "x")),
        log.event(mine, "impression", who=("thief", "x")),
    )
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="w", requested_at=NOON + timedelta(days=400)))
    assert shown(engine) == [("u", -1, False)]
    with Session(engine) as session, session.begin():
        session.execute(text("DELETE FROM answer_sets"))
    assert shown(engine) == []
    assert read(engine).counts["showings_without_answers"] == 1


def test_of_too_many_users_a_part_is_taken(engine: Engine) -> None:
    log = ClickLog(engine)
    log.fill(EFFECT, users=60, showings=20)
    everybody = {user for user, _, _ in shown(engine)}
    assert len(everybody) == 60
    part = {user for user, _, _ in shown(engine, settings=ClickSettings(max_showings=1_000))}
    assert part < everybody
    assert 35 < len(part) < 60, "1,000 of 1,200 showings, by whole users"


def test_a_planted_effect_becomes_the_active_model_and_again_changes_nothing(engine: Engine) -> None:
    ClickLog(engine).fill(EFFECT)
    lines: list[str] = []
    dry = learn_clicks(engine, SETTINGS, STOP, lines.append, dry_run=True)
    with Session(engine) as session:
        assert versions.list_models(session) == []
    learned = learn_clicks(engine, SETTINGS, STOP, lines.append)
    assert (learned.state, learned.number) == ("active", 1)
    assert dry.model.model_id == learned.model.model_id
    assert "gain +" in lines[-2]
    assert lines[-1].startswith("click model 1 is active: better than the base rate")
    assert learn_clicks(engine, SETTINGS, STOP, lines.append).number == 1
    with Session(engine) as session:
        (row,) = versions.list_models(session)
        assert row.metrics["gain_low"] > 0
        assert row.counts["used"] == 2_400
        assert row.window_end == STOP


def test_a_robot_neither_becomes_data_nor_changes_the_model(engine: Engine) -> None:
    log = ClickLog(engine)
    log.fill(EFFECT, users=40, showings=30)
    before = learn_clicks(engine, SETTINGS, STOP, lambda _: None, dry_run=True)
    (poster, *_) = log.task("robot", "i1")
    events = []
    for number in range(200):
        at = NOON + timedelta(minutes=number)
        events += [log.event(poster, "impression", at), log.event(poster, "click", at + timedelta(seconds=1))]
    log.write(*events)
    after = learn_clicks(engine, SETTINGS, STOP, lambda _: None, dry_run=True)
    assert after.model.model_id == before.model.model_id
    assert (after.counts["robots"], after.counts["showings_of_robots"]) == (1, 200)


def test_what_later_days_contradict_is_refused_and_the_active_model_stays(engine: Engine) -> None:
    log = ClickLog(engine)
    log.fill(EFFECT, later=[-one for one in EFFECT])
    with Session(engine) as session, session.begin():
        session.add(_row("earlier", 1, "active"))
    lines: list[str] = []
    learned = learn_clicks(engine, SETTINGS, STOP, lines.append)
    assert learned.state == "refused"
    assert "click model 2 is refused: predictions run against what was clicked" in lines[-1]
    with Session(engine) as session:
        active = versions.get_active(session)
        assert active is not None
        assert active.model_id == "earlier"
        assert [(row.number, row.state) for row in versions.list_models(session)] == [(1, "active"), (2, "refused")]


def test_too_few_clicks_are_refused_with_what_is_missing(engine: Engine) -> None:
    with pytest.raises(Refused, match="no published night yet"):
        learn_clicks(engine, SETTINGS, STOP, lambda _: None)
    log = ClickLog(engine)
    log.fill(EFFECT, users=5, showings=10)
    with pytest.raises(Refused, match=r"clicks on drawn posters, 100 are needed .*about \d+ more days"):
        learn_clicks(engine, SETTINGS, STOP, lambda _: None)


def test_at_most_one_model_is_active_and_retiring_needs_one(engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.add(_row("a", 1, "active"))
    with Session(engine) as session, session.begin():
        assert versions.retire(session, "tried") == 1
    with Session(engine) as session, session.begin(), pytest.raises(Refused, match="no click model is active"):
        versions.retire(session, "again")
    with Session(engine) as session:
        assert [(row.state, row.reason) for row in versions.list_models(session)] == [("retired", "tried")]


def _row(model_id: str, number: int, state: str) -> ClickModel:
    return ClickModel(
        model_id=model_id,
        number=number,
        state=state,
        reason="r",
        base_weights="b",
        artifact=b"",
        window_start=NOON,
        window_end=NOON,
    )


def test_the_commands_tell_what_was_found(engine: Engine, pigeon: Callable[..., CompletedProcess[str]]) -> None:
    empty = pigeon("loop", "models")
    assert (empty.returncode, "no click models yet" in empty.stdout) == (0, True)
    nothing = pigeon("loop", "worth", "--until", STOP.isoformat())
    assert nothing.returncode == 8
    assert "no showing of the control group was reported" in nothing.stderr
    assert pigeon("loop", "fit", "--until", "tomorrow").returncode == 2
    log = ClickLog(engine)
    log.fill(EFFECT)
    fitted = pigeon("loop", "fit", "--until", STOP.isoformat())
    assert fitted.returncode == 0, fitted.stderr
    assert "click model 1 is active" in fitted.stdout
    (row,) = json.loads(pigeon("loop", "models", "--json").stdout)
    assert (row["number"], row["state"]) == (1, "active")
    assert pigeon("loop", "retire", "--reason", " ").returncode == 2
    assert "click model 1 is retired" in pigeon("loop", "retire", "--reason", "a trial").stdout

    events = []
    for number in range(30):
        who = (f"control{number}", "x")
        for step in range(20):
            at = NOON + timedelta(minutes=10 * step)
            events.append(log.event(control_poster_id("x"), "impression", at, who=who, propensity=0.3))
            if step == 0:
                events.append(log.event(control_poster_id("x"), "click", at + timedelta(seconds=9), who=who))
    log.write(*events)
    found = json.loads(pigeon("loop", "worth", "--until", STOP.isoformat(), "--json").stdout)
    assert (found["control_users"], found["drawn_users"]) == (30, 60)
    assert (found["control_showings"], found["control_rate"]) == (600, pytest.approx(0.05))
    assert 0 < found["lift_low"] < found["lift"] < found["lift_high"]
    assert not found["doubtful"]
    words = pigeon("loop", "worth", "--until", STOP.isoformat()).stdout
    assert words.startswith("drawn posters are clicked ")


def test_the_interval_of_the_worth_holds_the_truth_and_lost_showings_are_noticed() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(60):
        groups = []
        for users, rate in ((100, 0.06), (1_000, 0.075)):
            shown = rng.integers(5, 60, users)
            rates = np.clip(rng.normal(rate, 0.02, users), 0, 1)
            groups.append(np.stack([shown, rng.binomial(shown, rates)], axis=1).astype(float))
        found = estimate(*groups, expected_share=100 / 1_100, seed=seed)
        inside += found.lift_low < 0.25 < found.lift_high
        assert not found.doubtful
    assert inside >= 53
    assert estimate(groups[0][:40], groups[1], expected_share=0.09).doubtful
    assert "in doubt" in estimate(groups[0][:40], groups[1], expected_share=0.09).words
