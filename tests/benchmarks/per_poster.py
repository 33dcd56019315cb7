"""What the release before did beside the model: files of their own for every user's poster.

Commit a87f3d4, `generator/nightly/generate.py`: all four candidates of a task are hashed and scored; for each kept one the
picture is written as PNG, the poster is composed, both are hashed and stored; the posters' rows are one transaction, the task's end
is another. Composing, image hash, object store and database session are today's, so that their own changes count for neither.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, update
from sqlalchemy.dialects.postgresql import insert

from generator.nightly.compose import compose, png
from generator.nightly.compositions import width_and_height
from generator.nightly.frozen_prompt import FrozenPrompt, poster_id
from generator.nightly.image_features import ImageFeatureCache
from generator.nightly.images import CatalogImages
from generator.nightly.ledger import Ledger
from generator.nightly.rows import PosterRow, Rendition
from generator.nightly.select import ImageHash, Vector, image_hash, propensities
from generator.serving.api import ImageFeatures
from generator.storage.objects import Store
from schemas.manifest import art_key, poster_key
from schemas.settings import Settings
from schemas.tables import NightTask, Poster
from tests.benchmarks.recorded import RecordedPigeon

CANDIDATES = 4
PAGE = 16

Pixels = npt.NDArray[np.uint8]
KeptPicture = tuple[tuple[int, ...], Pixels, Vector]
"""Codes, pixels and embedding of a picture that a task keeps."""
Kept = Callable[[NightTask], list[KeptPicture]]


class PerPosterNight:
    """Draws a planned run's tasks as the release before did, with pictures that are drawn already."""

    def __init__(self, settings: Settings, ledger: Ledger, store: Store, model: RecordedPigeon, kept: Kept) -> None:
        self._night = settings.night
        self._ledger = ledger
        self._store = store
        self._model = model
        self._kept = kept
        self._images = CatalogImages(ledger.engine, settings)
        self._features = ImageFeatureCache(ledger.engine, model, self._images, lambda call: call())
        self._texts: dict[str, Vector] = {}
        self._hashes: dict[str, ImageHash] = {}
        self.posters = 0

    def run(self, run_id: str) -> int:
        """Finish every pending task; returns how many posters were made."""
        for page in self._ledger.read_pending(run_id, page=PAGE):
            prompts = [FrozenPrompt.model_validate(task.prompt) for task in page]
            wanted = [image for one in prompts for image in (*one.history, one.reference)]
            known = {sha: one for sha, one in self._features.get(wanted).items() if isinstance(one, ImageFeatures)}
            for task, prompt in zip(page, prompts, strict=True):
                self._finish(task, prompt, known)
        return self.posters

    def _finish(self, task: NightTask, prompt: FrozenPrompt, known: dict[str, ImageFeatures]) -> None:
        kept = self._kept(task)
        candidates = [kept[number % len(kept)] for number in range(CANDIDATES)] if kept else []
        scored = [
            self._score(prompt, known, own_picture(pixels, task, number), embedding)
            for number, (_, pixels, embedding) in enumerate(candidates)
        ]
        shown = propensities([one["score"] for one in scored[: len(kept)]], self._night.exploration)
        files: dict[str, tuple[bytes, str]] = {}
        rows = [
            self._poster(task, prompt, variant, candidates[variant][0], scored[variant], shown[variant], files)
            for variant in range(len(kept))
        ]
        if rows:
            with self._ledger.writing() as session:
                session.execute(insert(Poster).on_conflict_do_nothing(), [row.columns() for row in rows])
        for key, (body, content_type) in files.items():
            self._store.create(key, body, content_type)
        with self._ledger.writing() as session:
            session.execute(
                update(NightTask)
                .where(
                    NightTask.run_id == task.run_id,
                    NightTask.user_id == task.user_id,
                    NightTask.item_id == task.item_id,
                )
                .values(
                    status="done" if rows else "refused",
                    finished_at=func.now(),
                    attempts=1,
                    candidates=[
                        {name: one[name] for name in ("cs", "cis_reference", "cis_history", "score")} for one in scored
                    ],
                    prompt=prompt.model_dump(mode="json"),
                    seconds=0.0,
                )
            )
        self.posters += len(rows)

    def _score(
        self, prompt: FrozenPrompt, known: dict[str, ImageFeatures], pixels: Pixels, embedding: Vector
    ) -> dict[str, Any]:
        """A candidate's scores and hash; whether it is blank or a copy of the reference."""
        text = self._text(prompt.description or prompt.reference.title)
        history = np.stack([known[image.sha256].embedding for image in prompt.history])
        cs, cis_history = 100 * float(embedding @ text), 100 * float((history @ embedding).mean())
        look = image_hash(pixels)
        return {
            "cs": cs,
            "cis_reference": 100 * float(embedding @ known[prompt.reference.sha256].embedding),
            "cis_history": cis_history,
            "score": self._night.reference_weight * cs + (1 - self._night.reference_weight) * cis_history,
            "look": look,
            "blank": float(pixels.std(axis=(0, 1)).max()) < self._night.blank_stddev,
            "copy": look.is_near(self._reference_hash(prompt), self._night.near_duplicate_distance),
            "pixels": pixels,
        }

    def _poster(
        self,
        task: NightTask,
        prompt: FrozenPrompt,
        variant: int,
        codes: tuple[int, ...],
        scored: dict[str, Any],
        propensity: float,
        files: dict[str, tuple[bytes, str]],
    ) -> PosterRow:
        """A poster's row; its files are added to `files`."""
        picture = png(scored["pixels"])
        art_sha = hashlib.sha256(picture).hexdigest()
        files[art_key(art_sha)] = (picture, "image/png")
        sizes = []
        for size in self._night.sizes:
            body = compose(
                scored["pixels"],
                prompt.reference.title,
                year=prompt.year,
                size=width_and_height(size),
                quality=self._night.webp_quality,
                font=self._night.font,
            )
            sha = hashlib.sha256(body).hexdigest()
            files[poster_key(sha)] = (body, "image/webp")
            sizes.append(Rendition(*width_and_height(size), poster_key(sha), sha))
        return PosterRow(
            poster_id=poster_id(
                task.user_id, task.item_id, task.weights, variant, task.input_fingerprint, f"per poster {art_sha}"
            ),
            run_id=task.run_id,
            user_id=task.user_id,
            item_id=task.item_id,
            variant=variant,
            input_fingerprint=task.input_fingerprint,
            model_version=task.model_version,
            weights=task.weights,
            alpha=0.0,
            seed=task.seed,
            tokens=codes,
            picture_key=None,
            explored=False,
            choice_propensity=1.0,
            art_key=art_key(art_sha),
            art_sha256=art_sha,
            sizes=tuple(sizes),
            look=str(scored["look"]),
            cs=scored["cs"],
            cis_reference=scored["cis_reference"],
            cis_history=scored["cis_history"],
            score=scored["score"],
            propensity=propensity,
            safety="unchecked",
            synthetic=prompt.synthetic,
        )

    def _text(self, text: str) -> Vector:
        if text not in self._texts:
            self._texts[text] = self._model.text_embeddings([text])[0]
        return self._texts[text]

    def _reference_hash(self, prompt: FrozenPrompt) -> ImageHash:
        reference = prompt.reference
        if reference.sha256 not in self._hashes:
            self._hashes[reference.sha256] = image_hash(self._images.pixels(reference.uri, reference.sha256))
        return self._hashes[reference.sha256]


def own_picture(pixels: Pixels, task: NightTask, number: int) -> Pixels:
    """The picture with the task's own mark.

    The release before drew each with the task's noise, so that no two were the same file.
    """
    digest = hashlib.sha256(f"{task.user_id} {task.item_id} {number}".encode()).digest()
    found = pixels.copy()
    found[0, : len(digest) // 3] = np.frombuffer(digest[: len(digest) // 3 * 3], np.uint8).reshape(-1, 3)
    return found
