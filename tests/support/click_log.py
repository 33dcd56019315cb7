"""Rows of a night and of feedback whose clicks follow a planted effect."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import numpy as np
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session

from schemas.answers import AnswerSet as Answers
from schemas.images import features_version
from schemas.tables import AnswerSet, ImageFeature, NightRun, NightTask, Poster, PosterFeedback
from tests.support.click_world import TASTES, candidates_of, stored, truth

DAY = date(2026, 11, 2)
NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
STOP = NOON + timedelta(days=12)
BASE_WEIGHTS = "base"
TOKENIZER = "double"
FEATURES = features_version(TOKENIZER)


class ClickLog:
    """One published night; `task` adds its tasks, `feedback` what users did."""

    def __init__(self, engine: Engine, base_weights: str = BASE_WEIGHTS, day: date = DAY) -> None:
        self.engine, self.run_id = engine, f"run-{day}-{base_weights}"
        self._events = 0
        with Session(engine) as session, session.begin():
            served = {"served": {"base_weights": base_weights}}
            session.add(
                NightRun(
                    run_id=self.run_id,
                    logical_date=day,
                    status="published",
                    model_version="nano-1",
                    settings=served,
                    figures={},
                    fencing_token=1,
                    started_at=datetime(day.year, day.month, day.day, tzinfo=UTC),
                )
            )
            if session.get(ImageFeature, ("h", FEATURES)) is None:
                session.add(
                    ImageFeature(image_sha256="h", tokenizer_version=FEATURES, tokens=[1], embedding=[0.5] * TASTES)
                )

    def task(self, user: str, item: str, seed: int = 0, answers: int = 4, propensity: float = 0.25) -> list[str]:
        """A task with all its answers drawn; returns their posters' ids."""
        made = stored(candidates_of(np.random.default_rng(seed), answers))
        common: dict[str, Any] = {"run_id": self.run_id, "user_id": user, "item_id": item, "model_version": "nano-1"}
        image = {"item_id": "h1", "title": "Heat", "uri": "x", "sha256": "h"}
        prompt = {"history": [image], "reference": image, "description": "", "tokenizer_version": TOKENIZER}
        names = [f"{self.run_id}/{user}/{item}/{number}" for number in range(answers)]
        with Session(self.engine) as session, session.begin():
            session.execute(
                insert(NightTask).values(
                    **common,
                    status="done",
                    input_fingerprint="f",
                    answers_fingerprint="f",
                    weights="w",
                    adapter_version=1,
                    seed=7,
                    prompt=prompt,
                )
            )
            session.merge(
                AnswerSet(
                    user_id=user,
                    item_id=item,
                    answers_fingerprint="f",
                    weights="w",
                    answers=Answers(tuple(made)).pack(),
                )
            )
            session.execute(
                insert(Poster),
                [
                    {
                        **common,
                        "poster_id": name,
                        "variant": number,
                        "input_fingerprint": "f",
                        "weights": "w",
                        "alpha": 0.3,
                        "seed": 7,
                        "tokens": list(answer.codes),
                        "choice_propensity": 0.5,
                        "propensity": propensity,
                        "safety": "unchecked",
                        "look": "0" * 16,
                        **dict.fromkeys(("art_key", "art_sha256", "image_key", "image_sha256"), "a"),
                        **dict.fromkeys(("width", "height"), 4),
                        **dict.fromkeys(("cs", "cis_reference", "cis_history", "score"), 1.0),
                    }
                    for number, (name, answer) in enumerate(zip(names, made, strict=True))
                ],
            )
        return names

    def event(self, poster: str, action: str, at: datetime = NOON, **values: Any) -> dict[str, Any]:
        """A row of feedback, not written yet."""
        self._events += 1
        user, item = values.pop("who", tuple(poster.split("/")[1:3]))
        return {
            "event_id": uuid5(UUID(int=0), f"{self.run_id}/{self._events}"),
            "poster_id": poster,
            "user_id": user,
            "item_id": item,
            "action": action,
            "position": None,
            "surface": None,
            "propensity": None,
            "request_id": None,
            "occurred_at": at,
            **values,
        }

    def write(self, *events: dict[str, Any]) -> None:
        """Store feedback."""
        with Session(self.engine) as session, session.begin():
            session.execute(insert(PosterFeedback), list(events))

    def fill(
        self,
        effect: Sequence[float],
        users: int = 60,
        showings: int = 40,
        base: float = -1.5,
        later: Sequence[float] | None = None,
    ) -> None:
        """Users with one task each, who are shown its posters over ten days and click as planted.

        `later`: the effect of the last four days, where it is another.
        """
        rng = np.random.default_rng(5)
        events = []
        for number in range(users):
            posters = self.task(f"u{number}", f"i{number % 7}", seed=number)
            candidates = candidates_of(np.random.default_rng(number))
            early, late = (base + truth(candidates, one) for one in (effect, later or effect))
            for step in range(showings):
                logits = late if step >= 0.6 * showings else early
                shown = int(rng.integers(len(posters)))
                at = NOON + timedelta(days=10 * step / showings, seconds=number)
                place = {"position": int(rng.integers(4)), "surface": "home"}
                events.append(self.event(posters[shown], "impression", at, **place))
                if rng.random() < 1 / (1 + np.exp(-logits[shown])):
                    events.append(self.event(posters[shown], "click", at + timedelta(seconds=30)))
        self.write(*events)
