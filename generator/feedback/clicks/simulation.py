"""A world whose truth is known, without pictures: users, answers of codes, nights, clicks.

An answer is a palette and a style. What is assumed of the truth (`World`):

- the log-odds of a click are base + the answer's common effect (standard deviation `effect`, the same for all users; no history
  shows it) + the user's taste for it (`taste`, drifting by `drift` a day) + the item's appeal, and a position is looked at with
  probability 1 / (1 + `position_bias` · position);
- a user's history are catalogue pictures, clicked by taste alone; the model reads the last `history` of them and samples answers
  by how often it finds their palette and style there, along the night's ladder of temperatures, greedy first.

Every random number belongs to a (user, day, showing), so that arms which show the same answer see the same click. Policies are
given, because this part of the project does not import the night's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.feedback.clicks.examples import Showings
from schemas.answers import StoredAnswer, distinct
from schemas.click_features import Array, Candidates

PALETTES, STYLES = 6, 5
WIDTH = 24
"""Width of embeddings."""
CODES = 8
"""Codes of an answer: half of them its palette's, half its style's."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What is true; effects in log-odds."""

    seed: int
    effect: float
    users: int = 330
    items: int = 200
    days: int = 10
    showings_per_day: int = 4
    taste: float = 0.6
    drift: float = 0.1
    appeal: float = 0.5
    position_bias: float = 0.35
    base: float = -3.1
    history: int = 5
    reading: float = 1.0
    """Log-odds per picture of the history with which the model answers in its palette or style."""
    answers: int = 8
    temperatures: tuple[float, ...] = (1.0, 1.3, 1.6, 2.0)


@dataclass(frozen=True)
class Shown:
    """One of the answers that readers may show for a task."""

    index: int
    """Place among the task's answers."""
    chosen_with: float
    """Probability with which it was chosen to be drawn."""
    share: float
    """Probability with which readers show it, among those drawn."""


Chooser = Callable[[Sequence[StoredAnswer], Array, int], list[Shown]]
"""What readers may show of a task's answers, given the history's embeddings (H, E) and the task's seed."""
Learner = Callable[[Showings], "Chooser | None"]
"""What is learned of all showings so far; None where it is refused."""


@dataclass(frozen=True)
class Task:
    """A user, an item and what the model answers."""

    user: int
    item: int
    position: int
    answers: tuple[StoredAnswer, ...]
    looks: tuple[int, ...]
    """Number of each answer's palette and style together."""
    history: Array
    truth: Array
    """(PALETTES x STYLES,): probability of a click, by look."""
    dice: tuple[float, float]
    """Which variant the reader shows, and whether it is clicked."""


@dataclass(frozen=True)
class Arm:
    """What came of a policy: expected clicks by day, and showings as they were logged."""

    rates: Array
    """(D,): mean true probability of a click on what was shown."""
    showings: Showings
    explored_share: float


def build(world: World) -> list[list[Task]]:
    """The tasks of all days; they are the same for every policy."""
    rng = np.random.default_rng(world.seed)
    embeddings = _Embeddings(rng)
    common = rng.normal(0, world.effect, PALETTES)[:, None] + rng.normal(0, world.effect, STYLES)
    scale = world.taste / np.sqrt(2)
    palettes, styles = rng.normal(0, scale, (world.users, PALETTES)), rng.normal(0, scale, (world.users, STYLES))
    appeal = rng.normal(0, world.appeal, world.items)
    official = rng.integers(0, [PALETTES, STYLES], (world.items, 2))
    histories: list[list[int]] = [[] for _ in range(world.users)]
    days = []
    for day in range(-world.history, world.days):
        palettes, styles = _drifted(rng, palettes, scale, world.drift), _drifted(rng, styles, scale, world.drift)
        liked = 4 * (palettes[:, official[:, 0]] + styles[:, official[:, 1]]) + rng.gumbel(
            size=(world.users, world.items)
        )
        for user, item in enumerate(liked.argmax(axis=1)):
            histories[user] = [*histories[user], int(item)][-world.history :]
        if day >= 0:
            tasks = []
            for user in range(world.users):
                taste = palettes[user][:, None] + styles[user]
                pictures = official[histories[user]]
                for position, item in enumerate(rng.choice(world.items, world.showings_per_day, replace=False)):
                    logits = world.base + common + taste + appeal[item]
                    seen = 1 / (1 + world.position_bias * position)
                    truth = seen / (1 + np.exp(-logits.ravel()))
                    answers, looks = _answers(world, rng, embeddings, pictures, int(item))
                    history = embeddings.of(pictures[:, 0], pictures[:, 1])
                    dice = (float(rng.random()), float(rng.random()))
                    tasks.append(Task(user, int(item), position, answers, looks, history, truth, dice))
            days.append(tasks)
    return days


