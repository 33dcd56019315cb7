"""The consumers' health: liveness that proves progress, readiness that knows the stores."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from consumers.loop.thread_stacks import Stacks

log = structlog.get_logger("pigeon.consume")

# A loop that has not come round for this long is stuck; so is one that has work, no outage, and stores nothing.
STUCK_LOOP_SECONDS = 60.0
STUCK_WORK_SECONDS = 300.0


class Health:
    """What the loop last did; written by the loop, read by the HTTP threads."""

    def __init__(
        self,
        probes: Callable[[], dict[str, str]] = dict,
        stacks: Stacks | None = None,
        stuck_loop_seconds: float = STUCK_LOOP_SECONDS,
        stuck_work_seconds: float = STUCK_WORK_SECONDS,
    ) -> None:
        """probes: asks the stores, in the HTTP threads; store -> problem. stacks: where they go when nothing moves."""
        self._probes = probes
        self._stacks = stacks
        self._stuck_loop_seconds, self._stuck_work_seconds = stuck_loop_seconds, stuck_work_seconds
        self._beat = self._progress = time.monotonic()
        self._lag = 0
        self._assigned = False
        self._outages: dict[str, str] = {}
        self._told_stuck = False

    def beat(self, lag: int) -> None:
        """The loop came round and knows its lag in records."""
        self._beat = time.monotonic()
        self._assigned = True
        if not lag:
            self._progress = self._beat
        self._lag = lag
        if self._stacks:
            self._stacks.feed()
        self._tell_stuck()

    def _stuck_for(self) -> float:
        """Seconds for which work has waited, no outage is known and nothing was stored; 0 while that is not too long."""
        seconds = time.monotonic() - self._progress
        stuck = self._lag and not self._outages and seconds > self._stuck_work_seconds
        return seconds if stuck else 0.0

    def _tell_stuck(self) -> None:
        """Once each time that it is stuck."""
        seconds = self._stuck_for()
        if seconds and not self._told_stuck:
            log.error("stuck", waiting_records=self._lag, seconds=round(seconds), stacks="follow")
            if self._stacks:
                self._stacks.dump()
        self._told_stuck = bool(seconds)

    def progressed(self) -> None:
        """Something became durable."""
        self._progress = time.monotonic()

    def outage(self, server: str, error: str) -> bool:
        """A server does not work; True when that is news."""
        news = server not in self._outages
        self._outages[server] = error
        return news

    def recovered(self, server: str) -> None:
        """It works again."""
        if self._outages.pop(server, None):
            self._progress = time.monotonic()

    def alive(self) -> tuple[bool, str]:
        """Whether restarting this process would help, and why."""
        now = time.monotonic()
        if now - self._beat > self._stuck_loop_seconds:
            return False, f"the loop has not come round for {now - self._beat:.0f} s"
        seconds = self._stuck_for()
        if seconds and not self._probes():  # a store that is away is no reason for a restart
            return False, f"{self._lag} records wait and nothing was stored for {seconds:.0f} s"
        return True, "ok"

    def ready(self) -> tuple[bool, str]:
        """Whether it can do its work now, and what is in the way."""
        problems = self._probes() | self._outages
        if problems:
            return False, "; ".join(f"{server}: {error}" for server, error in sorted(problems.items()))
        return (True, "ok") if self._assigned else (False, "not started")
