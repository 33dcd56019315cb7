"""The rows that a night writes and reads, as plain values.

Fields are named as their columns. Images, models and servers are known to none of them, so that the ledger needs nothing of
the steps that make them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True)
class PlannedTask:
    """A pending row of `night_tasks` without its run."""

    user_id: str
    item_id: str
    input_fingerprint: str
    model_version: str
    adapter_version: int
    seed: int
    prompt: Json
    """A `FrozenPrompt` as JSON."""

    def columns(self, run_id: str) -> Json:
        """The row of a run."""
        return {"run_id": run_id, **_shallow(self)}


@dataclass(frozen=True)
class Skip:
    """A row of `night_skips` without its run: a user, or a target of a user, that the plan leaves out."""

    user_id: str
    reason: str
    item_id: str = ""
    input_fingerprint: str | None = None
    """With `model_version`, set when unchanged: which earlier posters stay current."""
    model_version: str | None = None

    def columns(self, run_id: str) -> Json:
        """The row of a run."""
        return {"run_id": run_id, **_shallow(self)}


@dataclass(frozen=True)
class Chunk:
    """Tasks and skips of some users."""

    tasks: tuple[PlannedTask, ...] = ()
    skips: tuple[Skip, ...] = ()


@dataclass(frozen=True)
class CandidateRow:
    """An element of `night_tasks.candidates`: the scores (100 x cosine) of one drawn image."""

    index: int
    alpha: float
    cs: float
    cis_reference: float
    cis_history: float
    score: float
    refused: str | None
    """Why it was not kept."""

    def json(self) -> Json:
        """As stored; rounded, so that it reads well and compares exactly."""
        return {
            "index": self.index,
            "alpha": round(self.alpha, 6),
            "cs": round(self.cs, 4),
            "cis_reference": round(self.cis_reference, 4),
            "cis_history": round(self.cis_history, 4),
            "score": round(self.score, 4),
            "refused": self.refused,
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> CandidateRow:
        """Inverse of `json`; unknown keys are ignored."""
        return cls(**{field.name: value[field.name] for field in fields(cls)})


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
    alpha: float
    seed: int
    tokens: tuple[int, ...]
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
