"""Planted challengers before the product's gate and canary, in a world on codes alone.

python -m tests.support.challengers --out deploy/models/nano/evaluation/loop/challengers.json  # 20 worse and 20 better ones, a minute

A model is a distribution over 30 answers (6 palettes x 5 styles) per user; a challenger adds weights on palette, style and what the
user's history shows, as an adapter does. What decides is the product's own: `gate_metrics`, `off_policy`, `diversity`, `gate` and
`canary_test` with the settings' defaults, but for what needs pictures (cs, cis, length).

worse    trained by DPO in a world without an effect that all users share: on coins, on labels shuffled among pairs, and on the pairs
         of other users. A canary of them runs for `canary.max_days`.
better   a true lift of 20 % is planted. Traffic and horizon are written down before anything is drawn: 1,000 users with 4 showings a
         day, half of them the canary's, and the days in which the canary's own forecast sees 20 % in four of five cases.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from generator.feedback import diversity, gate, gate_metrics, off_policy
from generator.feedback.canary_test import UserClicks, days_to_see, look
from generator.feedback.diversity import AnswerGrid
from generator.feedback.off_policy import LoggedShowings, OffPolicyValue
from generator.feedback.ports import PairScores
from generator.feedback.split import is_held_out
from schemas.settings_retrain import CanarySettings, RetrainSettings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Kind = Literal["coins", "shuffled", "others", "better"]
WORSE: tuple[Kind, ...] = ("coins", "shuffled", "others")

PALETTES, STYLES = 6, 5
LOOKS = np.array([(palette, style) for palette in range(PALETTES) for style in range(STYLES)])
USERS, TASKS, ANSWERS = 1_000, 28, 6
SHOWINGS_PER_DAY, CANARY_SHARE, PLANTED_LIFT = 4, 0.5, 0.2
BASE, TASTE, READING = -2.9, 0.6, 0.7
"""Log-odds of a click; standard deviation of a user's taste; log-odds that the model puts on what a history shows."""
READER = np.array([0.75, 0.25])
STEPS, RATE, SMOOTHING = 300, 0.5, 0.1
RETRAIN, CANARY = RetrainSettings(), CanarySettings()
CHECKS = tuple(check for check in gate.CHECKS if check.metric not in {"cs_drop", "cis_drop", "length_change"})


@dataclass(frozen=True)
class World:
    """Users, what they like, and what the champion reads of it."""

    names: tuple[str, ...]
    truth: Floats
    """(U, A): probability of a click."""
    champion: Floats
    """(U, A): log π."""
    features: Floats
    """(U, A, F): what an adapter can learn from: palettes, styles, and how often the history shows the answer."""
    held: npt.NDArray[np.bool_]
    """(U,)"""


@dataclass(frozen=True)
class Log:
    """Two showings of each task; a pair where one of them was clicked."""

    answers: Ints
    """(U, T, K): the distinct answers of each task."""
    shown: Ints
    """(U, T, 2): their places."""
    propensities: Floats
    """(U, T, 2)"""
    clicked: npt.NDArray[np.bool_]
    """(U, T, 2)"""

    def pairs(self) -> tuple[Ints, Ints, Ints]:
        """Users, chosen and rejected answers."""
        differ = (self.clicked[..., 0] != self.clicked[..., 1]) & (self.shown[..., 0] != self.shown[..., 1])
        users, tasks = np.nonzero(differ)
        looks = np.take_along_axis(self.answers, self.shown, axis=2)[users, tasks]
        first = self.clicked[users, tasks, 0]
        return users, np.where(first, looks[:, 0], looks[:, 1]), np.where(first, looks[:, 1], looks[:, 0])


@dataclass(frozen=True)
class Outcome:
    """What became of a challenger."""

    kind: Kind
    seed: int
    true_lift: float
    """Gain in the probability of a click, as a share of the champion's."""
    pairs: int
    passed: bool
    refused_for: str
    canary: str
    """The last look's verdict, or "no canary"."""
    days: int
    """Days that the canary ran."""