def run(days: Sequence[Sequence[Task]], first: Chooser, learn: Learner | None = None, after: Sequence[int] = ()) -> Arm:
    """Let a policy choose night after night; after some days what was logged may give another one."""
    chooser, log = first, _Log()
    rates, explored, count = [], 0, 0
    for day, tasks in enumerate(days):
        total = 0.0
        for number, task in enumerate(tasks):
            shown = chooser(task.answers, task.history, 1_000_003 * day + number)
            pick = _pick(shown, task.dice[0])
            chance = float(task.truth[task.looks[pick.index]])
            total += chance
            log.add(day, task, pick, task.dice[1] < chance)
            explored += pick is not shown[0]
            count += 1
        rates.append(total / len(tasks))
        if learn is not None and day in after:
            chooser = learn(log.showings()) or chooser
    return Arm(np.array(rates), log.showings(), explored / count)


def oracle(days: Sequence[Sequence[Task]]) -> Array:
    """(D,): the same of the best of all looks under the truth."""
    return np.array([np.mean([task.truth.max() for task in tasks]) for tasks in days])


def distinct_answers(days: Sequence[Sequence[Task]]) -> float:
    """Mean number of distinct answers of a task."""
    return float(np.mean([len(distinct(task.answers)) for tasks in days for task in tasks]))


def _pick(shown: Sequence[Shown], point: float) -> Shown:
    for one in shown:
        point -= one.share
        if point < 0:
            return one
    return shown[-1]


class _Embeddings:
    """Vectors of palettes and styles, as a scorer would see them, and their codes."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._palettes, self._styles = rng.standard_normal((PALETTES, WIDTH)), rng.standard_normal((STYLES, WIDTH))
        self._rng = rng

    def of(self, palettes: Ints, styles: Ints) -> Array:
        """(N, WIDTH), unit rows, with a little noise."""
        rows = self._palettes[palettes] + self._styles[styles]
        rows = rows + 0.3 * self._rng.standard_normal(rows.shape)
        unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def _drifted(rng: np.random.Generator, tastes: Array, scale: float, drift: float) -> Array:
    """Tastes a day later, as strong as before."""
    kept: Array = np.sqrt(1 - drift**2) * tastes + drift * rng.normal(0, scale, tastes.shape)
    return kept


def _answers(
    world: World, rng: np.random.Generator, embeddings: _Embeddings, pictures: Ints, item: int
) -> tuple[tuple[StoredAnswer, ...], tuple[int, ...]]:
    logits: list[Array] = [
        (world.reading * np.bincount(pictures[:, column], minlength=width)).astype(np.float64)
        for column, width in enumerate((PALETTES, STYLES))
    ]
    temperatures = (0.0, *(world.temperatures[n % len(world.temperatures)] for n in range(world.answers - 1)))
    parts = np.array([[_sampled(rng, part, t) for part in logits] for t in temperatures])
    logprobs = np.sum([_log_softmax(part)[parts[:, column]] for column, part in enumerate(logits)], axis=0)
    previews = embeddings.of(parts[:, 0], parts[:, 1])
    history = embeddings.of(pictures[:, 0], pictures[:, 1])
    answers = tuple(
        StoredAnswer(
            codes=(*(1000 * item + int(palette),) * (CODES // 2), *(500 + 1000 * item + int(style),) * (CODES // 2)),
            alpha=0.5,
            temperature=temperature,
            logprob=float(logprob),
            sampling_logprob=float(logprob),
            preview=preview.astype(np.float32),
            cis_history=100 * float((history @ preview).mean()),
        )
        for (palette, style), temperature, logprob, preview in zip(parts, temperatures, logprobs, previews, strict=True)
    )
    return answers, tuple(int(palette) * STYLES + int(style) for palette, style in parts)


def _sampled(rng: np.random.Generator, logits: Array, temperature: float) -> int:
    noise = rng.gumbel(size=len(logits))
    return int((logits + temperature * noise).argmax())


def _log_softmax(logits: Array) -> Array:
    shares: Array = logits - np.log(np.exp(logits).sum())
    return shares


class _Log:
    """Showings as they are collected."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str, int, int, float, int, int, float]] = []
        self._candidates: list[Candidates] = []

    def add(self, day: int, task: Task, shown: Shown, clicked: bool) -> None:
        places = distinct(task.answers)
        place = places.index(next(p for p in places if task.answers[p].codes == task.answers[shown.index].codes))
        number = len(self._candidates)
        self._candidates.append(Candidates.of([task.answers[p] for p in places], task.history))
        names = f"user{task.user}", f"item{task.item}"
        propensity = shown.chosen_with * shown.share
        self._rows.append((*names, number, place, float(clicked), day, task.position, propensity))

    def showings(self) -> Showings:
        users, items, tasks, answers, clicked, days, positions, propensities = zip(*self._rows, strict=True)
        return Showings(
            users=np.array(users),
            items=np.array(items),
            tasks=np.array(tasks),
            answers=np.array(answers),
            clicked=np.array(clicked),
            days=np.array(days),
            positions=np.array(positions),
            surfaces=np.full(len(users), "home"),
            propensities=np.array(propensities),
            candidates=tuple(self._candidates),
        )
