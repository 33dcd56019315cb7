"""What a session of a night has done so far, in figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from generator.nightly.wording import counted


@dataclass
class Tally:
    """Counts of one process, for the progress line and the night's figures."""

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
    compositions_made: int = 0
    compositions_reused: int = 0
    pictures_tokenized: int = 0
    model_retries: int = 0
    uploaded_bytes: int = 0
    model_seconds: float = 0.0
    """Time that answers and pictures took, of several at once."""

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

    def figures(self, seconds: float) -> dict[str, Any]:
        """As stored in `night_runs.figures`; `seconds` is how long the session took."""
        return {
            "seconds": round(seconds, 2),
            "tasks": self.finished,
            "tasks_per_second": round(self.finished / max(seconds, 1e-9), 3),
            "draw_seconds_per_task": round(self.model_seconds / max(1, self.finished), 3),
            "tasks_answered": self.answered,
            "distinct_answers_per_task": round(self.distinct_answers_per_task, 3),
            "pictures_drawn": self.pictures_drawn,
            "pictures_reused": self.pictures_reused,
            "pictures_drawn_per_poster": round(self.pictures_drawn_per_poster, 3),
            "posters_explored": self.explored,
            "compositions_made": self.compositions_made,
            "compositions_reused": self.compositions_reused,
            "pictures_tokenized": self.pictures_tokenized,
            "model_retries": self.model_retries,
            "uploaded_bytes": self.uploaded_bytes,
        }

    def words(self) -> str:
        """What was shared and what was explored, for the night's line."""
        return (
            f"{self.distinct_answers_per_task:.2f} distinct answers per task, {self.pictures_drawn} pictures drawn "
            f"({self.pictures_drawn_per_poster:.2f} per poster kept), {self.pictures_reused} reused; "
            f"{self.compositions_made} compositions made, {self.compositions_reused} reused; "
            f"{self.explored} of {counted(self.posters, 'poster')} chosen to learn from"
        )
