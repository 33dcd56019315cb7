"""What a run of the consumers did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from consumers.write.batch import Batch
from consumers.write.upsert import Written

KINDS_NAMED = 5
"""Kinds of events without use that a summary names, the most frequent ones."""


@dataclass
class Summary:
    """What a run did, in numbers."""

    records: int = 0
    poison: int = 0
    clamped: int = 0
    batches: int = 0
    seconds: float = 0.0  # spent while there was something to do
    written: Written = field(default_factory=Written)
    next_offsets: dict[tuple[str, int], int] = field(default_factory=dict)  # durable, by topic and partition

    def add(self, batch: Batch, written: Written) -> None:
        """Count one durable batch."""
        self.records += len(batch)
        self.poison += len(batch.poison)
        self.batches += 1
        self.written.add(written)
        for tp, (_, following) in batch.spans.items():
            self.next_offsets[tp.topic, tp.partition] = following

    def line(self) -> str:
        """One line for people."""
        w = self.written
        rows = ", ".join(f"{topic} {count}" for topic, count in sorted(w.rows.items())) or "none"
        rate = self.records / self.seconds if self.seconds > 0 else 0.0
        extra = {
            "duplicates": w.duplicates,
            "poison": self.poison,
            "stale": w.stale,
            "tombstones of no item": w.unknown_tombstones,
            "clamped": self.clamped,
            "erased rows": w.erased,
            "events of erased users": w.forgotten,
        }
        tail = "".join(
            f", {count} {name}" for name, count in extra.items() if count or name in ("duplicates", "poison")
        )
        kinds = ", ".join(f"{count} of kind {kind!r}" for kind, count in w.other_kinds.most_common(KINDS_NAMED))
        if kinds:
            tail += f"; events that enter no history (consumer.positive_kinds): {kinds}"
        return f"{self.records} records in {self.batches} batches, {rate:.0f}/s; rows: {rows}{tail}"
