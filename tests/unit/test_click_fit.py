"""The click model's estimator: finds what was planted and nothing else, and knows how sure it is."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from generator.feedback.clicks import bayes
from generator.feedback.clicks.bayes import Prior, fit_posterior, log_loss
from generator.feedback.clicks.examples import Examples, build, earlier_rates, inverse_propensities
from generator.feedback.clicks.fit import PREFERENCE_MEAN, fit, prior_of
from generator.feedback.clicks.judge import calibrate, calibration_error, interval, judge
from schemas.answers import distinct
from schemas.click_features import (
    CODE_BUCKETS,
    GROUPS,
    LOWEST_LOG_SHARE,
    Basis,
    Candidates,
    choice_features,
    hashed,
    log_shares,
)
from schemas.click_model import ClickModel
from tests.support.click_world import WIDTH, candidates_of, planted, stored, truth, with_clicks

EFFECT = (0.6, -0.4, 0.0, 0.0, 0.2)
UNCALIBRATED = np.array([0.0, 1.0])


@pytest.fixture(scope="module")
def examples() -> Examples:
    return build(planted(EFFECT), max_weight=5.0)


@pytest.fixture(scope="module")
def model(examples: Examples) -> ClickModel:
    return fit(examples, UNCALIBRATED, "base")


def plain(features: np.ndarray, clicked: np.ndarray, width: float = 1.0) -> bayes.Posterior:
    count = features.shape[1]
    return fit_posterior(
        features, clicked, np.ones(len(clicked)), Prior(np.zeros(count), np.full(count, width), [""] * count)
    )


def random_rows(rows: int, weights: list[float], seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, len(weights)))
    return features, (rng.random(rows) < 1 / (1 + np.exp(-features @ weights))).astype(float)


def test_the_mode_is_that_of_scikit_learn_where_the_prior_mean_is_zero() -> None:
    features, clicked = random_rows(400, [1.0, -2.0, 0.0])
    theirs = LogisticRegression(C=0.5**2, fit_intercept=False, tol=1e-10).fit(features, clicked)
    assert plain(features, clicked, width=0.5).mean == pytest.approx(theirs.coef_[0], abs=1e-5)


def test_without_data_the_posterior_is_the_prior() -> None:
    prior = Prior(np.array([0.1, -2.0]), np.array([0.3, 5.0]), ["", ""])
    found = fit_posterior(np.zeros((1, 2)), np.zeros(1), np.ones(1), prior)
    assert found.mean == pytest.approx(prior.mean)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx(prior.width)


def test_the_estimated_width_tells_an_effect_from_none() -> None:
    features, clicked = random_rows(5_000, [0.8, -0.8, 0.0, 0.0, 0.0, 0.0])
    prior = Prior(np.zeros(6), np.full(6, 0.3), ["real", "real", "none", "none", "none", "none"])
    found = fit_posterior(features, clicked, np.ones(5_000), prior)
    assert 0.4 < found.width[0] < 1.4
    assert found.width[2] < 0.08
    assert np.abs(found.mean[2:]).max() < 0.05


def test_ninety_five_percent_intervals_hold_the_truth_about_as_often() -> None:
    """Weights drawn from the prior; 400 of them in 80 fits, so that 93 to 98 % is within chance."""
    rng = np.random.default_rng(7)
    inside = 0
    for seed in range(80):
        weights = rng.normal(0, 0.5, 5)
        found = plain(*random_rows(400, weights.tolist(), seed), width=0.5)
        inside += int((np.abs(found.mean - weights) < 1.96 * np.sqrt(np.diag(found.covariance))).sum())
    assert 0.92 < inside / 400 < 0.985


def test_planted_effects_are_recovered_with_their_uncertainty(model: ClickModel) -> None:
    rng = np.random.default_rng(5)
    errors, scores = [], []
    for _ in range(200):
        task = candidates_of(rng)
        found = model.utilities(task)
        error = found.mean - truth(task, EFFECT)
        errors.append(np.corrcoef(found.mean, truth(task, EFFECT))[0, 1])
        scores.append(error[0] / math.sqrt(found.covariance[0, 0]))
    assert np.mean(errors) > 0.95
    assert np.sqrt(np.mean(np.square(scores))) < 1.5, "errors are about as large as the model says"


def test_a_model_of_noise_prefers_what_the_model_prefers() -> None:
    noise = fit(build(planted([0.0] * WIDTH, seed=3), 5.0), UNCALIBRATED, "base")
    rng = np.random.default_rng(6)
    agreed = []
    for _ in range(300):
        task = candidates_of(rng)
        agreed.append(int(noise.utilities(task).mean.argmax() == task.logprobs.argmax()))
    spread = np.mean([noise.utilities(candidates_of(rng)).mean.std() for _ in range(100)])
    assert spread < 0.2, "log-odds; what was planted above spreads by 0.7"
    assert np.mean(agreed) > 0.25
    assert prior_of(("",), ("preference",)).mean[1] == PREFERENCE_MEAN > 0


def test_weights_make_a_rate_that_of_the_uniform_policy() -> None:
    """0.9 of the showings went to the first of two answers, which is clicked half as often."""
    rng = np.random.default_rng(11)
    first = rng.random(200_000) < 0.9
    clicked = rng.random(200_000) < np.where(first, 0.05, 0.1)
    weights = inverse_propensities(np.where(first, 0.9, 0.1), max_weight=20.0)
    assert clicked.mean() == pytest.approx(0.055, abs=0.002)
    assert np.average(clicked, weights=weights) == pytest.approx(0.075, abs=0.002)
    assert weights.sum() == pytest.approx(200_000 / np.mean([1 / (4 * 0.9), 1 / (4 * 0.1)]) / 2, rel=0.01)


def test_clipped_weights_bound_what_one_showing_counts() -> None:
    weights = inverse_propensities(np.array([0.5, 0.5, 1e-6]), max_weight=5.0)
    assert weights.max() / weights.min() == pytest.approx(2.5)
    assert weights.sum() < 3


def test_a_real_effect_is_accepted_and_shuffled_clicks_are_refused(examples: Examples) -> None:
    real = judge(examples)
    assert real is not None
    assert real.passed
    assert real.auc > real.base_auc
    assert real.log_loss < real.base_log_loss
    assert real.calibration_error < 0.02
    assert real.slope == pytest.approx(1.0, abs=0.3)
    small = build(planted(EFFECT, 1_500), 5.0)
    passed = 0
    for seed in range(6):
        shuffled = np.random.default_rng(seed).permutation(small.clicked)
        verdict = judge(replace(small, clicked=shuffled))
        assert verdict is not None
        passed += verdict.passed
    assert passed <= 1


def test_clicks_by_chance_pass_no_more_often_than_the_interval_says() -> None:
    """One in forty by its definition: 4 of 20 or more would be one case in 600."""
    world, passed = build(planted([0.0] * WIDTH, 1_500), 5.0), 0
    for seed in range(20):
        rng = np.random.default_rng(1000 + seed)
        verdict = judge(replace(world, clicked=(rng.random(1_500) < world.clicked.mean()).astype(float)))
        assert verdict is not None
        passed += verdict.passed
    assert passed <= 3


def test_an_effect_of_positions_is_the_base_rates_own() -> None:
    judged = judge(build(planted([0.0] * WIDTH, positions=-0.6, seed=4), 5.0))
    assert judged is not None
    assert not judged.passed
    assert judged.base_auc > 0.6


def test_one_day_or_clicks_on_one_side_are_not_judged() -> None:
    assert judge(build(planted(EFFECT, 400, days=1), 5.0)) is None
    shown = planted(EFFECT, 400)
    late = np.where(shown.days > shown.days.max() - 2, shown.clicked, 0)
    assert judge(build(with_clicks(shown, late), 5.0)) is None


def test_calibration_mends_predictions_that_are_too_sure() -> None:
    features, clicked = random_rows(20_000, [1.0])
    intercept, slope = calibrate(3 * features[:, 0] + 1, clicked)
    assert slope == pytest.approx(1 / 3, abs=0.03)
    assert intercept == pytest.approx(-1 / 3, abs=0.05)
    assert calibration_error(1 / (1 + np.exp(-features[:, 0])), clicked) < 0.015
    assert calibration_error(1 / (1 + np.exp(-3 * features[:, 0])), clicked) > 0.08


def test_the_interval_is_wider_when_showings_are_of_few_users() -> None:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(50), 100)
    own = rng.normal(0, 1, 50)[users] + rng.normal(0, 0.1, 5_000)
    low, high = interval(own, users, 0)
    assert high - low > 5 * (interval(own, np.arange(5_000), 0)[1] - interval(own, np.arange(5_000), 0)[0])
    assert low < own.mean() < high


def test_earlier_rates_know_nothing_of_their_own_day() -> None:
    shown = planted(EFFECT, 500, users=5)
    rates = earlier_rates(shown, shown.users)
    first = shown.days == shown.days[0]
    assert not rates[first].any()
    today = shown.days == shown.days[-1]
    otherwise = with_clicks(shown, np.where(today, 1 - shown.clicked, shown.clicked))
    assert earlier_rates(otherwise, shown.users) == pytest.approx(rates)


def test_features_are_differences_within_a_task_and_know_their_groups(examples: Examples) -> None:
    task = candidates_of(np.random.default_rng(2))
    features = choice_features(task, examples.basis)
    assert features.mean(axis=0) == pytest.approx(0, abs=1e-9)
    groups = examples.basis.groups
    assert features.shape == (4, len(groups))
    assert tuple(dict.fromkeys(groups)) == GROUPS
    moved = replace(task, logprobs=task.logprobs - 700, previews=task.previews + 3.0)
    assert choice_features(moved, examples.basis) == pytest.approx(features, abs=1e-6)


def test_log_shares_are_of_the_tasks_own_answers_and_bounded() -> None:
    shares = log_shares(np.array([-1000.0, -1000.0, -5000.0]))
    assert shares == pytest.approx([math.log(0.5), math.log(0.5), LOWEST_LOG_SHARE])


def test_hashed_codes_are_of_length_one_and_the_same_everywhere() -> None:
    rows = hashed([(1, 2, 3), (), (5, 5, 9), (5, 9, 5)])
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1, 0, 1, 1])
    assert rows.shape == (4, CODE_BUCKETS)
    assert rows[2] == pytest.approx(rows[3])
    assert np.flatnonzero(hashed([(1, 2)])[0]).tolist() == [19, 23], "stored models depend on these buckets"


def test_a_model_survives_its_bytes_and_damaged_bytes_are_named(model: ClickModel) -> None:
    again = ClickModel.unpack(model.pack())
    assert again.model_id == model.model_id
    task = candidates_of(np.random.default_rng(3))
    assert again.utilities(task).mean == pytest.approx(model.utilities(task).mean)
    assert again.probabilities(task, 2, "home") == pytest.approx(model.probabilities(task, 2, "home"))
    assert not again.fits(replace(task, previews=np.zeros((4, WIDTH + 1))))
    for bad in (b"", b"PGC1", b"PGA1" + model.pack()[4:], model.pack()[:-9]):
        with pytest.raises(ValueError, match="click model"):
            ClickModel.unpack(bad)


def test_predicted_probabilities_are_about_the_observed_rate(model: ClickModel, examples: Examples) -> None:
    rng = np.random.default_rng(9)
    predicted = np.mean([model.probabilities(candidates_of(rng), 1, "home").mean() for _ in range(500)])
    assert predicted == pytest.approx(examples.clicked.mean(), abs=0.03)


def test_log_loss_is_the_negative_log_likelihood() -> None:
    chance = 1 / (1 + math.exp(-0.7))
    losses = log_loss(np.array([0.7, 0.7, -900.0]), np.array([1.0, 0.0, 0.0]))
    assert losses == pytest.approx([-math.log(chance), -math.log(1 - chance), 0.0])


def test_the_same_answers_stored_and_read_give_the_same_features(examples: Examples) -> None:
    task = candidates_of(np.random.default_rng(8))
    answers = stored(task)
    assert distinct(answers) == [0, 1, 2, 3]
    again = Candidates.of(answers, np.stack([task.history, task.history]))
    assert choice_features(again, examples.basis) == pytest.approx(choice_features(task, examples.basis), abs=1e-5)


def test_surfaces_that_are_not_reported_are_no_columns() -> None:
    rows = build(planted(EFFECT, 60, surface=""), 5.0)
    assert rows.surfaces == ()
    assert "surface" not in rows.context_groups
    named = build(planted(EFFECT, 60), 5.0)
    assert named.context[:, named.context_groups.index("surface")].tolist() == [1.0] * 60


def test_data_without_any_difference_have_no_directions() -> None:
    basis: Basis = build(
        replace(planted(EFFECT, 60), candidates=(candidates_of(np.random.default_rng(0), 4),) * 60), 5.0
    ).basis
    assert len(basis.history) == 0
    assert basis.scores.tolist() == [0, 0]
