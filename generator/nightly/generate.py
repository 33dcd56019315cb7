"""Drawing of a run's tasks: tokens, answers, a choice among them, each distinct picture once, posters.

A task goes through the stages like this:

    tokens   visual tokens of its images, for a page of tasks; answers that are stored already
    answer   the personalizer's answers, stored
             ... the policy chooses; pictures that are there are taken, for others the task is parked
    draw     one picture, for all tasks that wait for it
    finish   its pictures are judged; for a refused one the next choice is asked for; else composed, and its rows written
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np

from generator.nightly.answers import as_set, request_of, with_choice
from generator.nightly.compose import NotComposable
from generator.nightly.compositions import Compositions, Lettering
from generator.nightly.erasure_fence import TaskGone
from generator.nightly.frozen_prompt import FrozenImage, FrozenPrompt
from generator.nightly.image_features import ImageFeatureCache, Missing
from generator.nightly.images import CatalogImages, ImageAway, UnreadableImage
from generator.nightly.jobs import Job
from generator.nightly.ledger import Ledger
from generator.nightly.picture_batches import PictureBatches
from generator.nightly.picture_rows import PictureTable
from generator.nightly.pictures import Order, PictureGone, Pictures
from generator.nightly.policies import ChoicePolicy, ModelPolicy
from generator.nightly.retry import ModelRetry, Stopped
from generator.nightly.rows import EVERY_USER, Outcome, PosterRow, UserRange
from generator.nightly.select import ImageHash, PromptFeatures, Vector, image_hash, judge
from generator.nightly.stages import Sent, Stage, StagePipeline
from generator.nightly.tally import Tally
from generator.safety.judge import SafetyCheck
from generator.serving.api import ImageFeatures, InferenceError, Picture, PictureRequest, ServedPigeon
from generator.storage.objects import Store
from schemas.answers import AnswerSet, distinct
from schemas.errors import PigeonError
from schemas.faultpoints import reach
from schemas.preferences import PromptSnapshot
from schemas.settings import Settings
from schemas.tables import NightTask

log = logging.getLogger("pigeon.night")

FINISHERS = 2
PAGE = 16
"""Tasks whose images are tokenized together."""
TASKS_AT_ONCE = 64
"""Tasks under way, parked ones included; for each a few KiB. More where more requests may be."""
TEXTS = 4096
"""Items whose text embeddings and image hashes are kept in memory."""
STARTS = 3
"""Times that a task starts again because its files were deleted meanwhile."""


class Generator:
    """Draws the pending tasks of one run, or of some of its users (see `drawing.Drawing`)."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        store: Store,
        images: CatalogImages,
        model: ServedPigeon,
        run_id: str,
        safety: SafetyCheck | None = None,
        policy: ChoicePolicy | None = None,
        users: UserRange = EVERY_USER,
    ) -> None:
        """`policy` chooses among answers; the model's own preference where none is given."""
        self._night = settings.night
        self._deadline = settings.triton.inference_timeout_seconds
        self._ledger = ledger
        self._images = images
        self._model = model
        self._run_id = run_id
        self._users = users
        self._drawing_version = model.drawing_version
        self._policy = policy or ModelPolicy()
        in_flight = settings.triton.max_in_flight
        self._batches = PictureBatches(self._draw_pictures, model.pictures_at_once)
        self._slots = threading.BoundedSemaphore(in_flight)
        self._pictures = Pictures(
            PictureTable(ledger, self._drawing_version, self._night.claim_seconds, safety),
            store,
            self._batches.draw,
            self._drawing_version,
            blank_stddev=self._night.blank_stddev,
            claim_seconds=self._night.claim_seconds,
            safety=safety,
        )
        self._compositions = Compositions(ledger, store, self._night, self._pictures.pixels)
        self.pipeline = StagePipeline(
            [
                Stage("tokens", self._prepare),
                Stage("answer", self._own(self._answer), in_flight),
                Stage("draw", self._draw, in_flight * self._batches.size),
                Stage("finish", self._own(self._finish), FINISHERS, keeps=True),
            ],
            limit=max(TASKS_AT_ONCE, 8 * in_flight * self._batches.size),
            parked=lambda: self._pictures.parked,
        )
        images.stop_waiting_on(self.pipeline.stopping)
        self._retry = ModelRetry(
            model,
            max_attempts=self._night.max_attempts,
            outage_seconds=self._night.outage_seconds,
            stopping=self.pipeline.stopping,
        )
        self._features = ImageFeatureCache(ledger.engine, model, images, self._retry.call, ledger.outages)
        self._text = functools.lru_cache(maxsize=TEXTS)(self._text_embedding)
        self._reference_hash = functools.lru_cache(maxsize=TEXTS)(self._image_hash)
        self._lock = threading.Lock()
        self._tally = Tally()
        self._waited: dict[str, float] = {}
        """Seconds by stage in which it waited for its turn at the model."""

    @property
    def tally(self) -> Tally:
        """What is done so far."""
        counts, pictures, files = Tally(), self._pictures, self._compositions
        with self._lock:
            counts.add(self._tally)
            waited = dict(self._waited)
        counts.pictures_drawn, counts.pictures_reused = pictures.drawn, pictures.reused
        counts.pictures_judged = pictures.judged
        counts.compositions_made, counts.compositions_reused = files.composed, files.reused
        counts.uploaded_bytes = pictures.uploaded_bytes + files.uploaded_bytes
        counts.pictures_tokenized, counts.model_retries = self._features.computed, self._retry.retries
        seconds = {name: max(0.0, spent - waited.get(name, 0.0)) for name, spent in self.pipeline.seconds.items()}
        if pictures.judged:
            seconds["draw"] = max(0.0, seconds["draw"] - pictures.judge_seconds)
            seconds["safety"] = pictures.judge_seconds
        counts.stage_seconds = seconds
        counts.servers = {server.address: server for server in self._model.servers()}
        return counts

    def stop(self) -> None:
        """Take no further tasks; may be called by signal handlers."""
        self.pipeline.stop()

    def run(self, tick: Callable[[Tally], None]) -> Tally:
        """Draw all pending tasks; returns early, without an error, after `stop`.

        Raises:
            ServerUnavailable: Triton, Postgres or S3 is away for too long; finished tasks are kept.
            LockHeld: another process has taken the night over.
        """

        def ticked() -> list[Sent]:
            tick(self.tally)
            orders, released = self._pictures.poll()
            return [*(("draw", order) for order in orders), *(("finish", job) for job in released)]

        pending = self._ledger.read_pending(self._run_id, page=PAGE, users=self._users)
        self.pipeline.run(pending, tick=ticked)
        return self.tally

    # --- tokens ---

    def _prepare(self, tasks: list[NightTask]) -> list[Sent]:
        """Tokens of all images of a page of tasks, and the answers that are stored already."""
        try:
            stored = self._ledger.read_answers(tasks)
            jobs = self._jobs(tasks)
        except Stopped:
            return []
        except Exception as error:
            if _is_outage(error):
                raise
            if len(tasks) > 1:  # one bad task must not take its neighbours along
                return [sent for task in tasks for sent in self._prepare([task])]
            self._fail(tasks[0], error, 1)
            return []
        sent: list[Sent] = []
        for job in jobs:
            job.answers = _unpacked(stored.get((job.task.user_id, job.task.item_id)))
            sent += self._own(self._choose)(job) if job.answers else [("answer", job)]
        return sent

    def _jobs(self, tasks: list[NightTask]) -> list[Job]:
        """Tasks with the features of their images; a task whose images cannot be had fails alone."""
        prompts = [FrozenPrompt.model_validate(task.prompt) for task in tasks]
        known = self._features.get(image for p in prompts for image in (*p.history, p.reference))
        jobs = []
        for task, prompt in zip(tasks, prompts, strict=True):
            history = [known[image.sha256] for image in prompt.history]
            reference = known[prompt.reference.sha256]
            missing = next((f for f in (reference, *history) if isinstance(f, Missing)), None)
            if missing:
                if missing.away and self.pipeline.stopping.is_set():
                    raise Stopped
                self._fail(task, f"picture: {missing.reason}", 1)
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
            embeddings = np.stack([f.embedding for f in readable])
            jobs.append(
                Job(
                    task=task,
                    prompt=prompt,
                    snapshot=snapshot,
                    reference=reference,
                    history=embeddings,
                    drawing_version=self._drawing_version,
                )
            )
        return jobs

    # --- answers ---

    def _answer(self, job: Job) -> list[Sent]:
        """Ask the personalizer, and keep what it answers before anything is chosen."""
        request = request_of(job.task, job.snapshot, self._night)

        def attempted() -> None:
            job.attempts += 1

        start = time.monotonic()
        with self._turn("answer"):
            answers = self._retry.call(
                lambda: self._model.answer(request, deadline_seconds=self._deadline), attempted=attempted
            )
        job.answer_seconds = time.monotonic() - start
        job.answers = as_set(request, answers, self._text(job.words))
        self._ledger.save_answers(job.task, job.answers.pack())
        with self._lock:
            self._tally.answered += 1
            self._tally.model_seconds += job.answer_seconds
        reach("answered")
        return self._choose(job)

    def _choose(self, job: Job) -> list[Sent]:
        assert job.answers is not None  # noqa: S101 - asked for or stored
        answers = job.answers.answers
        with self._lock:
            self._tally.chosen_for += 1
            self._tally.distinct_answers += len(distinct(answers))
        count = max(self._night.variants, self._night.max_draws)
        job.choices = self._policy.choose(answers, count, job.task.seed, job.history)
        reach("chosen")
        return self._ask(job)

    def _ask(self, job: Job) -> list[Sent]:
        """Ask for the pictures of the next choices; the task goes on at once when all are there."""
        wanted = {job.key(choice): job.answer(choice).codes for choice in job.next_choices(self._night.variants)}
        orders, ready = self._pictures.want(job, wanted)
        sent: list[Sent] = [("draw", order) for order in orders]
        return [*sent, ("finish", job)] if ready else sent

    # --- pictures ---

    def _draw(self, order: Order) -> list[Sent]:
        start = time.monotonic()
        try:
            released = self._pictures.draw(order)
        except Stopped:
            return []
        except Exception as error:
            if _is_outage(error):
                raise
            for job in self._pictures.give_up(order.key):
                assert isinstance(job, Job)  # noqa: S101 - no others wait
                self._fail(job.task, error, max(1, job.attempts))
            return []
        with self._lock:
            self._tally.model_seconds += time.monotonic() - start
        return [("finish", job) for job in released]

    def _draw_pictures(self, taken: Callable[[], list[PictureRequest]]) -> list[Picture]:
        with self._turn("draw"):
            requests = taken()
            return self._retry.call(lambda: self._model.draw_pictures(requests, deadline_seconds=self._deadline))

    @contextlib.contextmanager
    def _turn(self, stage: str) -> Iterator[None]:
        """One of the places at the model; the time that a stage waits for it is none of its work."""
        start = time.monotonic()
        with self._slots:
            with self._lock:
                self._waited[stage] = self._waited.get(stage, 0.0) + time.monotonic() - start
            yield

    # --- posters ---

    def _finish(self, job: Job) -> list[Sent]:
        """Judge the pictures; ask for more when some are refused, else write the task's posters."""
        self._judge(job)
        if len(job.kept) < self._night.variants and job.asked < len(job.choices):
            return self._ask(job)
        try:
            posters, outcome = self._posters(job), job.outcome()
        except PictureGone:
            return self._start_over(job)
        except NotComposable as error:
            posters, outcome = [], job.refusal(str(error))
        variants = {one.index: number for number, one in enumerate(job.kept)} if posters else {}
        assert job.answers is not None  # noqa: S101 - chosen among
        answers = with_choice(job.answers, self._policy.name, job.choices[: job.asked], variants)
        if not self._ledger.save_outcome(job.task, outcome, posters, answers.pack()):
            return self._start_over(job)
        self._count(outcome, len(posters), sum(poster.explored for poster in posters))
        reach("finished")
        return []

    def _judge(self, job: Job) -> None:
        features = PromptFeatures(
            self._text(job.words), job.reference.embedding, job.history, self._reference_hash(job.prompt.reference)
        )
        for choice, picture in job.unjudged():
            alpha = job.answer(choice).alpha
            judged = judge(choice.index, alpha, picture, features, job.kept, self._night)
            job.judged.append(judged)
            if judged.refused:
                with self._lock:
                    self._tally.refuse(judged.refused, picture.picture_key if picture.status == "drawn" else None)

    def _posters(self, job: Job) -> list[PosterRow]:
        """Rows of the kept pictures' posters; their files are in the bucket."""
        lettering = Lettering(job.prompt.reference.title, job.prompt.year)
        files = [self._compositions.renditions(one.picture, lettering) for one in job.kept]
        return job.posters(files, self._night)

    def _start_over(self, job: Job) -> list[Sent]:
        """Ask for the task's pictures again: one of its files was deleted since it was found."""
        if job.starts == STARTS:
            self._fail(job.task, "picture: its file keeps disappearing from the bucket", max(1, job.attempts))
            return []
        self._pictures.forget([job.key(choice) for choice in job.choices])
        self._compositions.forget()
        job.start_over()
        return self._ask(job)

    def _count(self, outcome: Outcome, posters: int = 0, explored: int = 0) -> None:
        with self._lock:
            self._tally.done += outcome.status == "done"
            self._tally.refused += outcome.status == "refused"
            self._tally.failed += outcome.status == "failed"
            self._tally.posters += posters
            self._tally.explored += explored

    # --- one task's own work ---

    def _own(self, work: Callable[[Job], list[Sent]]) -> Callable[[Job], list[Sent]]:
        """`work`, whose own trouble fails its task; an outage ends the night.

        The task of a user who is to be erased is dropped: it writes nothing and waits for nothing.
        """

        def guarded(job: Job) -> list[Sent]:
            try:
                return work(job)
            except Stopped:
                return []
            except TaskGone:
                job.failed = True
                return []
            except Exception as error:
                if _is_outage(error):
                    raise
                if isinstance(error, ImageAway) and self.pipeline.stopping.is_set():
                    return []
                job.failed = True
                self._fail(job.task, error, max(1, job.attempts))
                return []

        return guarded

    def _text_embedding(self, text: str) -> Vector:
        rows = self._retry.call(lambda: self._model.text_embeddings([text]))
        found: Vector = rows[0]
        return found

    def _image_hash(self, reference: FrozenImage) -> ImageHash:
        return image_hash(self._images.pixels(reference.uri, reference.sha256))

    def _fail(self, task: NightTask, problem: str | Exception, attempts: int) -> None:
        reason = problem if isinstance(problem, str) else _reason(problem)
        log.warning("night: (%s, %s) failed after %d attempts: %s", task.user_id, task.item_id, attempts, reason)
        if isinstance(problem, Exception) and not isinstance(problem, InferenceError | UnreadableImage):
            log.warning("night: where it happened", exc_info=problem)
        outcome = Outcome("failed", attempts, reason[:500])
        with contextlib.suppress(TaskGone):
            self._ledger.save_outcome(task, outcome)
            self._count(outcome)


def _is_outage(error: Exception) -> bool:
    """Not a task's own trouble: a server is away, the lease is gone, a setting is wrong."""
    return isinstance(error, PigeonError) and not isinstance(error, InferenceError)


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableImage):
        return f"picture: {error}"
    return " ".join(f"{type(error).__name__}: {error}".split())


def _unpacked(answers: bytes | None) -> AnswerSet | None:
    """Stored answers; what cannot be read is asked for again."""
    if answers is None:
        return None
    try:
        return AnswerSet.unpack(answers)
    except ValueError as error:
        log.warning("night: %s; the personalizer is asked again", error)
        return None
