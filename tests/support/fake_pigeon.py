"""A test double of the served model: deterministic, quick, draws plain shapes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.serving.api import (
    Answer,
    AnswerRequest,
    Answers,
    DrawnImage,
    DrawRequest,
    ImageFeatures,
    InferenceUnavailable,
    Picture,
    PictureRequest,
    ServerState,
)

WIDTH = 16


def _vector(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    small = np.asarray(Image.fromarray(pixels).resize((WIDTH, 1), Image.Resampling.BOX), np.float32).mean(-1)[0] + 1
    return (small / np.linalg.norm(small)).astype(np.float32)


def _seeded(*key: object) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(int(hashlib.sha256(repr(key).encode()).hexdigest()[:16], 16)))


def _boxes(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A gradient with six boxes, (64, 64, 3)."""
    low, high = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
    ramp = np.linspace(0, 1, 64)[:, None, None]
    image = np.broadcast_to(low * (1 - ramp) + high * ramp, (64, 64, 3)).astype(np.uint8).copy()
    for _ in range(6):
        x, y, w, h = rng.integers(0, 48, 2).tolist() + rng.integers(8, 32, 2).tolist()
        image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return image


class FakePigeon:
    """Test double of `ServedPigeon`: images are gradients and boxes seeded by the request.

    `fault` is called with each draw request and how often it came, and may raise or block; `alive` is called before anything
    is answered and may raise.
    """

    tokenizer_version = "fake-tokenizer-1"
    drawing_version = "fake-drawing-1"
    base_weights = "fake-weights-1"
    pictures_at_once = 1
    looks = 6
    """Distinct answers of an item, over all users."""

    def __init__(
        self,
        fault: Callable[[DrawRequest, int], None] | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self.fault = fault
        self.alive = alive
        self.draws: list[DrawRequest] = []
        self.answered: list[AnswerRequest] = []
        self.drawn: list[PictureRequest] = []
        self.picture_fault: Callable[[PictureRequest, int], None] | None = None
        self.images_seen = 0
        self._lock = threading.Lock()

    def ready(self) -> bool:
        try:
            if self.alive:
                self.alive()
        except InferenceUnavailable:
            return False
        return True

    def servers(self) -> Sequence[ServerState]:
        return ()

    def image_features(self, images: Sequence[npt.NDArray[np.uint8]]) -> list[ImageFeatures]:
        if self.alive:
            self.alive()
        with self._lock:
            self.images_seen += len(images)
        return [
            ImageFeatures(tuple(int(v) for v in hashlib.sha256(image.tobytes()).digest()[:8]), _vector(image))
            for image in images
        ]

    def text_embeddings(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if self.alive:
            self.alive()
        rows = np.stack(
            [np.frombuffer(hashlib.sha256(t.encode()).digest()[:WIDTH], np.uint8).astype(np.float32) + 1 for t in texts]
        )
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        with self._lock:
            self.draws.append(request)
            attempt = sum(r.task_id == request.task_id for r in self.draws)
        if self.alive:
            self.alive()
        if self.fault:
            self.fault(request, attempt)
        return [self._candidate(request, index, alpha) for index, alpha in enumerate(request.alphas)]

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        """Answers of an item are among `looks`; which ones depends on user, seed, adapter, α and temperature."""
        with self._lock:
            self.answered.append(request)
            attempt = sum(r.task_id == request.task_id for r in self.answered)
        if self.alive:
            self.alive()
        if self.fault:
            self.fault(request, attempt)  # type: ignore[arg-type] # both have what faults look at
        answers = []
        for index, (alpha, temperature) in enumerate(zip(request.alphas, request.temperatures, strict=True)):
            place = (request.seed, index if temperature else -1, alpha, temperature, request.adapter_version)
            look = _seeded(request.prompt.history_titles, *place).integers(self.looks)
            codes = _seeded(request.prompt.title, request.prompt.reference_tokens, int(look))
            tokens = tuple(int(v) for v in codes.integers(0, 1024, 12))
            logprob = -1.0 - float(look) - (0.5 if temperature else 0.0)
            preview = _vector(self._image(tokens))
            answers.append(Answer(alpha, temperature, tokens, logprob, logprob if temperature else 0.0, preview))
        history = np.stack([_vector(self._image(tokens)) for tokens in request.prompt.history_tokens])
        return Answers(tuple(answers), "sketch", history)

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        """Gradients and boxes seeded by the codes and the request's seed."""
        if self.alive:
            self.alive()
        pictures = []
        for request in requests:
            with self._lock:
                self.drawn.append(request)
                attempt = sum(r.tokens == request.tokens for r in self.drawn)
            if self.picture_fault:
                self.picture_fault(request, attempt)
            image = self._image((request.seed % 1024, *request.tokens))
            pictures.append(Picture(image, _vector(image)))
        return pictures

    @staticmethod
    def _image(tokens: Sequence[int]) -> npt.NDArray[np.uint8]:
        return _boxes(_seeded(tuple(tokens)))

    @staticmethod
    def _candidate(request: DrawRequest, index: int, alpha: float) -> DrawnImage:
        rng = _seeded(request.prompt.model_dump(), request.seed, index, alpha, request.adapter_version)
        image = _boxes(rng)
        tokens = tuple(int(v) for v in rng.integers(0, 1024, 12))
        return DrawnImage(alpha, tokens, image, _vector(image))
