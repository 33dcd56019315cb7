"""Stages that work at the same time, joined by bounded queues: earlier ones wait for a slow one."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """`work` takes an item and returns the items that the next stage gets: none, one or several."""

    name: str
    work: Callable[[Any], Sequence[Any]]
    threads: int = 1
    keeps: bool = False
    """Finishes what reaches it even after `StagePipeline.stop`: its items have cost too much to be dropped."""


_END = object()


class StagePipeline:
    """Runs the items of a source through the stages.

    The first exception of any stage stops all of them and is raised by `run`. After `stop` what is queued is dropped,
    but for stages that keep; what is under way is finished.
    """

    def __init__(self, stages: list[Stage], *, queue_size: int) -> None:
        self._stages = stages
        self._queues: list[queue.Queue[Any]] = [queue.Queue(queue_size) for _ in stages]
        self._left = [stage.threads for stage in stages]
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Take no further items."""
        self.stopping.set()

    def run(self, source: Iterable[Any], *, tick: Callable[[], None], tick_seconds: float = 0.5) -> None:
        """Block until all items went through; `tick` is called every `tick_seconds` or so.

        `tick` runs in the calling thread.
        """
        threads = [threading.Thread(target=self._feed, args=(iter(source),), name="feed", daemon=True)]
        for number, stage in enumerate(self._stages):
            threads += [
                threading.Thread(target=self._work, args=(number,), name=f"{stage.name}-{n}", daemon=True)
                for n in range(stage.threads)
            ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(tick_seconds)
                    tick()
        except BaseException:
            self.stop()
            for thread in threads:
                thread.join()
            raise
        if self._error is not None:
            raise self._error

    def _feed(self, source: Iterator[Any]) -> None:
        try:
            for item in source:
                if self.stopping.is_set():
                    break
                self._queues[0].put(item)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)
        self._close(0)

    def _work(self, number: int) -> None:
        stage = self._stages[number]
        # Queues are emptied even while stopping, so that nobody waits for room in one for ever.
        while (item := self._queues[number].get()) is not _END:
            if self._error is not None or (self.stopping.is_set() and not stage.keeps):
                continue
            try:
                for result in stage.work(item):
                    self._queues[number + 1].put(result)
            except BaseException as error:  # noqa: BLE001 - raised again by `run`
                self._fail(error)
        with self._lock:
            self._left[number] -= 1
            last = self._left[number] == 0
        if last and number + 1 < len(self._stages):
            self._close(number + 1)

    def _close(self, number: int) -> None:
        for _ in range(self._stages[number].threads):
            self._queues[number].put(_END)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
        self.stopping.set()
