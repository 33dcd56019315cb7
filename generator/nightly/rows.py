"""The rows that a night writes and reads, as plain values.

Fields are named as their columns. Images, models and servers are known to none of them, so that the ledger needs nothing of
the steps that make them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from generator.safety.judge import UNSAFE, Verdict

Json = dict[str, Any]
_SCORES = ("cs", "cis_reference", "cis_history", "score")


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """A pending row of `night_tasks` without its run."""

    user_id: str
    item_id: str
    input_fingerprint: str
    answers_fingerprint: str
    model_version: str
    weights: str
    adapter_version: int
    seed: int
    prompt: str
    """A `FrozenPrompt` as JSON text."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A row of `night_skips` without its run: a user, or a target of a user, that the plan leaves out."""

    user_id: str
    reason: str
    item_id: str = ""
    input_fingerprint: str | None = None
    """With `model_version` and `weights`, set when unchanged: which earlier posters become current again."""
    model_version: str | None = None
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class UserPlan:
    """A row of `planned_users` without its run: what a user was planned from, and what it came to."""

    user_id: str
    history_fingerprint: str
    targets_fingerprint: str
    drawing_fingerprint: str
    items: tuple[str, ...] = ()
    """Items that were looked at, of the history and of the targets."""
    targets: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Users and targets left out, by reason; unchanged ones are among `targets`."""


@dataclass(frozen=True, slots=True)
class HistoryCounts:
    """Pictures of the histories of users with tasks."""

    pictures: int = 0
    drawn: int = 0
    """Drawn ones, whose posters the users clicked."""

    def __add__(self, other: HistoryCounts) -> HistoryCounts:
        return HistoryCounts(self.pictures + other.pictures, self.drawn + other.drawn)


@dataclass(frozen=True)
class Chunk:
    """What is planned of some users."""

    tasks: tuple[PlannedTask, ...] = ()
    skips: tuple[Skip, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    """Users and targets that are left out without a row, by reason."""
    users: tuple[UserPlan, ...] = ()
    """Users that were looked at."""
    items: Mapping[str, str] = field(default_factory=dict)
    """Items that `users` name, with the fingerprints that they were planned from."""
    changed: Mapping[str, str] = field(default_factory=dict)
    """Items that became others since an earlier plan, with what they are now."""
    forgotten: tuple[str, ...] = ()
    """Users whose earlier plan no longer counts: nobody draws for them now."""
    history: HistoryCounts = HistoryCounts()

    def reasons(self) -> Counter[str]:
        """All that is left out, by reason."""
        return Counter(skip.reason for skip in self.skips) + Counter(self.counted)


@dataclass
class PlanTotals:
    """A whole plan in numbers."""

    tasks: int = 0
    skipped: int = 0
    """Users and targets that are left out."""
    returning: int = 0
    """Users' items whose earlier posters are right again, though others are current."""
    history: HistoryCounts = HistoryCounts()

    def add(self, chunk: Chunk) -> None:
        """Count some users' plan."""
        self.tasks += len(chunk.tasks)
        self.skipped += chunk.reasons().total()
        self.returning += sum(skip.input_fingerprint is not None for skip in chunk.skips)
        self.history += chunk.history


@dataclass(frozen=True)
class UserRange:
    """Users whose ids are neighbours in the database's order."""

    first: str = ""
    before: str | None = None
    """The first id that is not in the range any more; None where it has no end."""


EVERY_USER = UserRange()


