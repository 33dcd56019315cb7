"""Nights that choose by a click model: activated, resumed, damaged, retired."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
import pytest
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session

from generator.feedback.clicks import versions
from generator.feedback.clicks.learning import learn_clicks
from generator.nightly.plan import Scope
from schemas.answers import AnswerSet as Answers
from schemas.settings import Settings
from schemas.tables import AnswerSet, ClickModel, NightRun, Poster, PosterFeedback
from tests.support.night_world import NIGHT, build, night, reader, set_user

pytestmark = pytest.mark.integration
FEEDBACK_DAYS, SHOWINGS = 8, 6
STOP = datetime(2026, 3, 12, tzinfo=UTC)
USERS = 20


def brightness(answer_set: Answers, codes: tuple[int, ...]) -> float:
    """How many deviations a preview's first value is above those of the task's other answers."""
    first = {answer.codes: float(answer.preview[0]) for answer in answer_set.answers}
    values = np.array(list(first.values()))
    return float((first[codes] - values.mean()) / (values.std() + 1e-6))


def click(engine: Engine) -> None:
    """Users click on what is bright on the left, for some days."""
    rng = np.random.default_rng(0)
    events = []
    with Session(engine) as session, session.begin():
        answers = {
            (row.user_id, row.item_id): Answers.unpack(row.answers) for row in session.scalars(select(AnswerSet))
        }
        for poster in session.scalars(select(Poster).order_by(Poster.poster_id)):
            liked = brightness(answers[poster.user_id, poster.item_id], tuple(poster.tokens))
            for number in range(FEEDBACK_DAYS * SHOWINGS):
                if rng.random() > poster.propensity:
                    continue
                at = datetime(2026, 3, 1, 8, tzinfo=UTC) + timedelta(days=number % FEEDBACK_DAYS, minutes=number)
                actions = (
                    ["impression", "click"] if rng.random() < 1 / (1 + np.exp(1.0 - 1.5 * liked)) else ["impression"]
                )
                events += [
                    {
                        "event_id": uuid5(UUID(int=0), f"{poster.poster_id}/{number}/{action}"),
                        "poster_id": poster.poster_id,
                        "user_id": poster.user_id,
                        "item_id": poster.item_id,
                        "action": action,
                        "occurred_at": at + timedelta(seconds=second),
                    }
                    for second, action in enumerate(actions)
                ]
        session.execute(insert(PosterFeedback), events)


def move_on(engine: Engine, turn: int) -> None:
    """Every user clicks something new, so that the next night draws for all."""
    with Session(engine) as session, session.begin():
        for number in range(USERS):
            set_user(session, f"u{number}", [f"item{(number + step + turn) % 8}" for step in range(4)])


def run_of(engine: Engine, day: date) -> NightRun:
    with Session(engine) as session:
        return session.scalars(select(NightRun).where(NightRun.logical_date == day)).one()


def choosers(engine: Engine, run_id: str) -> set[str]:
    """Who chose among the answers of a run's tasks."""
    query = text(
        "SELECT a.answers FROM night_tasks t JOIN answer_sets a ON a.user_id = t.user_id AND a.item_id = t.item_id "
        "AND a.answers_fingerprint = t.answers_fingerprint AND a.weights = t.weights WHERE t.run_id = :run"
    )
    with Session(engine) as session:
        return {Answers.unpack(bytes(row.answers)).chooser for row in session.execute(query, {"run": run_id})}


def test_nights_choose_by_the_active_click_model_and_by_themselves_without(
    settings: Settings, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # One night's posters are all that is learned from, so they are explored much.
    settings = settings.model_copy(update={"night": settings.night.model_copy(update={"exploration": 0.5})})
    build(settings, tmp_path / "art", users=USERS, targets=2)
    night(settings).run(Scope())
    first = run_of(engine, NIGHT)
    assert (first.settings["recipe"]["policy"], first.settings["click_model"]) == ("model", None)
    assert choosers(engine, first.run_id) == {"model 1"}
    click(engine)
    learned = learn_clicks(engine, settings.clicks, STOP, lambda _: None)
    assert learned.state == "active", learned.reason

    move_on(engine, 1)
    night(settings, on=NIGHT + timedelta(days=1)).run(Scope())
    second = run_of(engine, NIGHT + timedelta(days=1))
    assert (second.settings["recipe"]["policy"], second.settings["click_model"]) == ("reward", learned.model.model_id)
    assert choosers(engine, second.run_id) == {"reward 1"}
    rows = [row for row in reader(settings).rows().to_pylist() if row["drawn_by_run"] == second.run_id]
    assert {row["explored"] for row in rows if row["variant"] == 0} == {False}
    assert {row["explored"] for row in rows if row["variant"] == 1} == {True}
    tasks: dict[tuple[str, str], float] = {}
    for row in rows:
        assert 0 < row["propensity"] <= 1
        tasks[row["user_id"], row["item_id"]] = tasks.get((row["user_id"], row["item_id"]), 0) + row["propensity"]
    assert list(tasks.values()) == pytest.approx([1.0] * len(tasks))
    assert second.figures["last_session"]["posters_explored"] == sum(row["explored"] for row in rows)
    assert liked(engine, second.run_id) > liked(engine, first.run_id) + 0.3, "deviations of what users click"

    night(settings, on=NIGHT + timedelta(days=1)).run(Scope())  # nothing is left: the same night again
    with Session(engine) as session, session.begin():
        session.execute(text("UPDATE click_models SET artifact = substr(artifact, 1, 100)"))
    move_on(engine, 2)
    night(settings, on=NIGHT + timedelta(days=2)).run(Scope())
    assert choosers(engine, run_of(engine, NIGHT + timedelta(days=2)).run_id) == {"model 1"}
    assert "click model 1: click model: 100 bytes that are none" in caplog.text

    with Session(engine) as session, session.begin():
        versions.retire(session, "the test is over")
    with Session(engine) as session, session.begin():
        session.execute(insert(ClickModel), [_under_another_id(learned.model.pack())])
    move_on(engine, 3)
    night(settings, on=NIGHT + timedelta(days=3)).run(Scope())
    assert choosers(engine, run_of(engine, NIGHT + timedelta(days=3)).run_id) == {"model 1"}
    assert "click model 2 is damaged" in caplog.text


def _under_another_id(artifact: bytes) -> dict[str, object]:
    return {
        "model_id": "another",
        "number": 2,
        "state": "active",
        "reason": "",
        "base_weights": "another",
        "artifact": artifact,
        "window_start": STOP,
        "window_end": STOP,
    }


def liked(engine: Engine, run_id: str) -> float:
    """How bright the first variants of a run are, in deviations of their tasks' answers."""
    with Session(engine) as session:
        answers = {
            (row.user_id, row.item_id, answer.codes): Answers.unpack(row.answers)
            for row in session.scalars(select(AnswerSet))
            for answer in Answers.unpack(row.answers).answers
        }
        posters = session.scalars(select(Poster).where(Poster.run_id == run_id, Poster.variant == 0))
        found = [(answers.get((p.user_id, p.item_id, tuple(p.tokens))), tuple(p.tokens)) for p in posters]
        return float(np.mean([brightness(one, codes) for one, codes in found if one is not None]))
