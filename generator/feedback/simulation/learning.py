"""One retrain of the simulation: the click model, pairs, a challenger, the gate.

The product's own code fits and judges the click model (generator/feedback/clicks), ranks the pairs (reward_pairs.best_over_worst),
values the challenger off-policy (off_policy.evaluate), measures its diversity (diversity.drops) and decides (gate.decide, by those
metrics that need no picture and no feedback pair). Simulated is the training: DPO's loss, with the settings' β and label
smoothing, is minimised over the shift of palettes and styles, and the challenger goes `REACH` of the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt

from generator.feedback.clicks.examples import Examples, build
from generator.feedback.clicks.fit import fit
from generator.feedback.clicks.judge import Judgement, judge
from generator.feedback.diversity import AnswerGrid, drops
from generator.feedback.gate import CHECKS, Metric, NotJudged, decide
from generator.feedback.intervals import UserBootstrap
from generator.feedback.off_policy import LoggedShowings, OffPolicyValue, evaluate, shown_probabilities
from generator.feedback.reward_pairs import ExpectedClicks, best_over_worst
from generator.feedback.simulation.drawing import Shift, codes_of, look_logprobs, look_of, preferences
from generator.feedback.simulation.log import Log, LoggedTask
from generator.feedback.simulation.showing import PolicyReader, Reader
from generator.feedback.simulation.world import LOOKS, PALETTES, STYLES, Floats, Ints
from generator.feedback.split import is_held_out
from generator.nightly.policies import ModelPolicy
from generator.nightly.reward_policy import RewardPolicy
from generator.nightly.select import propensities
from schemas.click_features import Candidates
from schemas.click_model import ClickModel
from schemas.settings import Settings

REACH = 0.6
"""Share of the way to the loss's minimum: nano's DPO (β 1, 1e-3, four epochs, 317 pairs, a tenth of them wrong) took a palette
from 9 to 28 % of the answers, which is 1.4 nats; the minimum, log(0.9 / 0.1), is at 2.2."""
PAIR_TASKS = 1_500
"""Tasks, the latest ones, that pairs are ranked of: more move a shift of eleven numbers no further."""
RIDGE = 1e-3
"""Inverse variance that holds the shift of what no pair tells of."""
NEWTON_STEPS = 50
JUDGED = ("kl", "off_policy_gain", "user_diversity_drop", "answer_diversity_drop", "information_drop")
"""The gate's metrics that codes alone give."""
BASE = "codes"
"""Name of the simulated checkpoint in click models."""


@dataclass(frozen=True)
class Retrained:
    """What came of a retrain, as its record tells it."""

    reader: Reader | None
    """What readers show from now on; None leaves it as it is."""
    shift: Shift
    record: dict[str, object]


def retrain(log: Log, looks: Ints, reading: float, shift: Shift, number: int, settings: Settings) -> Retrained:
    """Learn from all showings so far.

    Args:
        log: the arm's showings.
        looks: (U, H), the histories that the next night reads.
        reading: how strongly the model reads them.
        shift: of the serving model.
        number: the click model's, from 1.
        settings: clicks, night and retrain are used.
    """
    examples = build(log.showings(), settings.clicks.max_weight)
    judgement = judge(examples)
    record: dict[str, object] = {"showings": len(log.tasks), "clicks": int(examples.clicked.sum())}
    if judgement is None:
        return Retrained(None, shift, {**record, "click_model": "refused: clicks of one day or of too few users"})
    record |= {"click_model": "active" if judgement.passed else "refused", "judgement": asdict(judgement)}
    if not judgement.passed:
        return Retrained(None, shift, record)
    model = fit(examples, _calibration(judgement), BASE)
    night = settings.night.model_copy(update={"policy": "reward"})
    reader = PolicyReader(RewardPolicy(model, number, ModelPolicy()), night)
    challenger, story = _challenge(log, examples, judgement, shift, _Histories(looks, reading), settings)
    return Retrained(reader, challenger, {**record, **story})


@dataclass(frozen=True)
class _Histories:
    """What the models answer from."""

    looks: Ints
    reading: float

    def logprobs(self, shift: Shift) -> Floats:
        """Log π of every look for every user, (U, LOOKS)."""
        return look_logprobs(*preferences(self.reading, self.looks, shift))


def _challenge(
    log: Log, examples: Examples, judgement: Judgement, shift: Shift, histories: _Histories, settings: Settings
) -> tuple[Shift, dict[str, object]]:
    """The shift that serves afterwards, and the challenger's story."""
    held = np.array([is_held_out(user, settings.retrain.holdout_share) for user in examples.users])
    teacher = fit(_rows(examples, ~held), _calibration(judgement), BASE)
    chosen, rejected, weights = ranked_pairs(_latest(log, held), teacher, settings.retrain.reward_certainty)
    story: dict[str, object] = {"pairs": len(weights)}
    if len(weights) < settings.retrain.min_pairs:
        return shift, {**story, "challenger": f"none: {len(weights)} pairs, {settings.retrain.min_pairs} are needed"}
    learned = minimise_dpo(chosen, rejected, weights, settings.retrain.beta, settings.retrain.label_smoothing)
    challenger = shift.plus(learned)
    shown = [task for task, judges in zip(log.tasks, held, strict=True) if judges]
    metrics = _metrics(shown, teacher, histories, (challenger, shift), settings)
    checks = tuple(check for check in CHECKS if check.metric in JUDGED)
    verdict = decide(metrics, settings.retrain, checks)
    story |= {"challenger": "promoted" if verdict.passed else "refused", "gate": list(verdict.reasons)}
    return challenger if verdict.passed else shift, story


