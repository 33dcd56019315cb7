"""The model of the simulation on codes: it reads a history and answers with looks.

A learned model differs by its shift: log-odds added to every palette and every style, the same for all users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from generator.feedback.simulation.world import LOOKS, PALETTES, STYLES, Draws, Floats, Ints
from generator.nightly.clicked_posters import Seen, with_clicks
from schemas.answers import StoredAnswer

CODES = 8
"""Codes of an answer: half of them its palette's, half its style's, others for each item."""


@dataclass(frozen=True)
class Shift:
    """What a model has learned, in log-odds."""

    palettes: Floats
    styles: Floats

    @classmethod
    def none(cls) -> Shift:
        """The base model."""
        return cls(np.zeros(PALETTES), np.zeros(STYLES))

    def of(self, looks: Ints) -> Floats:
        """(N,): log-odds added to looks (N,)."""
        found: Floats = self.palettes[looks // STYLES] + self.styles[looks % STYLES]
        return found

    def plus(self, other: Shift) -> Shift:
        """Trained further."""
        return Shift(self.palettes + other.palettes, self.styles + other.styles)


class Histories:
    """The last pictures of every user, oldest first.

    They are of the catalogue, and clicked posters by the rule of nights.

    `most_drawn`: clicked posters in a history at most.
    """

    def __init__(self, draws: Draws, most_drawn: int) -> None:
        self._draws, self._most_drawn = draws, most_drawn
        self._clicks: list[list[Seen[int, int]]] = [[] for _ in range(draws.world.users)]
        self._days = draws.world.history
        self.items: Ints = draws.catalogue[: self._days].T.copy()
        """(U, H)"""
        self.looks: Ints = draws.official[self.items]

    def add_catalogue_clicks(self, night: int) -> None:
        """The clicks of the day before a night."""
        self._days = self._draws.world.history + night + 1
        self.items = self._draws.catalogue[self._days - self._draws.world.history : self._days].T.copy()
        self.looks = self._draws.official[self.items]
        for user, clicks in enumerate(self._clicks):
            if clicks:
                self._merge(user)

    def add_poster(self, user: int, item: int, look: int, place: int) -> None:
        """A poster that was clicked in the night after the last clicks of the catalogue, at a position."""
        if not self._most_drawn:
            return
        moment = _day(self._days - 1) + timedelta(hours=12 + place)
        others = [click for click in self._clicks[user] if click.item_id != item]
        self._clicks[user] = [Seen(item, moment, look), *others][: self._most_drawn]
        self._merge(user)

    def _merge(self, user: int) -> None:
        clicked: dict[int, Seen[int, int]] = {}
        for day in reversed(range(self._days)):
            item = int(self._draws.catalogue[day, user])
            clicked.setdefault(item, Seen(item, _day(day)))
        merged = with_clicks(list(clicked.values()), self._clicks[user])[: self._draws.world.history]
        for place, entry in zip(range(self.items.shape[1] - 1, -1, -1), merged, strict=False):
            self.items[user, place] = entry.item_id
            self.looks[user, place] = self._draws.official[entry.item_id] if entry.picture is None else entry.picture

    @property
    def embeddings(self) -> Floats:
        """Embeddings of the pictures, (U, H, WIDTH)."""
        return self._draws.embeddings[self.items, self.looks]


@dataclass(frozen=True)
class NightAnswers:
    """What a model answers for every task of a night; U users, T showings, A answers."""

    items: Ints
    """(U, T)"""
    looks: Ints
    """(U, T, A); the first is the model's best."""
    logprobs: Floats
    """(U, T, A): log π at temperature 1."""
    histories: Floats
    """(U, H, WIDTH): embeddings of the pictures that were read."""
    temperatures: tuple[float, ...]

    def stored(self, draws: Draws, user: int, place: int) -> list[StoredAnswer]:
        """A task's distinct answers as the product stores them, each where it came first."""
        item, looks = int(self.items[user, place]), self.looks[user, place].tolist()
        numbers = [looks.index(look) for look in dict.fromkeys(looks)]
        previews = draws.embeddings[item, [looks[number] for number in numbers]]
        likeness = 100 * (previews @ self.histories[user].T).mean(axis=1)
        logprobs = self.logprobs[user, place].tolist()
        return [
            StoredAnswer(
                codes=codes_of(item, looks[number]),
                alpha=0.5,
                temperature=self.temperatures[number],
                logprob=logprobs[number],
                sampling_logprob=logprobs[number],
                preview=preview,
                cis_history=score,
            )
            for number, preview, score in zip(numbers, previews.astype(np.float32), likeness.tolist(), strict=True)
        ]


def _day(number: int) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number)


def answer(draws: Draws, night: int, histories: Histories, shift: Shift) -> NightAnswers:
    """Sample the answers of all tasks of a night."""
    world = draws.world
    temperatures = (0.0, *(world.temperatures[n % len(world.temperatures)] for n in range(world.answers - 1)))
    noise = draws.gumbels[night] * np.array(temperatures)[:, None]
    palettes, styles = preferences(world.reading, histories.looks, shift)
    chosen = [
        (palettes[:, None, None] + noise[..., :PALETTES]).argmax(axis=-1),
        (styles[:, None, None] + noise[..., PALETTES:]).argmax(axis=-1),
    ]
    looks = STYLES * chosen[0] + chosen[1]
    logprobs = look_logprobs(palettes, styles)
    return NightAnswers(
        items=draws.items[night],
        looks=looks,
        logprobs=np.take_along_axis(logprobs[:, None], looks.reshape(len(looks), 1, -1), axis=2).reshape(looks.shape),
        histories=histories.embeddings,
        temperatures=temperatures,
    )


def preferences(reading: float, looks: Ints, shift: Shift) -> tuple[Floats, Floats]:
    """(U, PALETTES) and (U, STYLES): the model's log-odds, from histories of looks (U, H)."""
    palettes = (looks[..., None] // STYLES == np.arange(PALETTES)).sum(axis=1)
    styles = (looks[..., None] % STYLES == np.arange(STYLES)).sum(axis=1)
    return reading * palettes + shift.palettes, reading * styles + shift.styles


def look_logprobs(palettes: Floats, styles: Floats) -> Floats:
    """(U, LOOKS): log π of every look."""
    joint = _log_softmax(palettes)[:, :, None] + _log_softmax(styles)[:, None, :]
    return joint.reshape(len(joint), LOOKS)


def codes_of(item: int, look: int) -> tuple[int, ...]:
    """Visual codes of an item's picture in a look."""
    palette, style = divmod(look, STYLES)
    return (*(1000 * item + palette,) * (CODES // 2), *(500 + 1000 * item + style,) * (CODES // 2))


def look_of(codes: Sequence[int]) -> int:
    """Inverse of `codes_of`."""
    return STYLES * (codes[0] % 500) + codes[-1] % 500


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    shares: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shares
