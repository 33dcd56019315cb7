"""Simulated users of the sticker scenario: each likes one or two drawing styles, whatever is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from generator.datasets.errors import DatasetError
from generator.datasets.icons import STYLES

NOISE = 0.15
"""Share of interactions that ignore the user's taste."""


@dataclass(frozen=True)
class StickerUser:
    """A simulated user.

    `clicks` are (concept slug, style id) in time order; `styles` is the taste behind them.
    """

    user_id: str
    styles: tuple[str, ...]
    clicks: tuple[tuple[str, str], ...]


def simulate_sticker_users(
    concepts: Sequence[str], users: int, clicks_per_user: int, seed: int, noise: float = NOISE
) -> list[StickerUser]:
    """Users with a known taste, for training and for tests of whether taste is found.

    Nothing here is a real person.

    Each prefers one style, or two with equal chance of either number; a click is on a random concept (none twice for
    one user), in a preferred style, or with probability `noise` in any other.

    Raises:
        DatasetError: fewer concepts than clicks, or noise outside 0..1.
    """
    if clicks_per_user > len(concepts):
        raise DatasetError(f"clicks_per_user={clicks_per_user} exceeds the {len(concepts)} concepts; lower it")
    if not 0 <= noise <= 1:
        raise DatasetError(f"noise={noise} is no probability; use 0 to 1")
    rng = np.random.default_rng(seed)
    result = []
    for number in range(users):
        order = [STYLES[place] for place in rng.permutation(len(STYLES))]
        count = int(rng.integers(1, 3))
        liked, others = order[:count], order[count:]
        clicks = []
        for place in rng.choice(len(concepts), clicks_per_user, replace=False):
            pool = others if rng.random() < noise else liked
            clicks.append((concepts[int(place)], pool[int(rng.integers(len(pool)))]))
        result.append(StickerUser(f"simulated-{seed}-{number:05d}", tuple(liked), tuple(clicks)))
    return result