def ranked_pairs(tasks: Sequence[LoggedTask], model: ClickModel, certainty: float) -> tuple[Ints, Ints, Floats]:
    """(P,) looks that were chosen and rejected, and the pairs' weights."""
    found = []
    for task in tasks:
        ranked = best_over_worst(task.answers, expected_clicks(model, task), certainty)
        if ranked is not None:
            best, worst, weight = ranked
            found.append((look_of(task.answers[best].codes), look_of(task.answers[worst].codes), weight))
    table = np.array(found, np.float64).reshape(len(found), 3)
    return table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2]


def expected_clicks(model: ClickModel, task: LoggedTask) -> ExpectedClicks:
    """Click probabilities of a task's answers at the best position."""
    candidates = Candidates.of(task.answers, task.history)
    found = model.utilities(candidates)
    return ExpectedClicks(model.probabilities(candidates), found.mean, found.covariance)


def minimise_dpo(chosen: Ints, rejected: Ints, weights: Floats, beta: float, smoothing: float) -> Shift:
    """The shift that DPO reaches: `REACH` of the way to the minimum of its loss.

    The loss is that of generator/training/dpo/loss.py, with label smoothing and weighted pairs.
    """
    rows = _one_hot(chosen) - _one_hot(rejected)
    scale = weights / weights.mean()
    shift = np.zeros(rows.shape[1])
    for _ in range(NEWTON_STEPS):
        wins = 1 / (1 + np.exp(-beta * (rows @ shift)))
        slope = beta * rows.T @ (scale * (1 - smoothing - wins)) - RIDGE * shift
        curvature = (rows * (beta**2 * scale * wins * (1 - wins))[:, None]).T @ rows
        shift = shift + np.linalg.solve(curvature + RIDGE * np.eye(len(shift)), slope)
    shift *= REACH
    return Shift(shift[:PALETTES], shift[PALETTES:])


def _metrics(
    shown: Sequence[LoggedTask],
    model: ClickModel,
    histories: _Histories,
    shifts: tuple[Shift, Shift],
    settings: Settings,
) -> dict[str, Metric]:
    """What the gate compares of challenger and champion."""
    users = [user for user in range(len(histories.looks)) if is_held_out(f"user{user}", settings.retrain.holdout_share)]
    logprobs = tuple(histories.logprobs(shift)[users] for shift in shifts)
    kl = (np.exp(logprobs[0]) * (logprobs[0] - logprobs[1])).sum(axis=1)
    confidence = settings.retrain.gate_confidence
    value = _off_policy(shown, model, shifts, settings)
    names = [f"user{user}" for user in users]
    grids = [_grid(names[: settings.retrain.gate_users], side, settings) for side in logprobs]
    return {
        "kl": UserBootstrap(names, confidence).mean(kl),
        "off_policy_gain": value.gain if isinstance(value, OffPolicyValue) else value,
        **drops(grids[1], grids[0], confidence),
    }


def _grid(users: Sequence[str], logprobs: Floats, settings: Settings) -> AnswerGrid:
    """Answers of held-out users for the same items, sampled with the same random numbers for every model."""
    items, count = settings.retrain.gate_items, settings.retrain.gate_answers
    noise = np.random.default_rng(settings.retrain.seed).gumbel(size=(len(users), items, count, LOOKS))
    looks = (logprobs[: len(users), None, None] + noise).argmax(axis=-1)
    return AnswerGrid(
        tuple(users),
        tuple(
            tuple(tuple(codes_of(item, int(look)) for look in row) for item, row in enumerate(rows)) for rows in looks
        ),
    )


def _off_policy(
    shown: Sequence[LoggedTask], model: ClickModel, shifts: tuple[Shift, Shift], settings: Settings
) -> Metric | OffPolicyValue:
    """The challenger's value on held-out showings, both models ranking the logged answers."""
    reader = np.array(propensities([0.0] * settings.night.variants, settings.night.exploration))
    rows = []
    kept = shown[-settings.retrain.off_policy_tasks :]
    for task in kept:
        looks = np.array([look_of(answer.codes) for answer in task.answers])
        base = np.array([answer.logprob for answer in task.answers]) - task.shift.of(looks)
        new, old = (shown_probabilities(base + shift.of(looks), reader) for shift in shifts)
        means, place = expected_clicks(model, task).mean, task.shown
        rows.append((task.clicked, task.propensity, old[place], new[place], means[place], old @ means, new @ means))
    if not rows:
        return NotJudged("no showings of held-out users")
    users = tuple(f"user{task.user}" for task in kept)
    log = LoggedShowings(users, *np.array(rows, np.float64).T)
    judged = settings.retrain
    return evaluate(log, judged.gate_confidence, judged.off_policy_min_samples, judged.off_policy_min_clicks)


def _calibration(judgement: Judgement) -> Floats:
    return np.array([judgement.intercept, judgement.slope])


def _rows(examples: Examples, kept: npt.NDArray[np.bool_]) -> Examples:
    columns = {
        name: getattr(examples, name)[kept] for name in ("context", "choice", "clicked", "weights", "users", "days")
    }
    return replace(examples, **columns)


def _latest(log: Log, held: npt.NDArray[np.bool_]) -> list[LoggedTask]:
    """The latest task of each user and item, without held-out users, as pairs are made of."""
    tasks = {(task.user, task.item): task for task, judges in zip(log.tasks, held, strict=True) if not judges}
    return list(tasks.values())[-PAIR_TASKS:]


def _one_hot(looks: Ints) -> Floats:
    rows: Floats = np.hstack([np.eye(PALETTES)[looks // STYLES], np.eye(STYLES)[looks % STYLES]])
    return rows
