"""Drawing of a run's tasks: tokens, Triton, selection, composition and upload in parallel."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from generator.nightly.compose import compose, png
from generator.nightly.frozen_prompt import FrozenImage, FrozenPrompt, poster_id
from generator.nightly.image_features import ImageFeatureCache, Missing
from generator.nightly.images import CatalogImages, UnreadableImage
from generator.nightly.ledger import Ledger
from generator.nightly.retry import ModelRetry, Stopped
from generator.nightly.rows import Drawing, Outcome, PosterRow, Rendition
from generator.nightly.select import ImageHash, PromptFeatures, Scored, choose, image_hash, propensities
from generator.nightly.stages import Stage, StagePipeline
from generator.serving.api import DrawnImage, DrawRequest, ImageFeatures, InferenceError, ServedPigeon
from generator.storage.objects import Store
from schemas.faultpoints import reach
from schemas.manifest import art_key, poster_key
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings
from schemas.tables import NightTask

log = logging.getLogger("pigeon.night")

# There is no safety model in this release; the verdict is data all the same, so that a reader can act on it.
SAFETY_UNCHECKED = "unchecked"
FINISHERS = 2


@dataclass
class Tally:
    """Counts of what is done so far, for the progress line and the night's figures."""

    done: int = 0
    refused: int = 0
    failed: int = 0
    posters: int = 0
    uploaded_bytes: int = 0
    draw_seconds: float = 0.0

    @property
    def finished(self) -> int:
        """Tasks that need nothing more."""
        return self.done + self.refused + self.failed


@dataclass
class _Job:
    task: NightTask
    prompt: FrozenPrompt
    snapshot: PromptSnapshot
    reference: ImageFeatures
    history: npt.NDArray[np.float32]
    candidates: list[DrawnImage] | None = None
    text: npt.NDArray[np.float32] | None = None
    attempts: int = 0
    seconds: float = 0.0


