"""The thread in which a reader looks for new sets, and what becomes of the old ones."""

from __future__ import annotations

import contextlib
import logging
import math
import mmap
import os
import random
import threading
import time
import weakref
from typing import Protocol

from schemas.manifest_source import ManifestSet

log = logging.getLogger("pigeon.manifest")

MIN_SECONDS = 0.05
RETIRE_SECONDS = 1.0
"""Seconds after which no caller is at work on a set that was replaced."""
STOP_SECONDS = 5.0


class Refreshed(Protocol):
    """What is refreshed."""

    def refresh(self) -> bool:
        """Look for a newer set."""

    def _after_fork(self) -> None:
        """Begin again in a forked process."""


class Refresher:
    """Refreshes a reader in a daemon thread, one in each process, without keeping the reader alive."""

    def __init__(self, reader: Refreshed, seconds: float) -> None:
        self._reader = weakref.ref(reader)
        self._seconds = seconds
        self._retired: list[tuple[float, ManifestSet]] = []
        self._maps: list[mmap.mmap] = []
        self._looked_at = time.monotonic()
        self._stopped = False
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._starting = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._running = self._stopped or not math.isfinite(self._seconds)
        reader = self._reader()
        if reader is not None:
            weakref.finalize(reader, self._stop.set)

    def start(self) -> None:
        """Start the thread if this process has none yet."""
        if self._running:
            return
        with self._starting:
            if not self._running:
                # At the end of the interpreter there are no new threads.
                with contextlib.suppress(RuntimeError):
                    self._thread = threading.Thread(target=self._run, name="pigeon-manifest", daemon=True)
                    self._thread.start()
                    self._running = True

    def stop(self) -> None:
        """End the thread for good."""
        self._stopped = self._running = True
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_SECONDS)

    def retire(self, before: ManifestSet | None, after: ManifestSet) -> None:
        """Close what of `before` is not in `after`, once nobody is at work on it."""
        if before is not None:
            kept = {id(shard) for shard in (*after.shards.values(), *after.items.values())}
            gone = [shard for shard in (*before.shards.values(), *before.items.values()) if id(shard) not in kept]
            self._maps += [shard.map for shard in gone]
            self._retired.append((time.monotonic(), before))

    def release(self) -> None:
        """Close what was retired a while ago.

        Unmapping gigabytes takes milliseconds: here it holds up no caller.
        """
        self._looked_at = time.monotonic()
        self._retired = [entry for entry in self._retired if self._looked_at - entry[0] < RETIRE_SECONDS]
        maps, self._maps = self._maps, []
        for one in maps:
            try:
                one.close()
            except BufferError:  # somebody still has its rows
                self._maps.append(one)

    def _run(self) -> None:
        stop, seconds = self._stop, max(self._seconds, MIN_SECONDS)
        wait = max(0.0, self._looked_at + seconds - time.monotonic())
        while not stop.wait(wait):
            reader = self._reader()
            if reader is None:
                return
            try:
                reader.refresh()
            except Exception:
                log.exception("the manifest was not refreshed; the set read before goes on")
            del reader
            # Not all readers of a fleet at the same moment.
            wait = seconds * random.uniform(0.9, 1.1)

    def _after_fork(self) -> None:
        self._reset()
        reader = self._reader()
        if reader is not None:
            reader._after_fork()


_all: weakref.WeakSet[Refresher] = weakref.WeakSet()


def _in_child() -> None:
    for refresher in list(_all):
        try:
            refresher._after_fork()
        except Exception:  # one reader's client must not cost the other readers their thread
            log.exception("a manifest reader does not refresh in the forked process")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