def build(seed: int, effect: float) -> World:
    """`effect`: standard deviation of what all users share, in log-odds."""
    rng = np.random.default_rng(seed)
    palettes, styles = rng.normal(0, TASTE, (USERS, PALETTES)), rng.normal(0, TASTE, (USERS, STYLES))
    taste = (palettes[:, LOOKS[:, 0]] + styles[:, LOOKS[:, 1]]) / np.sqrt(2)
    common = rng.normal(0, effect, PALETTES)[LOOKS[:, 0]] + rng.normal(0, effect, STYLES)[LOOKS[:, 1]]
    # A history shows a part of the taste: five pictures, the likelier the more they are liked.
    history = rng.multinomial(5, _softmax(3 * taste))
    seen = np.stack([(history @ (LOOKS[:, side][:, None] == LOOKS[:, side])) for side in (0, 1)], axis=-1).sum(axis=-1)
    users = [_one_hot(LOOKS[:, side], width) for side, width in ((0, PALETTES), (1, STYLES))]
    features = np.concatenate([np.tile(np.hstack(users), (USERS, 1, 1)), seen[..., None] / 2], axis=2)
    names = tuple(f"{seed}-u{number}" for number in range(USERS))
    return World(
        names,
        1 / (1 + np.exp(-(BASE + common + taste))),
        np.log(_softmax(READING * seen)),
        features,
        np.array([is_held_out(name, RETRAIN.holdout_share) for name in names]),
    )


def show(world: World, rng: np.random.Generator) -> Log:
    """The champion's answers, chosen by the policy `model`, shown by the reader."""
    noise = rng.gumbel(size=(USERS, TASKS, len(LOOKS)))
    answers = np.argsort(-(world.champion[:, None, :] + noise), axis=2)[..., :ANSWERS]
    logprobs = np.take_along_axis(np.broadcast_to(world.champion[:, None], noise.shape), answers, axis=2)
    best = logprobs.argmax(axis=2)
    others = np.where(np.arange(ANSWERS) == best[..., None], -np.inf, logprobs)
    shares = off_policy.EVEN_SHARE / (ANSWERS - 1) + (1 - off_policy.EVEN_SHARE) * _softmax(others)
    shares = np.where(np.isinf(others), 0.0, shares)
    second = (np.log(np.maximum(shares, 1e-300)) + rng.gumbel(size=shares.shape)).argmax(axis=2)
    variants = np.stack([best, second], axis=-1)
    which = rng.choice(2, size=(USERS, TASKS, 2), p=READER)
    chosen = np.stack(
        [np.ones_like(best, dtype=np.float64), np.take_along_axis(shares, second[..., None], 2)[..., 0]], -1
    )
    shown = np.take_along_axis(variants, which, axis=2)
    looks = np.take_along_axis(answers, shown, axis=2)
    chances = world.truth[np.arange(USERS)[:, None, None], looks]
    return Log(
        answers,
        shown,
        np.take_along_axis(chosen, which, axis=2) * READER[which],
        rng.random(chances.shape) < chances,
    )


def train(world: World, users: Ints, chosen: Ints, rejected: Ints) -> Floats:
    """(F,) weights by DPO with smoothed labels; the champion is the reference."""
    apart = world.features[users, chosen] - world.features[users, rejected]
    weights = np.zeros(apart.shape[1])
    for _ in range(STEPS):
        preferred = 1 / (1 + np.exp(-RETRAIN.beta * apart @ weights))
        weights += RATE * RETRAIN.beta * ((1 - SMOOTHING - preferred) @ apart) / len(apart)
    return weights


def challenge(kind: Kind, seed: int, horizon: int) -> Outcome:
    """One challenger before the gate, and if it passes as canary for at most `horizon` days."""
    world = build(seed, 0.4 if kind == "better" else 0.0)
    rng = np.random.default_rng([seed, 1])
    log = show(world, rng)
    weights, pairs = _challenger(kind, world, log, rng)
    challenger = np.log(_softmax(world.champion + world.features @ weights))
    verdict = gate.decide(_metrics(world, log, challenger, rng), RETRAIN, CHECKS)
    refused = ", ".join(reason.split(" ")[0] for reason in verdict.refusal.split("; ") if reason)
    days, found = run_canary(world, challenger, horizon, rng) if verdict.passed else (0, "no canary")
    return Outcome(kind, seed, _lift(world, challenger), pairs, verdict.passed, refused, found, days)


