"""`ServedPipeline`: a diffusers pipeline as the night's model, in the process that draws the night."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from generator.pigeon.placement import Placement
from generator.serving.api import (
    AnswerRequest,
    Answers,
    DrawnImage,
    DrawRequest,
    ImageFeatures,
    InferenceRejected,
    Picture,
    PictureRequest,
    ServerState,
)
from generator.serving.pipeline.answers import answer_task
from generator.serving.pipeline.folders import Folders, PipelineVersions, check_folders, versions_of
from generator.serving.pipeline.image_prompt import BadCodes, ImagePrompt, image_codes, parse_prompt
from generator.serving.tensors import fitted
from schemas.errors import InputError
from schemas.settings import Settings

if TYPE_CHECKING:
    from generator.serving.pipeline.networks import Networks


class ServedPipeline:
    """A diffusers pipeline as the night's model (see `api.ServedPigeon`).

    Threads may share one instance, which computes for one at a time. Weights are loaded when something is asked of them, and
    hashed when a version is. A deadline counts from when a call's turn has come.
    """

    def __init__(self, settings: Settings) -> None:
        """Check what the settings name; nothing is loaded yet.

        Raises:
            InputError: a setting of models.pipeline or compute is wrong, or the extra `serving` is not installed.
        """
        self._settings = settings.models.pipeline
        self._deadline = settings.triton.inference_timeout_seconds
        self._folders: Folders = check_folders(self._settings)
        self._placement = _placement(settings)
        self._turn: AbstractContextManager[bool] = threading.RLock()

    def image_features(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageFeatures]:
        """The IP-Adapter's embedding of each picture as codes, and the scorer's embedding.

        Raises:
            InferenceRejected: a picture is not (H, W, 3) uint8.
            InferenceCorrupt: an embedding is not finite.
            ModelError: the weights cannot be loaded.
        """
        found = []
        for number, image in enumerate(images):
            fitted(image, number, 1)  # refuses what is no picture
            with self._turn:
                networks = self._networks
                found.append(ImageFeatures(image_codes(networks.image_prompt(image)), networks.score_image(image)))
        return found

    def text_embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), unit rows: the scorer's.

        Raises:
            InferenceRejected: no texts.
            InferenceCorrupt, ModelError: as `image_features`.
        """
        if not texts:
            raise InferenceRejected("text_embeddings: no texts were given")
        with self._turn:
            return np.stack([self._networks.score_text(text) for text in texts])

    def answer(self, request: AnswerRequest, *, deadline_seconds: float | None = None) -> Answers:
        """An answer per (α, temperature), in the request's order, with its preview.

        Raises:
            InferenceRejected: a grid that does not fit, an adapter, or codes of another model.
            ModelError: the weights cannot be loaded.
        """
        with self._turn:
            width = self._networks.width
        return answer_task(request, width, self._settings)

    def draw_pictures(
        self, requests: Sequence[PictureRequest], *, deadline_seconds: float | None = None
    ) -> list[Picture]:
        """A picture per request, in order; all in one call, one after the other.

        Raises:
            InferenceRejected: codes that are no image prompt of this pipeline.
            InferenceUnavailable: not finished within the deadline.
            InferenceCorrupt, ModelError: as `image_features`.
        """
        with self._turn:
            stop_at = self._stop_at(deadline_seconds)
            prompts = [(self._prompt(request.tokens), request.seed) for request in requests]
            return [self._picture(prompt, seed, 0, stop_at) for prompt, seed in prompts]

    def draw(self, request: DrawRequest, *, deadline_seconds: float | None = None) -> list[DrawnImage]:
        """One candidate per α, in the order of `request.alphas`.

        Answer i is sampled at temperature 1 and drawn with (seed, i).

        Raises:
            InferenceError: as `answer` and `draw_pictures`.
        """
        ones = (1.0,) * len(request.alphas)
        asked = AnswerRequest(
            request.task_id, request.prompt, request.alphas, ones, request.seed, request.adapter_version
        )
        with self._turn:
            stop_at = self._stop_at(deadline_seconds)
            drawn = []
            for number, answer in enumerate(self.answer(asked).answers):
                picture = self._picture(self._prompt(answer.tokens), request.seed, number, stop_at)
                drawn.append(DrawnImage(answer.alpha, answer.tokens, picture.image, picture.embedding))
            return drawn

    def ready(self) -> bool:
        """Always: it is in this process."""
        return True

    def servers(self) -> Sequence[ServerState]:
        """None."""
        return ()

    @property
    def pictures_at_once(self) -> int:
        """One: a picture's bytes do not depend on others."""
        return 1

    @property
    def tokenizer_version(self) -> str:
        """Hash of image encoder and scorer."""
        return self._versions.tokenizer_version

    @property
    def drawing_version(self) -> str:
        """Hash of the pipeline, the IP-Adapter, the scorer, and the settings that pictures depend on."""
        return self._versions.drawing_version

    @property
    def base_weights(self) -> str:
        """Hash of image encoder, scorer, and the settings that answers depend on."""
        return self._versions.base_weights

    @cached_property
    def _versions(self) -> PipelineVersions:
        return versions_of(self._folders, self._settings, self._placement.precision)

    @cached_property
    def _networks(self) -> Networks:
        from generator.serving.pipeline.networks import Networks

        return Networks(self._folders, self._settings, self._placement)

    def _prompt(self, tokens: Sequence[int]) -> ImagePrompt:
        try:
            return parse_prompt(tokens, self._networks.width)
        except BadCodes as error:
            raise InferenceRejected(f"tokens: {error}") from error

    def _picture(self, prompt: ImagePrompt, seed: int, variant: int, stop_at: float) -> Picture:
        image = self._networks.draw(prompt, seed, variant, stop_at)
        return Picture(image, self._networks.score_image(image))

    def _stop_at(self, deadline_seconds: float | None) -> float:
        return time.monotonic() + (self._deadline if deadline_seconds is None else deadline_seconds)


def _placement(settings: Settings) -> Placement:
    try:
        import diffusers  # noqa: F401  # what is missing is better said before a night is planned
        import transformers  # noqa: F401

        return Placement.of(settings.compute.device, settings.compute.precision)
    except ModuleNotFoundError as error:
        raise InputError(
            f"models.preset = pipeline needs {error.name}: pip install 'pigeon-posters[night,serving]'"
        ) from error
