"""The steps of `pigeon loop fit`: showings, judgement, fit, and a model that is active or refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from generator.feedback.clicks import examples, showings, versions
from generator.feedback.clicks.examples import Showings
from generator.feedback.clicks.fit import fit
from generator.feedback.clicks.judge import Judgement, judge
from generator.storage.postgres import plain_errors
from schemas.click_model import ClickModel
from schemas.errors import Refused
from schemas.settings_loop import ClickSettings


@dataclass(frozen=True)
class Learned:
    """A fitted model, how it was judged and what became of it."""

    number: int | None
    """None after a dry run."""
    model: ClickModel
    judgement: Judgement
    state: Literal["active", "refused"]
    reason: str
    counts: dict[str, int]


def learn_clicks(
    engine: Engine, settings: ClickSettings, stop: datetime, echo: Callable[[str], None], *, dry_run: bool = False
) -> Learned:
    """Fit a click model, judge it, and activate or refuse it.

    It is fitted on the showings of the `clicks.window_days` before `stop`. The same window again gives the same model, and changes nothing.

    Raises:
        Refused: too few clicks; the message says how many are missing.
        ServerUnavailable: Postgres is away.
    """
    found = read_showings(engine, settings, stop)
    echo(counts_in_words(found.counts, settings))
    model, judgement = learn_from(found, settings)
    state: Literal["active", "refused"] = "active" if judgement.passed else "refused"
    reason = verdict(judgement)
    echo(judgement.words)
    if dry_run:
        echo(f"dry run: {reason}; nothing was written")
        return Learned(None, model, judgement, state, reason, found.counts)
    with plain_errors(engine), Session(engine) as session, session.begin():
        window = _window(settings, stop)
        row = versions.record(session, model, state, reason, window, judgement.figures(), found.counts)
        echo(f"click model {row.number} is {row.state}: {row.reason}")
        return Learned(row.number, model, judgement, state, reason, found.counts)


def read_showings(
    engine: Engine, settings: ClickSettings, stop: datetime, without: Callable[[str], bool] = lambda user: False
) -> showings.Read:
    """The showings of the `clicks.window_days` before `stop`, of all users but those that `without` names.

    Raises:
        Refused: no night was published yet.
        ServerUnavailable: Postgres is away.
    """
    with plain_errors(engine), Session(engine) as session:
        base_weights = showings.newest_checkpoint(session, stop)
        if base_weights is None:
            raise Refused("no published night yet: there are no posters that anybody could have clicked")
        return showings.read(session, *_window(settings, stop), base_weights, settings, without)


def learn_from(found: showings.Read, settings: ClickSettings) -> tuple[ClickModel, Judgement]:
    """As `learn`, of what was read.

    Raises:
        Refused: too few clicks, or of one day or too few users.
    """
    return learn(_enough(found, settings), settings, found.base_weights)


def learn(shown: Showings, settings: ClickSettings, base_weights: str) -> tuple[ClickModel, Judgement]:
    """A model of all showings, and the judgement of models of their parts.

    Raises:
        Refused: the clicks are of one day or of too few users.
    """
    rows = examples.build(shown, settings.max_weight)
    judgement = judge(rows)
    if judgement is None:
        raise Refused(
            "the clicks are of one day or of too few users: a click model is judged on later days of other users, and needs "
            "clicks on both sides"
        )
    calibration = np.array([judgement.intercept, judgement.slope])
    return fit(rows, calibration, base_weights), judgement


def verdict(judgement: Judgement) -> str:
    """Why a model is active or refused."""
    if judgement.passed:
        return f"better than the base rate: lower end of the gain {judgement.gain_low:+.5f} nats per showing"
    if judgement.slope <= 0:
        return f"predictions run against what was clicked (slope {judgement.slope:.2f})"
    return (
        f"no better than the base rate for sure: lower end of the gain {judgement.gain_low:+.5f} nats per showing; nights go on "
        "choosing as before"
    )


def counts_in_words(counts: dict[str, int], settings: ClickSettings) -> str:
    """What was used and what was left out, in one line."""
    share = 1000 * counts["used"] / max(1, counts["impressions"])
    return (
        f"{counts['used']:,} showings with {counts['clicks']:,} clicks of {counts['impressions']:,} impressions in "
        f"{settings.window_days} days ({share:.0f} used per 1,000); left out: {counts['showings_still_open']:,} younger than "
        f"{settings.attribution_hours:g} h, {counts['repeated_impressions']:,} repeated, {counts['showings_of_robots']:,} of "
        f"{counts['robots']:,} robots, {counts['showings_past_the_cap']:,} past the daily cap, "
        f"{counts['showings_without_answers']:,} without stored answers; {counts['reactions_without_a_showing']:,} clicks and "
        "dismissals without a showing"
    )


def _window(settings: ClickSettings, stop: datetime) -> tuple[datetime, datetime]:
    return stop - timedelta(days=settings.window_days), stop


def _enough(found: showings.Read, settings: ClickSettings) -> Showings:
    clicks = found.counts["clicks"]
    if found.showings is None or clicks < settings.min_clicks:
        days = len(np.unique(found.showings.days)) if found.showings else 0
        wait = f"about {math.ceil((settings.min_clicks - clicks) * days / clicks)} more days" if clicks else "unknown"
        raise Refused(
            f"{clicks} clicks on drawn posters, {settings.min_clicks} are needed (clicks.min_clicks); at this rate: {wait}"
        )
    return found.showings
