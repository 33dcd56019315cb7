"""A test double of a served model whose answers are rounded otherwise at each call, as a GPU's may be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from generator.serving.api import Picture, PictureRequest
from generator.serving.backends.pictures import BATCH_EMBEDDING, BATCH_LEVELS
from tests.support.fake_pigeon import FakePigeon


class NoisyPigeon(FakePigeon):
    """`FakePigeon` with noise of the bound for pictures that are drawn among others.

    It is another at each call, and with another `seed`.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._calls = itertools.count()
        self._seed = seed

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        """The fake's pictures with noise."""
        drawn = super().draw_pictures(requests, deadline_seconds=deadline_seconds)
        return [self._noisy(picture) for picture in drawn]

    def _noisy(self, picture: Picture) -> Picture:
        rng = np.random.default_rng([self._seed, next(self._calls)])
        levels = rng.integers(-BATCH_LEVELS, BATCH_LEVELS + 1, picture.image.shape)
        image = np.clip(picture.image + levels, 0, 255).astype(np.uint8)
        embedding = picture.embedding + rng.uniform(-BATCH_EMBEDDING, BATCH_EMBEDDING, picture.embedding.shape)
        unit = (embedding / np.linalg.norm(embedding)).astype(np.float32)
        return replace(picture, image=image, embedding=unit)