def run_canary(world: World, challenger: Floats, days: int, rng: np.random.Generator) -> tuple[int, str]:
    """Day of the last look, and its verdict; a canary without one is withdrawn as undecided."""
    rates = (np.exp(world.champion) * world.truth).sum(axis=1), (np.exp(challenger) * world.truth).sum(axis=1)
    canary = rng.permutation(USERS) < CANARY_SHARE * USERS
    before = np.full(USERS, float(SHOWINGS_PER_DAY * CANARY.before_days))
    users = UserClicks(
        canary, np.zeros(USERS), np.zeros(USERS), before, rng.binomial(before.astype(int), rates[0]) * 1.0
    )
    verdict = "open"
    for day in range(1, days + 1):
        clicks = rng.binomial(SHOWINGS_PER_DAY, np.where(canary, rates[1], rates[0]))
        users = replace(users, showings=users.showings + SHOWINGS_PER_DAY, clicks=users.clicks + clicks)
        base = float(users.before_clicks.sum() / users.before_showings.sum())
        verdict = look(
            users,
            alpha=CANARY.alpha,
            tau=CANARY.expected_lift * base,
            min_users=CANARY.min_users,
            min_clicks=CANARY.min_clicks,
        ).verdict
        if verdict in {"better", "worse"}:
            return day, verdict
    return days, verdict


def horizon_of(lift: float) -> int:
    """Days in which the product's forecast sees a lift in four of five cases, in a world of its own."""
    world = build(10_000, 0.4)
    shown = float(SHOWINGS_PER_DAY * CANARY.before_days)
    rates = (np.exp(world.champion) * world.truth).sum(axis=1)
    clicks = np.random.default_rng(10_000).binomial(int(shown), rates) * 1.0
    nothing = np.zeros(USERS)
    before = UserClicks(np.zeros(USERS, np.bool_), nothing, nothing, np.full(USERS, shown), clicks)
    tau = CANARY.expected_lift * float(clicks.sum() / before.before_showings.sum())
    days = days_to_see(lift, before, CANARY.before_days, share=CANARY_SHARE, alpha=CANARY.alpha, tau=tau)
    assert days is not None
    return days


def summary(outcomes: list[Outcome], horizon: int) -> dict[str, Any]:
    """The figures of all challengers."""
    worse, better = [one for one in outcomes if one.kind != "better"], [one for one in outcomes if one.kind == "better"]
    return {
        "written_down_before": {
            "users": USERS,
            "showings_per_user_and_day": SHOWINGS_PER_DAY,
            "canary_share": CANARY_SHARE,
            "planted_lift": PLANTED_LIFT,
            "horizon_days": horizon,
            "power": 0.8,
        },
        "worse": {
            "challengers": len(worse),
            "by_kind": dict(Counter(one.kind for one in worse)),
            "passed_the_gate": sum(one.passed for one in worse),
            "promoted": sum(one.canary == "better" for one in worse),
            "mean_true_lift": float(np.mean([one.true_lift for one in worse])),
        },
        "better": {
            "challengers": len(better),
            "passed_the_gate": sum(one.passed for one in better),
            "promoted": sum(one.canary == "better" for one in better),
            "mean_days": float(np.mean([one.days for one in better if one.canary == "better"] or [np.nan])),
        },
        "outcomes": [asdict(one) for one in outcomes],
    }


def run(count: int) -> dict[str, Any]:
    """So many worse ones and so many better ones."""
    horizon = horizon_of(PLANTED_LIFT)
    worse = [challenge(WORSE[number % len(WORSE)], number, int(CANARY.max_days)) for number in range(count)]
    return summary([*worse, *(challenge("better", 100 + number, horizon) for number in range(count))], horizon)


def _challenger(kind: Kind, world: World, log: Log, rng: np.random.Generator) -> tuple[Floats, int]:
    users, chosen, rejected = (column[~world.held[log.pairs()[0]]] for column in log.pairs())
    if kind == "better":
        return _planted(world), 0
    if kind == "others":
        users = rng.permutation(users)
    else:
        told = (
            rng.random(len(users)) < 0.5
            if kind == "coins"
            else rng.permutation(chosen > rejected) != (chosen > rejected)
        )
        chosen, rejected = np.where(told, rejected, chosen), np.where(told, chosen, rejected)
    return train(world, users, chosen, rejected), len(users)