class Generator:
    """Draws the pending tasks of one run."""

    def __init__(
        self, settings: Settings, ledger: Ledger, store: Store, images: CatalogImages, model: ServedPigeon, run_id: str
    ) -> None:
        self._settings = settings
        self._night = settings.night
        self._ledger = ledger
        self._store = store
        self._images = images
        self._model = model
        self._run_id = run_id
        self._sizes = [_width_and_height(size) for size in self._night.sizes]
        in_flight = settings.triton.max_in_flight
        self.pipeline = StagePipeline(
            [
                Stage("tokens", self._prepare),
                Stage("draw", self._draw, in_flight),
                Stage("finish", self._finish, FINISHERS, keeps=True),
            ],
            queue_size=2 * in_flight,
        )
        self._retry = ModelRetry(
            model,
            max_attempts=self._night.max_attempts,
            outage_seconds=self._night.outage_seconds,
            stopping=self.pipeline.stopping,
        )
        self._features = ImageFeatureCache(ledger.engine, model, images, self._retry.call)
        self._texts: dict[str, npt.NDArray[np.float32]] = {}
        self._hashes: dict[str, ImageHash] = {}
        self._lock = threading.Lock()
        self.tally = Tally()

    @property
    def images_tokenized(self) -> int:
        """Images that had no features before."""
        return self._features.computed

    @property
    def retries(self) -> int:
        """Model calls that were repeated."""
        return self._retry.retries

    def run(self, tick: Callable[[Tally], None]) -> Tally:
        """Draw all pending tasks; returns early, without an error, after `pipeline.stop()`.

        Raises:
            ServerUnavailable: Triton, Postgres or S3 is away for too long; finished tasks are kept.
            LockHeld: another process has taken the night over.
        """
        self.pipeline.run(self._pages(), tick=lambda: tick(self.tally))
        return self.tally

    def _pages(self) -> Iterator[list[NightTask]]:
        # Pages no longer than what the queues hold, so that tokens of the next page are made while this one is drawn.
        yield from self._ledger.read_pending(self._run_id, page=16)

    def _prepare(self, tasks: list[NightTask]) -> list[_Job]:
        """Tokens of all images of a page of tasks; a task whose images cannot be had fails alone."""
        prompts = [FrozenPrompt.model_validate(task.prompt) for task in tasks]
        wanted = [(image.sha256, image.uri) for p in prompts for image in (*p.history, p.reference)]
        try:
            known = self._features.get(wanted)
        except Stopped:
            return []
        jobs = []
        for task, prompt in zip(tasks, prompts, strict=True):
            history = [known[image.sha256] for image in prompt.history]
            reference = known[prompt.reference.sha256]
            problem = next((f.reason for f in (reference, *history) if isinstance(f, Missing)), None)
            if problem:
                self._fail(task, f"picture: {problem}", 1)
                continue
            readable = [f for f in history if isinstance(f, ImageFeatures)]
            assert isinstance(reference, ImageFeatures)  # noqa: S101 - there is no problem
            snapshot = PromptSnapshot(
                history_titles=tuple(image.title for image in prompt.history),
                history_tokens=tuple(f.tokens for f in readable),
                title=prompt.reference.title,
                description=prompt.description,
                reference_tokens=reference.tokens,
            )
            jobs.append(_Job(task, prompt, snapshot, reference, np.stack([f.embedding for f in readable])))
        return jobs

    def _draw(self, job: _Job) -> list[_Job]:
        task = job.task
        request = DrawRequest(
            task_id=f"{task.run_id}/{task.user_id}/{task.item_id}",
            prompt=job.snapshot,
            alphas=self._night.alphas,
            seed=task.seed,
            adapter_version=task.adapter_version,
        )
        deadline = self._settings.triton.inference_timeout_seconds

        def attempted() -> None:
            job.attempts += 1

        start = time.monotonic()
        try:
            job.text = self._text(job.prompt.description or job.prompt.reference.title)
            candidates = self._retry.call(
                lambda: self._model.draw(request, deadline_seconds=deadline), attempted=attempted
            )
        except Stopped:
            return []
        except InferenceError as error:
            self._fail(task, f"{type(error).__name__}: {error}", max(1, job.attempts))
            return []
        job.seconds = time.monotonic() - start
        job.candidates = candidates
        with self._lock:
            self.tally.draw_seconds += job.seconds
        reach("drawn")
        return [job]

    def _finish(self, job: _Job) -> list[Any]:
        task = job.task
        assert job.candidates is not None and job.text is not None  # noqa: S101, PT018 - `_draw` set them
        if len(job.candidates) != len(self._night.alphas):
            self._fail(task, f"{len(job.candidates)} candidates for {len(self._night.alphas)} alphas", job.attempts)
            return []
        try:
            features = PromptFeatures(
                job.text, job.reference.embedding, job.history, self._reference_hash(job.prompt.reference)
            )
        except UnreadableImage as error:
            self._fail(task, f"picture: {error}", job.attempts)
            return []
        judged, kept = choose(job.candidates, features, self._night)
        drawing = Drawing(
            tuple(scored.row() for scored in judged),
            job.prompt.model_copy(update={"snapshot": job.snapshot}).model_dump(mode="json"),
            job.seconds,
        )
        if not kept:
            reasons = ", ".join(sorted({scored.refused or "" for scored in judged}))
            self._ledger.save_outcome(task, Outcome("refused", job.attempts, reasons, drawing))
            with self._lock:
                self.tally.refused += 1
            return []
        self._keep(job, kept)
        self._ledger.save_outcome(task, Outcome("done", job.attempts, drawing=drawing))
        with self._lock:
            self.tally.done += 1
            self.tally.posters += len(kept)
        reach("finished")
        return []

    def _keep(self, job: _Job, kept: list[Scored]) -> None:
        """Write the rows of the kept candidates' posters, then their files."""
        shown = propensities([scored.score for scored in kept], self._night.exploration)
        files: dict[str, tuple[bytes, str]] = {}
        rows = [
            self._poster(job, number, scored, propensity, files)
            for number, (scored, propensity) in enumerate(zip(kept, shown, strict=True))
        ]
        self._ledger.insert_posters(rows)
        reach("intended")
        for key, (body, content_type) in files.items():
            if self._store.create(key, body, content_type):
                with self._lock:
                    self.tally.uploaded_bytes += len(body)
        reach("stored")

    def _poster(
        self, job: _Job, variant: int, scored: Scored, propensity: float, files: dict[str, tuple[bytes, str]]
    ) -> PosterRow:
        """A row of `posters`; the files that belong to it are added to `files`."""
        task, art = job.task, scored.candidate.image
        image = png(art)
        art_sha = hashlib.sha256(image).hexdigest()
        files[art_key(art_sha)] = (image, "image/png")
        return PosterRow(
            poster_id=poster_id(task.user_id, task.item_id, task.model_version, variant, task.input_fingerprint),
            run_id=task.run_id,
            user_id=task.user_id,
            item_id=task.item_id,
            variant=variant,
            input_fingerprint=task.input_fingerprint,
            model_version=task.model_version,
            alpha=scored.candidate.alpha,
            seed=task.seed,
            tokens=scored.candidate.tokens,
            art_key=art_key(art_sha),
            art_sha256=art_sha,
            sizes=tuple(self._rendition(job, art, size, files) for size in self._sizes),
            look=str(scored.image_hash),
            cs=scored.cs,
            cis_reference=scored.cis_reference,
            cis_history=scored.cis_history,
            score=scored.score,
            propensity=propensity,
            safety=SAFETY_UNCHECKED,
            synthetic=job.prompt.synthetic,
        )

    def _rendition(
        self, job: _Job, art: npt.NDArray[np.uint8], size: tuple[int, int], files: dict[str, tuple[bytes, str]]
    ) -> Rendition:
        """One size of a poster; its file is added to `files`."""
        body = compose(
            art,
            job.prompt.reference.title,
            year=job.prompt.year,
            size=size,
            quality=self._night.webp_quality,
            font=self._night.font,
        )
        sha = hashlib.sha256(body).hexdigest()
        files[poster_key(sha)] = (body, "image/webp")
        return Rendition(*size, poster_key(sha), sha)

    def _text(self, text: str) -> npt.NDArray[np.float32]:
        with self._lock:
            known = self._texts.get(text)
        if known is None:
            known = self._retry.call(lambda: self._model.text_embeddings([text]))[0]
            with self._lock:
                self._texts[text] = known
        return known

    def _reference_hash(self, reference: FrozenImage) -> ImageHash:
        with self._lock:
            known = self._hashes.get(reference.sha256)
        if known is None:
            known = image_hash(self._images.pixels(reference.uri, reference.sha256))
            with self._lock:
                self._hashes[reference.sha256] = known
        return known

    def _fail(self, task: NightTask, reason: str, attempts: int) -> None:
        log.warning("night: (%s, %s) failed after %d attempts: %s", task.user_id, task.item_id, attempts, reason)
        self._ledger.save_outcome(task, Outcome("failed", attempts, reason[:500]))
        with self._lock:
            self.tally.failed += 1


def _width_and_height(size: str) -> tuple[int, int]:
    width, height = size.split("x")
    return int(width), int(height)
