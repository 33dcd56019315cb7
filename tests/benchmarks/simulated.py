"""Pictures that more users would need, by the statistics of answers that were given.

Which answers a further user of an item gets follows Pitman's sampling formula (Pitman 1995; Ewens' with a discount): the next
of n drawn answers, k of them distinct, is a new one with probability (θ + k d) / (θ + n), else an old one, the likelier the
more often it was drawn. θ and d fit best what was drawn (likelihood over the items). How many answers a task asks for and
keeps is that of a task of the real night. Nothing is sampled from the model, and no picture is drawn.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DISCOUNTS = tuple(step / 20 for step in range(19))
STRENGTHS = tuple(2.0**power for power in range(-6, 9))


@dataclass(frozen=True)
class Asked:
    """What a task asked for: the answers that it had drawn, in order, and how many it kept."""

    item_id: str
    drawn: tuple[tuple[int, ...], ...]
    kept: int


@dataclass(frozen=True)
class Novelty:
    """Pitman's sampling formula: `strength` is θ, `discount` d in 0..1."""

    strength: float
    discount: float

    def chance(self, drawn: int, distinct: int) -> float:
        """Probability that the next answer of an item is a new one."""
        return (self.strength + distinct * self.discount) / (self.strength + drawn)

    def log_likelihood(self, counts: Sequence[int]) -> float:
        """Of an item whose distinct answers were drawn so often each."""
        new = sum(math.log(self.strength + number * self.discount) for number in range(1, len(counts)))
        order = sum(math.log(self.strength + number) for number in range(1, sum(counts)))
        again = sum(math.log(number - self.discount) for count in counts for number in range(1, count))
        return new + again - order

    @classmethod
    def fitted(cls, tasks: Iterable[Asked]) -> Novelty:
        """The one that makes what was drawn likeliest."""
        by_item: dict[str, Counter[tuple[int, ...]]] = {}
        for task in tasks:
            by_item.setdefault(task.item_id, Counter()).update(task.drawn)
        items = [list(counts.values()) for counts in by_item.values()]
        grid = [cls(strength, discount) for strength in STRENGTHS for discount in DISCOUNTS]
        return max(grid, key=lambda one: sum(one.log_likelihood(counts) for counts in items))


@dataclass(frozen=True)
class Need:
    """What so many users need."""

    pictures: int
    posters: int

    @property
    def per_poster(self) -> float:
        """Pictures drawn per poster that is kept."""
        return self.pictures / max(1, self.posters)


def simulate(targets: Mapping[str, Sequence[str]], tasks: Sequence[Asked], novelty: Novelty, seed: int) -> Need:
    """Users with the items of their tasks -> pictures and posters; each answer of a task is another one."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[int]] = {}
    posters = 0
    for items in targets.values():
        for item in items:
            like = tasks[int(rng.integers(len(tasks)))]
            _draw(drawn.setdefault(item, []), len(like.drawn), novelty, rng)
            posters += like.kept
    return Need(sum(len(counts) for counts in drawn.values()), posters)


def _draw(counts: list[int], answers: int, novelty: Novelty, rng: np.random.Generator) -> None:
    """Add a task's answers to how often each answer of the item was drawn."""
    taken: set[int] = set()
    for _ in range(answers):
        place = _next(counts, novelty, rng)
        while place in taken:
            place = _next(counts, novelty, rng)
        if place == len(counts):
            counts.append(0)
        counts[place] += 1
        taken.add(place)


def _next(counts: Sequence[int], novelty: Novelty, rng: np.random.Generator) -> int:
    total = sum(counts)
    if not total or rng.random() < novelty.chance(total, len(counts)):
        return len(counts)
    weights = np.array(counts) - novelty.discount
    return int(rng.choice(len(counts), p=weights / weights.sum()))
