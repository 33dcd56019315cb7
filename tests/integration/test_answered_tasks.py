"""Stored answers of tasks on a real Postgres: reward-ranked pairs, and the off-policy log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from deploy.local.stack import Stack
from generator.feedback import off_policy_log, pairs
from generator.feedback.gate import NotJudged
from generator.feedback.off_policy import OffPolicyValue
from generator.feedback.reward_pairs import AnsweredTask, ExpectedClicks, RewardRanking
from generator.feedback.split import is_held_out
from schemas.answers import AnswerSet as Answers
from schemas.answers import StoredAnswer
from schemas.settings import Settings, load_settings
from schemas.settings_loop import ClickSettings
from schemas.tables import AnswerSet, Erasure, Poster
from tests.support.loop_doubles import TrainerDouble, doubled_context
from tests.support.loop_world import WINDOW, Night

pytestmark = pytest.mark.integration
CODES = ((10,), (11,), (12,), (10,))
"""Answers of every task; the last repeats the first."""


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str) -> Settings:
    """Postgres and S3 only."""
    return load_settings(state_dir=stack.state.path, database={"url": database_url}, s3={"bucket": bucket})


def answered(engine: Engine, users: int, chosen_with: Sequence[float] = (1.0, 0.5, 0.0, 0.0)) -> Night:
    """A night with four stored answers per task, of which the first two are drawn and shown by 3 : 1."""
    night = Night(engine)
    preview = np.array([1.0, 0.0], np.float32)
    for n in range(users):
        posters = night.task(f"u{n}", "x", propensity=(0.75, 0.25))
        stored = Answers(
            tuple(
                StoredAnswer(
                    codes, 0.3, 1.0, -1.0, -1.0, preview, variant=v if v < 2 else -1, chosen_with=chosen_with[v]
                )
                for v, codes in enumerate(CODES)
            ),
            "model 1",
        )
        with Session(engine) as session, session.begin():
            row = {"user_id": f"u{n}", "item_id": "x", "answers_fingerprint": "", "weights": ""}
            session.add(AnswerSet(**row, answers=stored.pack()))
            session.execute(update(Poster).where(Poster.poster_id == posters[0]).values(tokens=[10]))
        for poster, shows in zip(posters, ("iii", "ic" if n % 2 else "i"), strict=True):
            night.feedback(poster, shows)
    return night


def likes_12(tasks: Sequence[AnsweredTask]) -> list[ExpectedClicks]:
    """A planted click model: 12 is clicked most, 10 least; it is less sure of odd users."""
    found = []
    for task in tasks:
        mean = np.array([0.01 * (codes[0] - 5) for codes in (answer.codes for answer in task.answers)])
        spread = 0.05 if int(task.user_id[1:]) % 2 else 0.002
        found.append(ExpectedClicks(mean, mean, np.eye(len(mean)) * spread**2))
    return found


def test_a_click_model_ranks_all_answers_of_tasks_that_nobody_compared(engine: Engine) -> None:
    answered(engine, 9)
    with Session(engine) as session, session.begin():
        session.add(Erasure(user_id="u4", requested_at=datetime.now(UTC) - timedelta(days=900)))
    with Session(engine) as session:
        reward = RewardRanking(likes_12, 0.9)
        mined = pairs.mine(session, *WINDOW, score_share=0.0, base_sha256="base", reward=reward)
    by_source = {source: [d.pair for d in mined.pairs if d.pair.source == source] for source in ("feedback", "reward")}
    assert {pair.user_id for pair in by_source["feedback"]} == {"u1", "u3", "u5", "u7"}
    assert {pair.user_id for pair in by_source["reward"]} == {"u0", "u2", "u6", "u8"}, (
        "never of u4, who is to be erased"
    )
    assert {(pair.chosen_tokens, pair.rejected_tokens) for pair in by_source["reward"]} == {((12,), (10,))}
    assert sum(pair.weight for pair in by_source["reward"]) == pytest.approx(4)
    assert len({pair.pair_id for pair in by_source["reward"]}) == 4
    assert (mined.counts["feedback_pairs"], mined.counts["reward_pairs"]) == (4, 4)
    with Session(engine) as session:
        other = pairs.mine(session, *WINDOW, score_share=0.5, base_sha256="base")
    assert "reward" not in {d.pair.source for d in other.pairs}, "without a click model there are none"


class Leaning(TrainerDouble):
    """log π of planted adapters: the challenger leans to the answer 11, the champion to 10."""

    def answer_logprobs(self, adapter: Path | None, tasks: Sequence[AnsweredTask]) -> list[np.ndarray]:
        favourite = 10 if adapter is None else 11
        return [np.array([-0.5 if a.codes == (favourite,) else -3.0 for a in task.answers]) for task in tasks]


def test_the_off_policy_value_rests_on_held_out_users_with_the_joint_propensities(
    engine: Engine, settings: Settings, tmp_path: Path
) -> None:
    """Odd users click on 11, which was drawn with 0.5 and shown with 0.25; nobody clicks on 10."""
    answered(engine, 120)
    context, _ = doubled_context(settings, engine, tmp_path, off_policy_min_samples=5, off_policy_min_clicks=5)
    held = {f"u{n}" for n in range(120) if is_held_out(f"u{n}", 0.2)}
    with Session(engine) as session:
        shown = off_policy_log.read_shown(session, WINDOW, 0.2, 500, "base", ClickSettings())
    assert {one.task.user_id for one in shown} == held
    assert all([answer.codes for answer in one.task.answers] == [(10,), (11,), (12,)] for one in shown)
    logged = {(place, propensity) for one in shown for place, propensity, _ in one.showings}
    assert logged == {(0, 0.75), (1, 0.125)}
    assert len(shown[0].showings) == 4
    with Session(engine) as session:
        assert len(off_policy_log.read_shown(session, WINDOW, 0.2, 7, "base", ClickSettings())) == 7

    for clicks in (None, likes_12):
        judged = dataclasses.replace(context, trainer=Leaning(), clicks=clicks)
        with Session(engine) as session:
            value = off_policy_log.value_of(judged, session, WINDOW, tmp_path, None)
        assert isinstance(value, OffPolicyValue)
        assert value.challenger > value.champion
        assert value.gain.low > 0
        assert (value.doubly_robust is None) == (clicks is None)
    strict = context.settings.retrain.model_copy(update={"off_policy_min_samples": 1e6})
    settings_of = context.settings.model_copy(update={"retrain": strict})
    with Session(engine) as session:
        open_value = off_policy_log.value_of(
            dataclasses.replace(context, trainer=Leaning(), settings=settings_of), session, WINDOW, tmp_path, None
        )
    assert isinstance(open_value, NotJudged)
