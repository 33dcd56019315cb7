"""How much answers differ between users and within a task.

It is what a model loses that has learned one taste for everybody.

Both models answer the same grid: the same held-out users for the same items, several answers each, sampled with the same seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.feedback.intervals import Estimate, UserBootstrap

Floats = npt.NDArray[np.float64]
Codes = tuple[int, ...]
RESAMPLES = 1000


@dataclass(frozen=True)
class AnswerGrid:
    """Answers of one model: `answers[u][i]` are those for user u and item i, as codes; as many for each."""

    users: tuple[str, ...]
    answers: tuple[tuple[tuple[Codes, ...], ...], ...]

    @property
    def distributions(self) -> list[Floats]:
        """Per item (U, V): the share of each distinct answer among each user's answers."""
        return [_shares([row[item] for row in self.answers]) for item in range(len(self.answers[0]))]


@dataclass(frozen=True)
class Diversity:
    """A model's figures over all users."""

    users: float
    """Probability that the answers for an item, of two users, differ."""
    answers: float
    """Share of a task's answers that are distinct."""
    information: float
    """Mutual information of user and answer, given the item, in nats."""
    per_item: float
    """Share of an item's answers, over all users, that are distinct."""


def measure(grid: AnswerGrid) -> Diversity:
    """The figures of one model."""
    weights = np.ones(len(grid.users))
    tables = grid.distributions
    per_item = [len({codes for row in grid.answers for codes in row[item]}) for item in range(len(tables))]
    total = len(grid.users) * len(grid.answers[0][0])
    return Diversity(
        users=user_difference(tables, weights),
        answers=float(np.mean(_distinct_shares(grid))),
        information=mutual_information(tables, weights),
        per_item=float(np.mean(per_item)) / total,
    )


def drops(champion: AnswerGrid, challenger: AnswerGrid, confidence: float) -> dict[str, Estimate]:
    """What the challenger lost of the champion's diversity, with intervals over users.

    user_diversity_drop and answer_diversity_drop are shares lost, information_drop a share of the champion's information.
    """
    bootstrap = UserBootstrap(champion.users, confidence, RESAMPLES)
    before, after = champion.distributions, challenger.distributions
    within = _distinct_shares(champion) - _distinct_shares(challenger)

    def lost(weights: Floats) -> float:
        had = mutual_information(before, weights)
        return 0.0 if had <= 0 else 1 - mutual_information(after, weights) / had

    return {
        "user_diversity_drop": bootstrap.of(
            lambda weights: user_difference(before, weights) - user_difference(after, weights)
        ),
        "answer_diversity_drop": bootstrap.of(lambda weights: float(weights @ within / weights.sum())),
        "information_drop": bootstrap.of(lost),
    }


def user_difference(tables: Sequence[Floats], weights: Floats) -> float:
    """Probability that answers of two different users differ, mean over items.

    `tables`: per item (U, V). `weights` (U,): a user who is drawn twice is not compared with themself; 0 when all are one user.
    """
    pairs = np.outer(weights, weights)
    np.fill_diagonal(pairs, 0.0)
    total = pairs.sum()
    if total <= 0:
        return 0.0
    return float(np.mean([1 - (pairs * (table @ table.T)).sum() / total for table in tables]))


def mutual_information(tables: Sequence[Floats], weights: Floats) -> float:
    """I(user; answer | item) in nats, mean over items, users drawn by their weights (U,)."""
    shares = weights / weights.sum()
    return float(np.mean([_entropy(shares @ table) - shares @ _entropy(table) for table in tables]))


def _entropy(shares: Floats) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(shares > 0, -shares * np.log(shares), 0.0)
    return np.asarray(terms.sum(axis=-1))


def _distinct_shares(grid: AnswerGrid) -> Floats:
    """(U,): mean over a user's items of the share of answers that are distinct."""
    return np.array([np.mean([len(set(answers)) / len(answers) for answers in row]) for row in grid.answers])


def _shares(rows: Sequence[Sequence[Codes]]) -> Floats:
    names = {codes: place for place, codes in enumerate(sorted({codes for row in rows for codes in row}))}
    table = np.zeros((len(rows), len(names)))
    for place, row in enumerate(rows):
        for codes in row:
            table[place, names[codes]] += 1 / len(row)
    return table
