"""What a night's processes have done so far, in figures that add up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from generator.nightly.wording import counted
from generator.serving.api import ServerState

EXAMPLES = 4
"""Pictures that are remembered for each reason of refusal."""


@dataclass
class Refusals:
    """How often pictures were not kept for one reason, and some of them."""

    count: int = 0
    pictures: list[str] = field(default_factory=list)
    """Keys of pictures whose files are stored; no user is in them."""

    def add(self, count: int, pictures: Iterable[str]) -> None:
        """Count further ones."""
        self.count += count
        new = (key for key in pictures if key not in self.pictures)
        self.pictures += list(new)[: EXAMPLES - len(self.pictures)]


@dataclass
class Tally:
    """Counts of one process, or of several, for the progress line and the night's figures."""

    done: int = 0
    refused: int = 0
    failed: int = 0
    posters: int = 0
    """Posters of tasks that are done."""
    explored: int = 0
    """Those of them that were chosen to learn from."""
    chosen_for: int = 0
    """Tasks whose answers were chosen among, the ones asked for tonight and the stored ones."""
    answered: int = 0
    """Tasks that the personalizer was asked about."""
    distinct_answers: int = 0
    pictures_drawn: int = 0
    pictures_reused: int = 0
    """Times that a task found its picture drawn, or being drawn, already."""
    pictures_judged: int = 0
    """Pictures that the safety model was asked about."""
    compositions_made: int = 0
    compositions_reused: int = 0
    pictures_tokenized: int = 0
    model_retries: int = 0
    uploaded_bytes: int = 0
    model_seconds: float = 0.0
    """Time that answers and pictures took, of several at once."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Time at work by stage, of several at once."""
    refusals: dict[str, Refusals] = field(default_factory=dict)
    """Pictures that tasks did not keep, by reason."""
    servers: dict[str, ServerState] = field(default_factory=dict)
    """Triton servers by their addresses."""

    def __add__(self, other: Tally) -> Tally:
        """Both together, of two processes."""
        both = Tally()
        both.add(self)
        both.add(other)
        return both

    @property
    def finished(self) -> int:
        """Tasks that need nothing more."""
        return self.done + self.refused + self.failed

    @property
    def distinct_answers_per_task(self) -> float:
        """Mean over the tasks that were chosen for."""
        return self.distinct_answers / max(1, self.chosen_for)

    @property
    def pictures_drawn_per_poster(self) -> float:
        """What sharing and choosing before drawing are worth; 0 where every picture was there."""
        return self.pictures_drawn / max(1, self.posters)

    def refuse(self, reason: str, picture: str | None) -> None:
        """Count a picture that a task does not keep; its key when it can be looked at."""
        self.refusals.setdefault(reason, Refusals()).add(1, [picture] if picture else [])

    def add(self, other: Tally) -> None:
        """Add another process' figures to these."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, int | float):
                setattr(self, one.name, mine + theirs)
        for stage, seconds in other.stage_seconds.items():
            self.stage_seconds[stage] = self.stage_seconds.get(stage, 0.0) + seconds
        for reason, others in other.refusals.items():
            self.refusals.setdefault(reason, Refusals()).add(others.count, others.pictures)
        for address, state in other.servers.items():
            self.servers[address] = self.servers[address] + state if address in self.servers else state

    def figures(self, seconds: float) -> dict[str, Any]:
        """As stored in `night_runs.figures`, with means for people; `seconds` is how long it took."""
        return {
            "seconds": round(seconds, 2),
            "tasks": self.finished,
            "done": self.done,
            "refused": self.refused,
            "failed": self.failed,
            "posters": self.posters,
            "tasks_per_second": round(self.finished / max(seconds, 1e-9), 3),
            "draw_seconds_per_task": round(self.model_seconds / max(1, self.finished), 3),
            "model_seconds": round(self.model_seconds, 3),
            "tasks_answered": self.answered,
            "tasks_chosen_for": self.chosen_for,
            "distinct_answers": self.distinct_answers,
            "distinct_answers_per_task": round(self.distinct_answers_per_task, 3),
            "pictures_drawn": self.pictures_drawn,
            "pictures_reused": self.pictures_reused,
            "pictures_drawn_per_poster": round(self.pictures_drawn_per_poster, 3),
            "pictures_judged": self.pictures_judged,
            "posters_explored": self.explored,
            "compositions_made": self.compositions_made,
            "compositions_reused": self.compositions_reused,
            "pictures_tokenized": self.pictures_tokenized,
            "model_retries": self.model_retries,
            "uploaded_bytes": self.uploaded_bytes,
            "stage_seconds": {stage: round(seconds, 3) for stage, seconds in self.stage_seconds.items()},
            "refusals": {reason: vars(one) for reason, one in self.refusals.items()},
            "servers": [asdict(state) for _, state in sorted(self.servers.items())],
        }

    @classmethod
    def parse(cls, figures: Mapping[str, Any]) -> Tally:
        """Inverse of `figures`; what a release before this one did not store is 0."""
        stored = {"answered": "tasks_answered", "chosen_for": "tasks_chosen_for", "explored": "posters_explored"}
        names = [one.name for one in fields(cls) if one.name not in {"stage_seconds", "refusals", "servers"}]
        values = {name: figures.get(stored.get(name, name), 0) for name in names}
        if "done" not in figures:
            values["done"] = figures.get("tasks", 0)
        refusals = {
            reason: Refusals(one["count"], list(one["pictures"])) for reason, one in figures.get("refusals", {}).items()
        }
        servers = {one["address"]: ServerState(**one) for one in figures.get("servers", [])}
        stages = dict(figures.get("stage_seconds", {}))
        return cls(**values, stage_seconds=stages, refusals=refusals, servers=servers)

    def away(self) -> str:
        """How many Triton servers are not used, for the progress line; empty when there is none."""
        away = sum(bool(state.problem) for state in self.servers.values())
        return f", {away} of {len(self.servers)} Triton servers not used" if away else ""

    def words(self) -> str:
        """What was shared and what was explored, for the night's line."""
        return (
            f"{self.distinct_answers_per_task:.2f} distinct answers per task, {self.pictures_drawn} pictures drawn "
            f"({self.pictures_drawn_per_poster:.2f} per poster kept), {self.pictures_reused} reused; "
            f"{self.compositions_made} compositions made, {self.compositions_reused} reused; "
            f"{self.explored} of {counted(self.posters, 'poster')} chosen to learn from"
        )
