"""What the night and the loop ask of the served model, as plain types; no torch, no tritonclient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import PigeonError
from schemas.preferences import PromptSnapshot


class InferenceError(PigeonError):
    """Base of what a request to the served model can end in."""


class InferenceRejected(InferenceError):
    """The request itself is wrong; sending it again cannot help."""


class InferenceUnavailable(InferenceError):
    """The server is overloaded, restarting or answered too late; sending it again may help."""


class InferenceCorrupt(InferenceError):
    """The answer came, but is not a valid one (NaN, wrong shape or type)."""


@dataclass(frozen=True)
class ImageFeatures:
    """What the model knows of one picture."""

    tokens: tuple[int, ...]
    """Visual codes 0..K-1 (the codebook's numbers, not language-model ids); 0 to 64 of them in nano."""
    embedding: npt.NDArray[np.float32]
    """(D,), unit length: the image scorer's."""


@dataclass(frozen=True)
class DrawRequest:
    """One (user, item): a candidate is drawn for each α of the grid, in one batch."""

    task_id: str
    prompt: PromptSnapshot
    alphas: tuple[float, ...]
    seed: int
    """Candidate i draws with (seed, i); the answer does not depend on what else the server does."""
    adapter_version: int


@dataclass(frozen=True)
class DrawnImage:
    """One picture that the model drew."""

    alpha: float
    tokens: tuple[int, ...]
    """Visual codes 0..K-1 of the answer."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    embedding: npt.NDArray[np.float32]
    """(D,), unit length: the image scorer's, of `image`."""


class ServedPigeon(Protocol):
    """The served model.

    All calls block, may raise `InferenceError`s, and may be made from several threads.
    """

    def image_features(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[ImageFeatures]:
        """Tokens and embeddings of RGB images of any size; they are resized (bicubic) to the model's."""

    def text_embeddings(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D), unit rows: the scorer's, of titles or descriptions."""

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`."""

    @property
    def tokenizer_version(self) -> str:
        """Changes when tokens or embeddings would; the cache key of `image_features`."""
