"""A test double of the served model: deterministic, quick, draws plain shapes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from generator.serving.api import DrawnImage, DrawRequest, ImageFeatures

WIDTH = 16


def _vector(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    small = np.asarray(Image.fromarray(pixels).resize((WIDTH, 1), Image.Resampling.BOX), np.float32).mean(-1)[0] + 1
    return (small / np.linalg.norm(small)).astype(np.float32)


class FakePigeon:
    """Test double of `ServedPigeon`: images are gradients and boxes seeded by the request.

    `fault` is called with each draw request and how often it came, and may raise or block; `alive` is called before anything
    is answered and may raise.
    """

    tokenizer_version = "fake-tokenizer-1"

    def __init__(
        self,
        fault: Callable[[DrawRequest, int], None] | None = None,
        alive: Callable[[], None] | None = None,
    ) -> None:
        self.fault = fault
        self.alive = alive
        self.draws: list[DrawRequest] = []
        self.images_seen = 0
        self._lock = threading.Lock()

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

    @staticmethod
    def _candidate(request: DrawRequest, index: int, alpha: float) -> DrawnImage:
        key = repr((request.prompt.model_dump(), request.seed, index, alpha, request.adapter_version))
        rng = np.random.Generator(np.random.Philox(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16)))
        low, high = rng.integers(0, 256, 3), rng.integers(0, 256, 3)
        ramp = np.linspace(0, 1, 64)[:, None, None]
        image = np.broadcast_to(low * (1 - ramp) + high * ramp, (64, 64, 3)).astype(np.uint8).copy()
        for _ in range(6):
            x, y, w, h = rng.integers(0, 48, 2).tolist() + rng.integers(8, 32, 2).tolist()
            image[y : y + h, x : x + w] = rng.integers(0, 256, 3)
        tokens = tuple(int(v) for v in rng.integers(0, 1024, 12))
        return DrawnImage(alpha, tokens, image, _vector(image))
