"""A click model from examples: context and choice fitted together.

The prior of the choice is the model's own preference.
"""

from __future__ import annotations

import numpy as np

from generator.feedback.clicks.bayes import Posterior, Prior, fit_posterior
from generator.feedback.clicks.examples import Examples, Ints
from schemas.click_features import Array
from schemas.click_model import ClickModel

PREFERENCE_MEAN, PREFERENCE_WIDTH = 0.1, 0.05
"""Prior of the log-odds of a click per nat of log π: where there is nothing to learn, the model's own preference decides."""
FIRST_WIDTH = 0.2
INTERCEPT_MEAN, INTERCEPT_WIDTH = -2.5, 10.0


def prior_of(context_groups: tuple[str, ...], choice_groups: tuple[str, ...] = ()) -> Prior:
    """The prior of context and choice features."""
    groups = [*context_groups, *choice_groups]
    mean, width = np.zeros(len(groups)), np.full(len(groups), FIRST_WIDTH)
    mean[0], width[0] = INTERCEPT_MEAN, INTERCEPT_WIDTH
    for place, name in enumerate(groups):
        if name == "preference":
            mean[place], width[place] = PREFERENCE_MEAN, PREFERENCE_WIDTH
    return Prior(mean, width, [name.replace("preference", "") for name in groups])


def fit_rows(examples: Examples, rows: Ints, *, choice: bool) -> Posterior:
    """The posterior of some examples' weights; without `choice` of the context's alone, the base rate."""
    return fit_posterior(
        design(examples, choice=choice)[rows],
        examples.clicked[rows],
        examples.weights[rows],
        prior_of(examples.context_groups, examples.basis.groups if choice else ()),
    )


def design(examples: Examples, *, choice: bool) -> Array:
    """(N, C) or (N, C + F): the columns that are fitted."""
    return np.hstack([examples.context, examples.choice]) if choice else examples.context


def fit(examples: Examples, calibration: Array, base_weights: str) -> ClickModel:
    """The click model of all examples."""
    found = fit_rows(examples, np.arange(len(examples.clicked)), choice=True)
    context = examples.context.shape[1]
    blocks = np.array(examples.context_groups)
    weights = found.mean[:context]
    return ClickModel(
        base_weights=base_weights,
        basis=examples.basis,
        weights=found.mean[context:],
        covariance=found.covariance[context:, context:],
        positions=weights[0] + weights[blocks == "position"],
        surfaces=examples.surfaces,
        surface_weights=weights[blocks == "surface"],
        item_mean=examples.item_mean,
        item=examples.item,
        item_weights=weights[blocks == "item"],
        calibration=calibration,
    )
