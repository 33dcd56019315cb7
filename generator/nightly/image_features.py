"""Visual tokens and embeddings of images, once per (image, tokenizer, decoding rule).

A drawn picture has those that it was drawn from and scored by: no file is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Engine, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from generator.nightly.frozen_prompt import FrozenImage
from generator.nightly.images import CatalogImages, ImageAway, UnreadableImage
from generator.serving.api import ImageFeatures, InferenceError, InferenceUnavailable, ServedPigeon
from generator.storage.outages import OutageRetry
from generator.storage.postgres import plain_errors
from schemas.images import features_version
from schemas.tables import ImageFeature, Picture

BATCH = 16


@dataclass(frozen=True)
class Missing:
    """Why an image has no features."""

    reason: str
    away: bool = False
    """Its host is away: worth asking again for a later task."""


class ImageFeatureCache:
    """A read-through cache: memory, then the table `image_features`, then the model.

    `call` makes a model call with retries (`ModelRetry.call`).
    """

    def __init__(
        self,
        engine: Engine,
        model: ServedPigeon,
        images: CatalogImages,
        call: Callable[[Callable[[], list[ImageFeatures]]], list[ImageFeatures]],
        outages: OutageRetry | None = None,
    ) -> None:
        self._engine = engine
        self._model = model
        self._images = images
        self._call = call
        self._outages = outages or OutageRetry()
        self._known: dict[str, ImageFeatures | Missing] = {}
        self._lock = threading.Lock()
        self.computed = 0

    def get(self, wanted: Iterable[FrozenImage]) -> dict[str, ImageFeatures | Missing]:
        """Features of images by their sha256; new ones are computed and stored.

        Raises:
            ServerUnavailable: Postgres or the model server is away.
            Stopped: the night is being stopped.
        """
        images = {image.sha256: image for image in wanted}
        with self._lock:  # one filler at a time: two would compute the same images
            self._outages.call(lambda: self._load(sorted(set(images) - set(self._known))))
            unknown = [images[sha] for sha in sorted(set(images) - set(self._known))]
            self._take_drawn({image.sha256: image.picture_key for image in unknown if image.picture_key})
            new = [(image.sha256, image.uri) for image in unknown if not image.picture_key]
            for start in range(0, len(new), BATCH):
                self._compute(new[start : start + BATCH])
            found = {sha: self._known[sha] for sha in images}
            for sha, features in found.items():
                if isinstance(features, Missing) and features.away:
                    del self._known[sha]
            return found

    def _load(self, hashes: list[str]) -> None:
        if not hashes:
            return
        with plain_errors(self._engine), Session(self._engine) as session:
            rows = session.scalars(
                select(ImageFeature).where(
                    ImageFeature.image_sha256.in_(hashes),
                    ImageFeature.tokenizer_version == features_version(self._model.tokenizer_version),
                )
            )
            for row in rows:
                self._known[row.image_sha256] = ImageFeatures(
                    tuple(row.tokens), np.asarray(row.embedding, dtype=np.float32)
                )

    def _take_drawn(self, keys: dict[str, str]) -> None:
        """What drawn pictures were drawn from; `keys`: their keys by sha256."""
        if not keys:
            return
        rows = self._outages.call(lambda: self._pictures(list(keys.values())))
        found = {sha: rows[key] for sha, key in keys.items() if key in rows}
        self._keep(found)
        self._known.update(
            {sha: Missing("a drawn picture of the history is gone") for sha in keys.keys() - found.keys()}
        )

    def _pictures(self, keys: list[str]) -> dict[str, ImageFeatures]:
        query = select(Picture.picture_key, Picture.tokens, Picture.embedding).where(
            Picture.picture_key.in_(keys), Picture.status == "drawn", Picture.embedding.is_not(None)
        )
        with plain_errors(self._engine), Session(self._engine) as session:
            return {
                key: ImageFeatures(tuple(tokens), np.asarray(embedding, dtype=np.float32))
                for key, tokens, embedding in session.execute(query)
            }

    def _compute(self, batch: list[tuple[str, str]]) -> None:
        pixels = {}
        for sha, uri in batch:
            try:
                pixels[sha] = self._images.pixels(uri, sha)
            except UnreadableImage as error:
                self._known[sha] = Missing(str(error), away=isinstance(error, ImageAway))
        if not pixels:
            return
        try:
            found = dict(
                zip(pixels, self._call(lambda: self._model.image_features(list(pixels.values()))), strict=True)
            )
        except InferenceUnavailable:
            raise
        except InferenceError as error:
            if len(pixels) == 1:
                self._known[next(iter(pixels))] = Missing(f"the model refuses the picture: {error}")
                return
            for sha, uri in batch:  # one bad image must not take its neighbours along
                if sha in pixels:
                    self._compute([(sha, uri)])
            return
        self.computed += len(found)
        self._keep(found)

    def _keep(self, found: dict[str, ImageFeatures]) -> None:
        rows = [
            {
                "image_sha256": sha,
                "tokenizer_version": features_version(self._model.tokenizer_version),
                "tokens": list(features.tokens),
                "embedding": [float(value) for value in features.embedding],
            }
            for sha, features in found.items()
        ]
        if rows:
            self._outages.call(lambda: self._store(rows))
        self._known.update(found)

    def _store(self, rows: list[dict[str, Any]]) -> None:
        with plain_errors(self._engine), Session(self._engine) as session, session.begin():
            session.execute(insert(ImageFeature).on_conflict_do_nothing(), rows)
