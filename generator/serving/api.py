"""What the night and the loop ask of the served model, as plain types; no torch, no tritonclient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from schemas.errors import PigeonError
from schemas.preferences import PromptSnapshot

PreviewKind = Literal["sketch", "conditions"]
"""Space of preview embeddings: the image scorer's, of a sketch of the picture; or the token decoder's, of its conditions."""


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
    """Visual codes, the model's own: Pigeon's are 0..K-1 (the codebook's numbers, not language-model ids), 0 to 64 in nano."""
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


@dataclass(frozen=True)
class AnswerRequest:
    """One (user, item): an answer is sampled for each (α, temperature), all behind one prefill."""

    task_id: str
    prompt: PromptSnapshot
    alphas: tuple[float, ...]
    temperatures: tuple[float, ...]
    """One per α; 0 is greedy. Where the checkpoint's codes have roles it is the temperature of the codes of taste."""
    seed: int
    """The task's seed: it masks the history, and answer i is sampled with (seed, i)."""
    adapter_version: int


@dataclass(frozen=True)
class Answer:
    """A sampled answer, not drawn."""

    alpha: float
    temperature: float
    tokens: tuple[int, ...]
    """Visual codes: with the weights and a seed all that the picture is drawn from."""
    logprob: float
    """Natural log-probability under the model at temperature 1, over the ids that an answer may hold, end included."""
    sampling_logprob: float
    """The same under the rule that it was sampled by; 0 for a greedy answer."""
    preview: npt.NDArray[np.float32]
    """(D,), unit length: the image scorer's of a sketch of the picture, or of its conditions (`Answers.preview_kind`)."""


@dataclass(frozen=True)
class Answers:
    """The answers to one request, in its order."""

    answers: tuple[Answer, ...]
    preview_kind: PreviewKind
    history_previews: npt.NDArray[np.float32]
    """(H, D), unit rows: the history's pictures in the space of the previews."""


@dataclass(frozen=True)
class PictureRequest:
    """What is drawn: codes, and the seed of the noise that drawing starts from (`picture_seed`)."""

    tokens: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Picture:
    """A drawn picture; its bytes depend on its own request alone."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB."""
    embedding: npt.NDArray[np.float32]
    """(D,), unit length: the image scorer's, of `image`."""


@dataclass(frozen=True)
class ServerState:
    """A server behind the model, as this process knows it."""

    address: str
    requests: int
    """Requests that it answered."""
    failures: int
    """Requests that it did not answer, or not with a valid answer."""
    problem: str
    """Why it is not used; empty while it is."""

    def __add__(self, other: ServerState) -> ServerState:
        """What two processes know of it."""
        return ServerState(
            self.address,
            self.requests + other.requests,
            self.failures + other.failures,
            self.problem or other.problem,
        )


class ServedPigeon(Protocol):
    """The served model; CONTRACT.md says what each call promises.

    All calls block, may raise `InferenceError`s, and may be made from several threads.
    """

    def image_features(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[ImageFeatures]:
        """Tokens and embeddings of RGB images of any size; they are resized (bicubic) to the model's."""

    def text_embeddings(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(N, D), unit rows: the scorer's, of titles or descriptions."""

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`."""

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        """An answer per (α, temperature), in the request's order, with its preview."""

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        """A picture per request, in order."""

    def ready(self) -> bool:
        """Whether the server answers and has all models loaded; raises nothing."""

    def servers(self) -> Sequence[ServerState]:
        """The servers that answer."""

    @property
    def tokenizer_version(self) -> str:
        """Changes when tokens or embeddings would; the cache key of `image_features`."""

    @property
    def drawing_version(self) -> str:
        """Hash of what turns codes into pixels: token decoder, UNet, VAE, schedule, steps, guidance.

        Part of a picture's key.
        """

    @property
    def base_weights(self) -> str:
        """Hash of the checkpoint that answers, without a retrained adapter."""

    @property
    def pictures_at_once(self) -> int:
        """How many pictures a request should have.

        With more than one they differ from those drawn alone, by rounding.
        """