def _planted(world: World) -> Floats:
    """Weights towards what is true, as strong as gives the planted lift."""
    logits = np.log(world.truth / (1 - world.truth))
    rows = (world.features - world.features.mean(axis=1, keepdims=True)).reshape(-1, world.features.shape[2])
    direction = np.linalg.lstsq(rows, (logits - logits.mean(axis=1, keepdims=True)).ravel(), rcond=None)[0]
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        reached = _lift(world, np.log(_softmax(world.champion + world.features @ (middle * direction)))) >= PLANTED_LIFT
        low, high = (low, middle) if reached else (middle, high)
    return np.asarray(high * direction)


def _lift(world: World, challenger: Floats) -> float:
    ours, theirs = ((np.exp(policy) * world.truth).sum() for policy in (challenger, world.champion))
    return float(ours / theirs - 1)


def _metrics(world: World, log: Log, challenger: Floats, rng: np.random.Generator) -> dict[str, gate.Metric]:
    """As a retraining measures them, on held-out users."""
    users, chosen, rejected = (column[world.held[log.pairs()[0]]] for column in log.pairs())
    gained = challenger - world.champion
    kl = (np.exp(challenger) * gained).sum(axis=1)
    scores = PairScores(
        tuple(world.names[user] for user in users),
        tuple(RETRAIN.beta * (gained[users, chosen] - gained[users, rejected])),
        tuple(kl[users]),
        tuple(gained[users, chosen]),
    )
    value = _off_policy(world, log, challenger, rng)
    held = np.flatnonzero(world.held)[: RETRAIN.gate_users]
    noise = rng.gumbel(size=(len(held), RETRAIN.gate_items, RETRAIN.gate_answers, len(LOOKS)))
    grids = [_grid(world, held, policy[held][:, None, None] + noise) for policy in (world.champion, challenger)]
    return {
        **gate_metrics.of_pairs(scores, RETRAIN.gate_confidence),
        "off_policy_gain": value.gain if isinstance(value, OffPolicyValue) else value,
        **diversity.drops(grids[0], grids[1], RETRAIN.gate_confidence),
    }


def _off_policy(
    world: World, log: Log, challenger: Floats, rng: np.random.Generator
) -> OffPolicyValue | gate.NotJudged:
    held = np.flatnonzero(world.held)
    tasks = [(user, task) for user in held for task in range(TASKS)]
    rows: list[tuple[float, ...]] = []
    users: list[str] = []
    for place in rng.permutation(len(tasks))[: RETRAIN.off_policy_tasks]:
        user, task = tasks[place]
        answers = log.answers[user, task]
        shares = [
            off_policy.shown_probabilities(policy[user, answers], READER) for policy in (world.champion, challenger)
        ]
        for side in (0, 1):
            shown = log.shown[user, task, side]
            clicked, propensity = log.clicked[user, task, side], log.propensities[user, task, side]
            rows.append((float(clicked), propensity, shares[0][shown], shares[1][shown]))
            users.append(world.names[user])
    clicks, logged, base, new = np.array(rows).T
    showings = LoggedShowings(tuple(users), clicks, logged, base, new)
    return off_policy.evaluate(
        showings, RETRAIN.gate_confidence, RETRAIN.off_policy_min_samples, RETRAIN.off_policy_min_clicks
    )


def _grid(world: World, users: Ints, noisy: Floats) -> AnswerGrid:
    looks = noisy.argmax(axis=-1)
    rows = tuple(tuple(tuple((int(look),) for look in answers) for answers in row) for row in looks)
    return AnswerGrid(tuple(world.names[user] for user in users), rows)


def _softmax(logits: Floats) -> Floats:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True))


def _one_hot(numbers: Ints, width: int) -> Floats:
    return np.asarray(np.eye(width)[numbers])


def main() -> None:
    """Run all of them and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, help="worse ones, and better ones")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    given = parser.parse_args()
    found = run(given.count)
    if given.out:
        given.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps({name: found[name] for name in ("written_down_before", "worse", "better")}, indent=2))  # noqa: T201 -- a command prints


if __name__ == "__main__":
    main()
