"""One step's work in parts and processes, with sums that do not depend on how it is split.

Each process draws the same numbers and takes its own rows, gradients are summed: two processes, or eight parts, follow the
trajectory of one process with one part (to float32's rounding).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together; alone, everything here does nothing."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: str = "cpu") -> ProcessGroup:
        """The processes that `accelerate launch` started together with this one, or this one alone.

        device: type of the device that all of them train on, which decides what they talk through.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=device == "cpu")
        return cls(state.process_index, state.num_processes)

    def parts(self, rows: int, limit: int | None = None) -> Iterator[slice]:
        """This process's share of `rows` rows, in parts of at most `limit` (none: as one)."""
        first, last = rows * self.rank // self.size, rows * (self.rank + 1) // self.size
        step = limit or max(1, rows)
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every process's gradients by the sum of all; a process without rows adds zeros."""
        if self.size == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for parameter, summed in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
            parameter.grad = summed.view_as(parameter).clone()

    def sum_figures(self, figures: dict[str, float]) -> dict[str, float]:
        if self.size == 1:
            return figures
        total: dict[str, float] = {}
        for each in self._gather(figures):
            for name, figure in each.items():
                total[name] = total.get(name, 0.0) + figure
        return total

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process must stop, and the first one's clock in seconds.

        No process may leave the loop alone.
        """
        if self.size == 1:
            return stop, seconds
        everyone = self._gather((stop, seconds))
        return any(each for each, _ in everyone), everyone[0][1]

    def wait(self) -> None:
        """Wait until all processes are here, so that nobody reads what the first one is still writing."""
        if self.size > 1:
            torch.distributed.barrier()

    def _gather(self, mine: T) -> list[T]:
        everyone: list[T] = [mine] * self.size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone
