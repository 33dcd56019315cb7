"""Showings as features of the shown answer, beside the task's others, and of where it was shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from schemas.click_features import Array, Basis, Candidates, choice_features, hashed

Ints = npt.NDArray[np.int64]

PREVIEW_DIRECTIONS, CODE_DIRECTIONS, HISTORY_DIRECTIONS, ITEM_DIRECTIONS = 12, 8, 4, 4
SMALLEST_SHARE = 0.01
"""Share of the variance below which a direction is left out."""
BASIS_TASKS = 20_000
"""Tasks that the directions are found in, at most."""
POSITIONS = 10
"""Positions that are told apart; further ones count as the last."""
SURFACES = 8
"""Surfaces that are told apart: those with the most showings."""
PRIOR_SHOWINGS = 20.0
"""Showings at the mean rate that an item's and a user's own earlier rate is mixed with."""


@dataclass(frozen=True)
class Showings:
    """Columns of showings, in the order of their days."""

    users: npt.NDArray[np.str_]
    items: npt.NDArray[np.str_]
    tasks: Ints
    """Place of each one's task among the candidates."""
    answers: Ints
    """Place of the shown answer among the task's candidates."""
    clicked: Array
    """0 or 1."""
    days: Ints
    """Days since 0001-01-01."""
    positions: Ints
    """-1 where none was reported."""
    surfaces: npt.NDArray[np.str_]
    propensities: Array
    """Probability with which the answer was chosen and shown."""
    candidates: tuple[Candidates, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Examples:
    """Showings as rows of features."""

    context: Array
    """(N, C): intercept, positions, surfaces, item, earlier rates."""
    context_groups: tuple[str, ...]
    choice: Array
    """(N, F): features of the shown answer."""
    clicked: Array
    weights: Array
    """(N,): showings that each counts as; they sum to the effective sample size."""
    users: npt.NDArray[np.str_]
    days: Ints
    basis: Basis
    surfaces: tuple[str, ...]
    item_mean: Array
    item: Array


def build(showings: Showings, max_weight: float) -> Examples:
    """Features of all showings, measured by directions found in their own tasks."""
    basis = find_basis(showings.candidates)
    features = [choice_features(one, basis) for one in showings.candidates]
    choice = np.array([features[task][answer] for task, answer in zip(showings.tasks, showings.answers, strict=True)])
    names, counts = np.unique(showings.surfaces, return_counts=True)
    surfaces = tuple(str(name) for name in names[np.argsort(-counts, kind="stable")][:SURFACES] if name)
    means = np.array([one.previews.mean(axis=0) for one in showings.candidates])
    item_mean, item = means.mean(axis=0), _directions(means - means.mean(axis=0), ITEM_DIRECTIONS)
    blocks = {
        "": np.ones((len(showings), 1)),
        "position": _one_hot(np.minimum(showings.positions, POSITIONS - 1) + 1, POSITIONS + 1),
        "surface": (showings.surfaces[:, None] == np.array(surfaces or [""])[None, :])[:, : len(surfaces)].astype(
            float
        ),
        "item": ((means - item_mean) @ item.T)[showings.tasks],
        "earlier": np.stack([earlier_rates(showings, names) for names in (showings.items, showings.users)], axis=1),
    }
    return Examples(
        context=np.hstack(list(blocks.values())),
        context_groups=tuple(name for name, block in blocks.items() for _ in range(block.shape[1])),
        choice=choice,
        clicked=showings.clicked,
        weights=inverse_propensities(showings.propensities, max_weight),
        users=showings.users,
        days=showings.days,
        basis=basis,
        surfaces=surfaces,
        item_mean=item_mean,
        item=item,
    )


def inverse_propensities(propensities: Array, max_weight: float) -> Array:
    """Clipped 1 / π, scaled to sum to the effective sample size (Σ w)² / Σ w².

    So that showings of all answers count alike, and no posterior is narrower than its data.
    """
    weights = np.minimum(1 / propensities, max_weight)
    scaled: Array = weights * weights.sum() / (weights**2).sum()
    return scaled


def find_basis(candidates: Sequence[Candidates]) -> Basis:
    """Directions in which a task's answers differ, and users' histories."""
    step = -(-len(candidates) // BASIS_TASKS)
    sample = candidates[::step]
    previews = np.vstack([one.previews - one.previews.mean(axis=0) for one in sample])
    codes = [hashed(one.codes) for one in sample]
    scores = np.vstack([one.scores - one.scores.mean(axis=0) for one in sample])
    histories = np.array([one.history for one in sample])
    deviations = scores.std(axis=0)
    return Basis(
        preview=_directions(previews, PREVIEW_DIRECTIONS),
        codes=_directions(np.vstack([one - one.mean(axis=0) for one in codes]), CODE_DIRECTIONS),
        scores=np.where(deviations > 1e-6, 1 / np.maximum(deviations, 1e-6), 0.0),
        history_mean=histories.mean(axis=0),
        history=_directions(histories - histories.mean(axis=0), HISTORY_DIRECTIONS),
    )


def earlier_rates(showings: Showings, names: npt.NDArray[np.str_]) -> Array:
    """(N,): log-odds of a name's clicks on earlier days, less the mean's, shrunk to it."""
    _, codes = np.unique(names, return_inverse=True)
    shown, clicked = np.zeros(codes.max() + 1), np.zeros(codes.max() + 1)
    rates = np.zeros(len(showings))
    starts = np.flatnonzero(np.diff(showings.days, prepend=showings.days[0] - 1))
    for start, end in zip(starts, [*starts[1:], len(showings)], strict=True):
        day = slice(start, end)
        if shown.sum():
            mean = (clicked.sum() + 1) / (shown.sum() + 2)
            clicks = clicked[codes[day]] + PRIOR_SHOWINGS * mean
            others = shown[codes[day]] - clicked[codes[day]] + PRIOR_SHOWINGS * (1 - mean)
            rates[day] = np.log(clicks / others) - np.log(mean / (1 - mean))
        np.add.at(shown, codes[day], 1)
        np.add.at(clicked, codes[day], showings.clicked[day])
    return rates


def _directions(centred: Array, most: int) -> Array:
    """(K, D): principal directions of centred rows with a noticeable variance, scaled to a deviation of 1."""
    if len(centred) < 2 or not np.any(np.abs(centred) > 1e-9):
        return np.zeros((0, centred.shape[1]))
    found = PCA(n_components=min(most, *centred.shape), svd_solver="covariance_eigh").fit(centred)
    kept = found.explained_variance_ratio_ >= SMALLEST_SHARE
    rows: Array = found.components_[kept] / np.sqrt(found.explained_variance_[kept])[:, None]
    return rows


def _one_hot(numbers: Ints, width: int) -> Array:
    rows: Array = np.eye(width)[numbers]
    return rows
