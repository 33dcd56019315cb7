"""Showings with a planted effect, for the tests of the click model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from generator.feedback.clicks.examples import Showings
from schemas.answers import StoredAnswer
from schemas.click_features import Array, Candidates

WIDTH = 5
TASTES = 3


def candidates_of(rng: np.random.Generator, answers: int = 4) -> Candidates:
    """Random answers of one task; log π and codes know nothing of the previews."""
    previews = rng.standard_normal((answers, WIDTH))
    codes = tuple((int(first), int(second)) for first, second in rng.integers(0, 10_000, (answers, 2)))
    return Candidates(rng.normal(-5, 1, answers), previews, codes, np.zeros((answers, 2)), rng.standard_normal(TASTES))


def planted(
    effect: Sequence[float],
    showings: int = 6_000,
    users: int = 300,
    days: int = 10,
    base: float = -2.0,
    seed: int = 0,
    log: Sequence[float] = (0.25, 0.25, 0.25, 0.25),
    positions: float = 0.0,
    surface: str = "home",
) -> Showings:
    """Showings with planted log-odds of a click.

    They are base + effect · (preview - mean preview of the task) + positions · position.
    `log`: probability with which each answer of a task is shown.
    """
    rng = np.random.default_rng(seed)
    tasks = tuple(candidates_of(rng, len(log)) for _ in range(showings))
    answers = rng.choice(len(log), showings, p=log)
    places = rng.integers(0, 4, showings)
    logits = np.array([truth(one, effect)[answer] for one, answer in zip(tasks, answers, strict=True)])
    chances = 1 / (1 + np.exp(-(base + logits + positions * places)))
    return Showings(
        users=np.array([f"u{number}" for number in rng.integers(0, users, showings)]),
        items=np.array([f"i{number}" for number in rng.integers(0, 40, showings)]),
        tasks=np.arange(showings),
        answers=answers,
        clicked=(rng.random(showings) < chances).astype(float),
        days=np.sort(rng.integers(0, days, showings)) + 739_000,
        positions=places,
        surfaces=np.full(showings, surface),
        propensities=np.array(log)[answers],
        candidates=tasks,
    )


def truth(candidates: Candidates, effect: Sequence[float]) -> Array:
    """Planted log-odds of a task's answers beside each other."""
    values: Array = (candidates.previews - candidates.previews.mean(axis=0)) @ np.array(effect)
    return values


def with_clicks(showings: Showings, clicked: Array) -> Showings:
    """The same showings, clicked otherwise."""
    return replace(showings, clicked=clicked)


def stored(candidates: Candidates) -> list[StoredAnswer]:
    """The answers as the night has them."""
    return [
        StoredAnswer(codes, 0.3, 1.0, float(logprob), float(logprob), preview.astype(np.float32), 0.0, 0.0)
        for codes, logprob, preview in zip(candidates.codes, candidates.logprobs, candidates.previews, strict=True)
    ]
