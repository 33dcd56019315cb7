"""Stages that work at the same time; an item goes from stage to stage until nothing comes of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Sent = tuple[str, Any]
"""A stage's name, and an item for it."""


@dataclass(frozen=True)
class Stage:
    """`work` takes an item and returns what comes of it, for any stages.

    Nothing comes of an item that is done, or parked.
    """

    name: str
    work: Callable[[Any], Iterable[Sent]]
    threads: int = 1
    keeps: bool = False
    """Finishes what reaches it even after `StagePipeline.stop`: its items have cost too much to be dropped."""


_END = object()


class StagePipeline:
    """Runs the items of a source through the stages, of which the first one gets them.

    About `limit` items are under way at once, parked ones included: the source is asked for more when fewer are. `parked` is
    how many wait outside of all stages, until the work on another item, or `tick`, sends them on. The first exception of any
    stage stops all of them and is raised by `run`. After `stop` what is queued or parked is dropped, but for stages that keep;
    what is under way is finished.
    """

    def __init__(self, stages: Sequence[Stage], *, limit: int, parked: Callable[[], int] = lambda: 0) -> None:
        self._stages = stages
        self._first = stages[0].name
        self._queues: dict[str, queue.SimpleQueue[Any]] = {stage.name: queue.SimpleQueue() for stage in stages}
        self._limit = limit
        self._parked = parked
        self._alive = 0
        """Items in queues and in work."""
        self._waiting_first = 0
        """Items of the source that no thread has taken yet."""
        self._fed = False
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self.seconds: dict[str, float] = dict.fromkeys(self._queues, 0.0)
        """Time at work by stage, of all its threads together."""
        self.stopping = threading.Event()

    def stop(self) -> None:
        """Take no further items."""
        # No lock: this is called by signal handlers, in a thread that may hold it.
        self.stopping.set()

    def run(
        self, source: Iterable[Any], *, tick: Callable[[], Iterable[Sent]] = lambda: (), tick_seconds: float = 0.5
    ) -> None:
        """Block until all items went through.

        `tick` is called in this thread, every `tick_seconds` or so, and may send items on.
        """
        threads = [threading.Thread(target=self._feed, args=(iter(source),), name="feed", daemon=True)]
        for stage in self._stages:
            threads += [
                threading.Thread(target=self._work, args=(stage,), name=f"{stage.name}-{n}", daemon=True)
                for n in range(stage.threads)
            ]
        for thread in threads:
            thread.start()
        try:
            while not self._is_over(tick_seconds):
                self._send(tick())
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for stage in self._stages:
                for _ in range(stage.threads):
                    self._queues[stage.name].put(_END)
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _is_over(self, seconds: float) -> bool:
        """Whether nothing is under way any more; waits so long for it to become so."""
        with self._changed:
            return self._changed.wait_for(self._is_empty, seconds)

    def _is_empty(self) -> bool:
        return self._fed and self._alive == 0 and (self.stopping.is_set() or self._parked() == 0)

    def _has_room(self) -> bool:
        return self.stopping.is_set() or (self._waiting_first == 0 and self._alive + self._parked() < self._limit)

    def _feed(self, source: Iterator[Any]) -> None:
        try:
            while True:
                with self._changed:
                    # What `stop` changes is seen without a notice, and so is what others have parked.
                    while not self._changed.wait_for(self._has_room, 0.1):
                        pass
                if self.stopping.is_set():
                    break
                item = next(source, _END)
                if item is _END:
                    break
                with self._changed:
                    self._waiting_first += 1
                self._send([(self._first, item)])
        except BaseException as error:  # noqa: BLE001 - raised again by `run`
            self._fail(error)
        with self._changed:
            self._fed = True
            self._changed.notify_all()

    def _work(self, stage: Stage) -> None:
        own = self._queues[stage.name]
        while (item := own.get()) is not _END:
            if stage.name == self._first:
                with self._changed:
                    self._waiting_first = max(0, self._waiting_first - 1)
            sent: list[Sent] = []
            if self._error is None and (stage.keeps or not self.stopping.is_set()):
                start = time.monotonic()
                try:
                    sent = list(stage.work(item))
                except BaseException as error:  # noqa: BLE001 - raised again by `run`
                    self._fail(error)
                with self._changed:
                    self.seconds[stage.name] += time.monotonic() - start
            self._send(sent, done=1)

    def _send(self, sent: Iterable[Sent], *, done: int = 0) -> None:
        items = list(sent)
        with self._changed:
            self._alive += len(items) - done
            self._changed.notify_all()
        for name, item in items:
            self._queues[name].put(item)

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
        self.stopping.set()
