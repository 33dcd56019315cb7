"""The users that an evaluation draws for: what it needs of a world whose drawings are all known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from generator.pigeon.pipeline import ImageArray, Task


class Truth(NamedTuple):
    """What a drawing shows, by number: a concept, in a style, on a palette."""

    concept: int
    style: int
    palette: int


@dataclass(frozen=True)
class Sample:
    """A user's task, and the drawing that it should end in."""

    target: Truth
    task: Task


class Drawings(Protocol):
    """The drawings that samples should end in."""

    def draw(self, truth: Truth) -> ImageArray:
        """The real drawing, RGB (S, S, 3) uint8, of one size for all."""


class Samples(Drawings, Protocol):
    """Simulated users with a known taste, and real drawings of every concept in every style and palette."""

    @property
    def concepts(self) -> Sequence[str]:
        """Names of all concepts, by number."""

    @property
    def styles(self) -> Sequence[str]:
        """Names of the styles, by number."""

    @property
    def palettes(self) -> Sequence[str]:
        """Names of the palettes, by number."""

    @property
    def shown(self) -> npt.NDArray[np.int64]:
        """Numbers of the concepts that films show, ascending; targets are of these."""

    @property
    def about(self) -> str:
        """A sentence on how a user's history and reference relate to the target, for readers of the tables."""

    def check(self) -> None:
        """Check that the data is there, without loading it.

        Raises:
            InputError: it is not.
        """

    def choose(self, count: int, seed: int, alphas: Sequence[float], *, held_out: bool) -> Sequence[Sample]:
        """Choose users, the same for the same arguments.

        `held_out`: with targets that training never drew, else with ones that it drew.
        """
