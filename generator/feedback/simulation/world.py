"""A world whose truth is known: users, items, and all random numbers of their days.

A poster's look is a palette and a style. What is assumed of the truth (`World`):

- the log-odds of a click are base + the look's common effect (standard deviation `strength` for palettes and for styles, the same
  for all users; no history shows it) + the user's taste for it (`taste`, drifting by `drift` a night) + the item's appeal, and a
  position is looked at with probability 1 / (1 + `position_bias` · position);
- a user clicks one catalogue picture a day, by taste alone.

Every random number belongs to a (user, night, showing) and is drawn before any arm runs, so that arms which show the same look see
the same click, and worlds of other strengths differ by the strength alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

PALETTES, STYLES = 6, 5
LOOKS = PALETTES * STYLES
"""A look's number is STYLES · palette + style."""
WIDTH = 24
"""Width of embeddings."""
EMBEDDING_NOISE = 0.3
"""Standard deviation, per direction, of what a picture's embedding has of its own; that of a palette's or style's is 1."""
TASTE_IN_CATALOGUE = 4.0
"""How much more strongly taste decides between catalogue pictures than between posters of one item."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """What is true; effects in log-odds."""

    seed: int
    strength: float
    users: int = 330
    items: int = 200
    nights: int = 10
    showings: int = 4
    """Per user and night."""
    taste: float = 0.6
    drift: float = 0.1
    appeal: float = 0.5
    position_bias: float = 0.35
    base: float = -3.1
    history: int = 5
    """Pictures of a history that the model reads."""
    answers: int = 8
    temperatures: tuple[float, ...] = (1.0, 1.3, 1.6, 2.0)
    """The night's ladder, for all answers but the first, which is greedy."""
    reading: float = 1.0
    """Log-odds per picture of the history with which the model answers in its palette or style."""


class Draws:
    """The truth and all random numbers of a world; N nights, U users, T showings, A answers, I items."""

    def __init__(self, world: World) -> None:
        self.world = world
        rng = np.random.default_rng(world.seed)
        nights, users, shown = world.nights, world.users, world.showings
        self._palettes, self._styles = rng.standard_normal((PALETTES, WIDTH)), rng.standard_normal((STYLES, WIDTH))
        common = rng.standard_normal(PALETTES)[:, None] + rng.standard_normal(STYLES)
        self.common: Floats = world.strength * common.ravel()
        """(LOOKS,)"""
        scale = world.taste / np.sqrt(2)
        self.tastes = [
            _drifting(rng, users, width, scale, world.drift, world.history + nights) for width in (PALETTES, STYLES)
        ]
        """Tastes for palettes and for styles, (history + N, U, width): the first days only make histories."""
        self.appeal: Floats = rng.normal(0, world.appeal, world.items)
        official = rng.integers(0, [PALETTES, STYLES], (world.items, 2))
        self.official: Ints = official @ np.array([STYLES, 1])
        """(I,): look of each item's own picture."""
        self.embeddings: Floats = _embeddings(rng, self._palettes, self._styles, world.items)
        """(I, LOOKS, WIDTH), unit rows: any picture of an item, as a scorer sees it."""
        self.catalogue: Ints = self._catalogue_clicks(rng)
        """(history + N, U): item that each user clicked in the catalogue on each day."""
        self.items: Ints = np.array(
            [[rng.choice(world.items, shown, replace=False) for _ in range(users)] for _ in range(nights)]
        )
        """(N, U, T): items shown, by position."""
        self.gumbels: Floats = rng.gumbel(size=(nights, users, shown, world.answers, PALETTES + STYLES))
        self.dice: Floats = rng.random((nights, users, shown, 2))
        """(N, U, T, 2): which variant the reader shows, and whether it is clicked."""

    @cached_property
    def truth(self) -> Floats:
        """(N, U, T, LOOKS): probability of a click, by look."""
        world = self.world
        palettes, styles = (taste[world.history :] for taste in self.tastes)
        taste = (palettes[..., :, None] + styles[..., None, :]).reshape(*palettes.shape[:2], LOOKS)
        logits = world.base + self.common + taste[:, :, None] + self.appeal[self.items][..., None]
        seen = 1 / (1 + world.position_bias * np.arange(world.showings))
        chances: Floats = seen[:, None] / (1 + np.exp(-logits))
        return chances

    def _catalogue_clicks(self, rng: np.random.Generator) -> Ints:
        days = []
        for palettes, styles in zip(*self.tastes, strict=True):
            liked = TASTE_IN_CATALOGUE * (
                palettes[:, self.official // STYLES] + styles[:, self.official % STYLES]
            ) + rng.gumbel(size=(self.world.users, self.world.items))
            days.append(liked.argmax(axis=1))
        return np.array(days)


def _drifting(rng: np.random.Generator, users: int, width: int, scale: float, drift: float, days: int) -> Floats:
    """(days, users, width): tastes that stay as strong while they drift."""
    taste = rng.normal(0, scale, (users, width))
    found = []
    for _ in range(days):
        taste = np.sqrt(1 - drift**2) * taste + drift * rng.normal(0, scale, taste.shape)
        found.append(taste)
    return np.array(found)


def _embeddings(rng: np.random.Generator, palettes: Floats, styles: Floats, items: int) -> Floats:
    looks = (palettes[:, None] + styles).reshape(LOOKS, WIDTH)
    rows = looks + EMBEDDING_NOISE * rng.standard_normal((items, LOOKS, WIDTH))
    unit: Floats = rows / np.linalg.norm(rows, axis=2, keepdims=True)
    return unit
