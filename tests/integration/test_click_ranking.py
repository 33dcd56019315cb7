"""A retraining's click model without held-out users, over all stored answers; and robots."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import pairs
from generator.feedback.canary_clicks import position, read_users
from generator.feedback.canary_test import look
from generator.feedback.clicks.ranking import AnswerRanking, fit_ranking
from generator.feedback.reward_pairs import AnsweredTask, best_over_worst
from generator.feedback.split import is_held_out
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings, load_settings
from schemas.settings_loop import ClickSettings
from tests.support.click_log import NOON, STOP, ClickLog
from tests.support.click_world import candidates_of, stored, truth
from tests.support.loop_world import MORNING, WINDOW, filled

pytestmark = pytest.mark.integration
EFFECT = (1.2, 0.0, 0.0, 0.0, 0.0)
PROMPT = PromptSnapshot(
    history_titles=("Heat",), history_tokens=((1,),), title="x", description="", reference_tokens=(3,)
)
USERS = 60


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


def task_of(log: ClickLog, number: int, run_id: str | None = None) -> AnsweredTask:
    answers = stored(candidates_of(np.random.default_rng(number)))
    answers.append(answers[0])  # sampled twice
    return AnsweredTask(run_id or log.run_id, f"u{number}", f"i{number % 7}", 7, PROMPT, tuple(answers), NOON)


def test_it_ranks_all_answers_by_what_was_planted_and_knows_how_sure_it_is(engine: Engine, settings: Settings) -> None:
    log = ClickLog(engine)
    log.fill(EFFECT, users=USERS)
    echoed: list[str] = []
    ranking = fit_ranking(engine, settings, STOP, echoed.append)
    assert isinstance(ranking, AnswerRanking)
    assert "users who are not held out ranks the answers of all tasks" in echoed[-1]
    tasks = [task_of(log, number) for number in range(USERS)]
    right = certain = 0
    for number, expected in enumerate(ranking(tasks)):
        assert expected.mean[0] == expected.mean[4], "the same answer twice is one answer"
        assert expected.certainty(0, 4) == 0.5
        planted = truth(candidates_of(np.random.default_rng(number)), EFFECT)
        ranked = best_over_worst(tasks[number].answers, expected, 0.8)
        if ranked is not None:
            certain += 1
            right += planted[ranked[0] % 4] > planted[ranked[1] % 4]
    assert certain > USERS / 2
    assert right / certain > 0.9
    (unknown,) = ranking([task_of(log, 3, run_id="another")])
    assert len(set(unknown.mean.tolist())) == 1
    assert best_over_worst(tasks[3].answers, unknown, 0.5) is None, "of a task that is not stored nothing is known"


def test_held_out_users_have_taught_it_nothing(engine: Engine, settings: Settings) -> None:
    log = ClickLog(engine)
    log.fill(EFFECT, users=USERS)
    before = fit_ranking(engine, settings, STOP, lambda line: None)
    held = [f"u{n}" for n in range(200) if is_held_out(f"u{n}", settings.retrain.holdout_share)]
    events = []
    for user in held[:10]:
        posters = log.task(user, "other")
        for step in range(29):
            at = NOON + timedelta(hours=step)
            events.append(log.event(posters[step % 4], "impression", at))
            events.append(log.event(posters[step % 4], "click", at + timedelta(minutes=1)))
    log.write(*events)
    after = fit_ranking(engine, settings, STOP, lambda line: None)
    assert before is not None
    assert after is not None
    assert after._model.model_id == before._model.model_id


def test_without_enough_clicks_or_an_effect_there_is_none_and_it_says_why(engine: Engine, settings: Settings) -> None:
    echoed: list[str] = []
    assert fit_ranking(engine, settings, STOP, echoed.append) is None
    assert "no published night yet" in echoed[-1]
    ClickLog(engine).fill([0.0] * 5, users=USERS)
    assert fit_ranking(engine, settings, STOP, echoed.append) is None
    assert "is refused: no better than the base rate" in echoed[-1]


def test_robots_move_neither_pairs_nor_canary(engine: Engine) -> None:
    """One clicks all that it is shown, one is shown more in a day than people are; the eager are capped."""
    night = filled(engine, users=40)
    rules = ClickSettings(robot_daily_showings=100, daily_cap=20)

    def canary() -> tuple[float, float, int]:
        with Session(engine) as session:
            users = read_users(session, "nano-2", (0.5, 0.5), (WINDOW[0], MORNING), (MORNING, WINDOW[1]), rules)
        found = look(users, alpha=0.05, tau=0.01, min_users=2, min_clicks=1)
        return found.canary_rate, found.champion_rate, int(users.showings.sum())

    def mined() -> pairs.Mined:
        with Session(engine) as session:
            return pairs.mine(session, *WINDOW, score_share=0.0, base_sha256="base", clicks=rules)

    before, pairs_before = canary(), mined()
    ours = [name for name in (f"robot{n}" for n in range(50)) if position(name, "nano-2") < 0.5]
    clicker, crawler, eager = ours[:3]
    for robot, actions in ((clicker, "ic" * 40), (crawler, "ici" * 60)):
        a, b = night.task(robot, "x")
        night.feedback(a, actions)
        night.feedback(b, "i" if robot == crawler else "ic")
    assert canary() == before
    after = mined()
    assert {d.pair.pair_id for d in after.pairs} == {d.pair.pair_id for d in pairs_before.pairs}
    assert (after.counts["robots"], after.counts["showings"]) == (2, pairs_before.counts["showings"])
    assert after.counts["showings_left_out"] == 40 + 1 + 120 + 1
    assert "162 showings of 2 robots or past the daily cap" in pairs.yield_words(after.counts)

    (poster, _) = night.task(eager, "x")
    night.feedback(poster, "i" * 60)
    assert canary()[2] == before[2] + rules.daily_cap