@dataclass(frozen=True)
class CandidateRow:
    """An element of `night_tasks.candidates`: the scores (100 x cosine) of a picture that was considered.

    NaN, stored as null, where a refused picture has no embedding.
    """

    index: int
    """Place of the answer among the task's answers."""
    alpha: float
    cs: float
    cis_reference: float
    cis_history: float
    score: float
    refused: str | None
    """Why it was not kept."""

    def json(self) -> Json:
        """As stored; rounded, so that it reads well and compares exactly."""
        scores = {name: getattr(self, name) for name in _SCORES}
        return {
            "index": self.index,
            "alpha": round(self.alpha, 6),
            **{name: round(score, 4) if math.isfinite(score) else None for name, score in scores.items()},
            "refused": self.refused,
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> CandidateRow:
        """Inverse of `json`; unknown keys are ignored."""
        values = {one.name: value[one.name] for one in fields(cls)}
        return cls(**values | {name: math.nan for name in _SCORES if value[name] is None})


@dataclass(frozen=True)
class Drawing:
    """What a task keeps of its drawing, whether posters came of it or not."""

    candidates: tuple[CandidateRow, ...]
    prompt: Json
    """A `FrozenPrompt` with its snapshot, as JSON."""
    seconds: float
    """Time the model took."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: the columns of `night_tasks` that its end changes."""

    status: Literal["done", "refused", "failed"]
    attempts: int
    reason: str | None = None
    drawing: Drawing | None = None
    """None, when nothing was drawn, leaves its columns as they are."""

    def columns(self) -> Json:
        """Values by column."""
        values: Json = {"status": self.status, "attempts": self.attempts, "reason": self.reason}
        if self.drawing is not None:
            values["candidates"] = [candidate.json() for candidate in self.drawing.candidates]
            values["prompt"] = self.drawing.prompt
            values["seconds"] = self.drawing.seconds
        return values


@dataclass(frozen=True)
class PictureRow:
    """A settled row of `pictures`: drawn, or refused for everybody."""

    picture_key: str
    tokens: tuple[int, ...]
    status: Literal["drawn", "refused"]
    reason: str | None
    """Why it is refused."""
    safety: str
    art_key: str = ""
    art_sha256: str = ""
    look: str = ""
    """An `ImageHash` as text; empty, like key and hash of the file, where there is no image."""
    unsafe_score: float | None = None
    """From 0 (harmless) to 1; None where nobody judged it."""
    safety_model: str | None = None

    @property
    def verdict(self) -> Verdict:
        """What is stored of its safety."""
        return Verdict(self.safety, self.unsafe_score, self.safety_model)

    def with_verdict(self, verdict: Verdict) -> Self:
        """The picture with another verdict, refused when that is unsafe."""
        row = replace(self, safety=verdict.safety, unsafe_score=verdict.score, safety_model=verdict.model)
        return replace(row, status="refused", reason=UNSAFE) if verdict.is_unsafe else row

    embedding: npt.NDArray[np.float32] | None = field(default=None, compare=False)
    """(D,), unit length: the image scorer's; None where there is no image to score."""


@dataclass(frozen=True)
class Rendition:
    """One size of a poster, as stored under its key."""

    width: int
    height: int
    image_key: str
    image_sha256: str


@dataclass(frozen=True)
class PosterRow:
    """A row of `posters` as drawn; withholding and announcing come later."""

    poster_id: str
    run_id: str
    user_id: str
    item_id: str
    variant: int
    input_fingerprint: str
    model_version: str
    weights: str
    alpha: float
    seed: int
    tokens: tuple[int, ...]
    picture_key: str | None
    """None in rows of the release before, which shared no pictures."""
    explored: bool
    choice_propensity: float
    """Probability with which the answer was chosen to be drawn."""
    art_key: str
    art_sha256: str
    sizes: tuple[Rendition, ...]
    """The first is the poster's own, the others are its `renditions`."""
    look: str
    """An `ImageHash` as text."""
    cs: float
    cis_reference: float
    cis_history: float
    score: float
    propensity: float
    safety: str
    synthetic: bool

    def columns(self) -> Json:
        """Values by column."""
        values = _shallow(self)
        first, *others = values.pop("sizes")
        renditions = [_shallow(size) for size in others]
        return {**values, **_shallow(first), "tokens": list(self.tokens), "renditions": renditions}

    @classmethod
    def parse(cls, columns: Mapping[str, Any]) -> PosterRow:
        """Inverse of `columns`; other columns are ignored."""
        names = [field.name for field in fields(Rendition)]
        sizes = [Rendition(**{name: row[name] for name in names}) for row in (columns, *columns["renditions"])]
        values = {field.name: columns[field.name] for field in fields(cls) if field.name not in {"sizes", "tokens"}}
        return cls(**values, sizes=tuple(sizes), tokens=tuple(columns["tokens"]))


def _shallow(row: Any) -> Json:
    """A dataclass' fields; `asdict` would copy every prompt."""
    return {field.name: getattr(row, field.name) for field in fields(row)}
