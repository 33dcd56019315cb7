"""A click model that ranks the stored answers of tasks, for pairs and for the off-policy value.

It is fitted for one retraining, on the showings up to the end of its window, without the held-out users: what judges a challenger
has taught it nothing. It is no night's model (`pigeon loop fit`), which may learn from everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback.clicks import showings
from generator.feedback.clicks.learning import learn_from, read_showings, verdict
from generator.feedback.ports import Echo
from generator.feedback.reward_pairs import AnsweredTask, ExpectedClicks
from generator.feedback.split import is_held_out
from generator.storage.postgres import plain_errors
from schemas.click_model import ClickModel
from schemas.errors import Refused
from schemas.settings import Settings


class AnswerRanking:
    """What a click model expects of tasks' stored answers: `reward_pairs.ClickModel` on Postgres."""

    def __init__(self, engine: Engine, model: ClickModel) -> None:
        self._engine = engine
        self._model = model

    def __call__(self, tasks: Sequence[AnsweredTask]) -> list[ExpectedClicks]:
        """Expectations per task, in order.

        No answer is better than another one where the model does not fit them.

        Raises:
            ServerUnavailable: Postgres is away.
        """
        keys = list(dict.fromkeys((task.run_id, task.user_id, task.item_id) for task in tasks))
        with plain_errors(self._engine), Session(self._engine) as session:
            known = showings.read_tasks(session, keys, self._model.base_weights) if keys else {}
        return [self._expected(task, known.get((task.run_id, task.user_id, task.item_id))) for task in tasks]

    def _expected(self, task: AnsweredTask, known: showings.Answered | None) -> ExpectedClicks:
        if known is None or not self._model.fits(known.candidates):
            return self._alike(len(task.answers))
        found = self._model.utilities(known.candidates)
        places = np.array([known.places.get(answer.codes, -1) for answer in task.answers])
        chances = self._model.probabilities(known.candidates)
        return ExpectedClicks(
            np.where(places >= 0, chances[places], chances.mean()),
            np.where(places >= 0, found.mean[places], 0.0),
            found.covariance[np.ix_(places, places)],
        )

    def _alike(self, answers: int) -> ExpectedClicks:
        """The mean rate for all of them."""
        intercept, slope = self._model.calibration
        rate = 1 / (1 + np.exp(-(intercept + slope * float(self._model.positions[1]))))
        return ExpectedClicks(np.full(answers, rate), np.zeros(answers), np.zeros((answers, answers)))


def fit_ranking(engine: Engine, settings: Settings, stop: datetime, echo: Echo) -> AnswerRanking | None:
    """A click model of everybody but held-out users; None, with the reason told, where there is none.

    Raises:
        ServerUnavailable: Postgres is away.
    """
    share = settings.retrain.holdout_share
    try:
        found = read_showings(engine, settings.clicks, stop, lambda user: is_held_out(user, share))
        model, judgement = learn_from(found, settings.clicks)
    except Refused as error:
        echo(f"no click model of users who are not held out: {error}; pairs come of direct comparisons only")
        return None
    if not judgement.passed:
        echo(f"the click model of users who are not held out is refused: {verdict(judgement)}")
        return None
    echo(
        f"click model of {judgement.users:,} users who are not held out ranks the answers of all tasks: gain "
        f"{judgement.gain:+.5f} nats per showing, lower end {judgement.gain_low:+.5f}"
    )
    return AnswerRanking(engine, model)
