"""A task on its way: answers, choices, judged pictures, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from generator.nightly.frozen_prompt import FrozenPrompt, poster_id
from generator.nightly.picture_rows import CORRUPT
from generator.nightly.pictures import Waiting, picture_key
from generator.nightly.policies import Choice, reader_shares
from generator.nightly.rows import Drawing, Outcome, PictureRow, PosterRow, Rendition
from generator.nightly.select import Judged
from generator.serving.api import ImageFeatures
from schemas.answers import AnswerSet, StoredAnswer
from schemas.preferences import PromptSnapshot
from schemas.settings import NightSettings
from schemas.tables import NightTask

NO_ANSWER = "no answer with codes"


@dataclass(eq=False, kw_only=True)
class Job(Waiting):
    """A task and what it has come to; `pictures` are those of the choices that were asked for."""

    task: NightTask
    prompt: FrozenPrompt
    snapshot: PromptSnapshot
    reference: ImageFeatures
    history: npt.NDArray[np.float32]
    """(H, D), unit rows."""
    drawing_version: str
    answers: AnswerSet | None = None
    choices: list[Choice] = field(default_factory=list)
    """All that the policy would draw, in its order."""
    asked: int = 0
    """Choices whose pictures were asked for."""
    judged: list[Judged] = field(default_factory=list)
    """Pictures that are there, in the same order."""
    starts: int = 0
    attempts: int = 0
    answer_seconds: float = 0.0

    @property
    def kept(self) -> list[Judged]:
        """Pictures that become posters; place in the list = variant number."""
        return [one for one in self.judged if one.refused is None]

    @property
    def words(self) -> str:
        """The text that pictures are compared with."""
        return self.prompt.description or self.prompt.reference.title

    def answer(self, choice: Choice) -> StoredAnswer:
        """The answer that was chosen."""
        assert self.answers is not None  # noqa: S101 - choices are made among answers
        return self.answers.answers[choice.index]

    def key(self, choice: Choice) -> str:
        """The key of a choice's picture."""
        return picture_key(self.drawing_version, self.answer(choice).codes)

    def next_choices(self, variants: int) -> list[Choice]:
        """So many further choices as the task is short of variants; they count as asked for."""
        further = self.choices[self.asked : self.asked + max(0, variants - len(self.kept))]
        self.asked += len(further)
        return further

    def unjudged(self) -> list[tuple[Choice, PictureRow]]:
        """Choices that were asked for and not judged yet, with their pictures."""
        return [(choice, self.pictures[self.key(choice)]) for choice in self.choices[len(self.judged) : self.asked]]

    def start_over(self) -> None:
        """Forget which pictures were asked for."""
        self.starts += 1
        self.asked = 0
        self.judged.clear()

    # --- what is written ---

    def outcome(self) -> Outcome:
        """How the task ends."""
        if self.kept:
            return Outcome("done", self.attempts, drawing=self._drawing())
        refusals = sorted({one.refused or "" for one in self.judged}) or [NO_ANSWER]
        # A picture that came out broken may come out well another time, so the task is tried again.
        if CORRUPT in refusals:
            return Outcome("failed", max(1, self.attempts), ", ".join(refusals), self._drawing())
        return self.refusal(", ".join(refusals))

    def refusal(self, reason: str) -> Outcome:
        """The end of a task that has no poster to show."""
        return Outcome("refused", self.attempts, reason, self._drawing())

    def _drawing(self) -> Drawing:
        return Drawing(
            tuple(one.row() for one in self.judged),
            self.prompt.model_copy(update={"snapshot": self.snapshot}).model_dump(mode="json"),
            self.answer_seconds + self.draw_seconds,
        )

    def posters(self, files: Sequence[tuple[Rendition, ...]], settings: NightSettings) -> list[PosterRow]:
        """A row for each kept picture; `files`: its sizes."""
        chosen = {choice.index: choice for choice in self.choices}
        shown = reader_shares([chosen[one.index] for one in self.kept], settings)
        return [
            self._poster(variant, one, chosen[one.index], shown[variant], files[variant])
            for variant, one in enumerate(self.kept)
        ]

    def _poster(
        self, variant: int, judged: Judged, choice: Choice, propensity: float, sizes: tuple[Rendition, ...]
    ) -> PosterRow:
        task, picture = self.task, judged.picture
        return PosterRow(
            poster_id=poster_id(
                task.user_id, task.item_id, task.weights, variant, task.input_fingerprint, picture.picture_key
            ),
            run_id=task.run_id,
            user_id=task.user_id,
            item_id=task.item_id,
            variant=variant,
            input_fingerprint=task.input_fingerprint,
            model_version=task.model_version,
            weights=task.weights,
            alpha=judged.alpha,
            seed=task.seed,
            tokens=picture.tokens,
            picture_key=picture.picture_key,
            explored=choice.explored,
            choice_propensity=choice.probability,
            art_key=picture.art_key,
            art_sha256=picture.art_sha256,
            sizes=sizes,
            look=picture.look,
            cs=judged.cs,
            cis_reference=judged.cis_reference,
            cis_history=judged.cis_history,
            score=judged.score,
            propensity=propensity,
            safety=picture.safety,
            synthetic=self.prompt.synthetic,
        )
