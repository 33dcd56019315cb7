"""The consumers' health: liveness is progress, readiness includes the stores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import structlog

from consumers.loop.thread_stacks import Stacks

log = structlog.get_logger("pigeon.consume")

STUCK_LOOP_SECONDS = 60.0
"""Seconds after which a loop that has not come round is stuck."""
STUCK_WORK_SECONDS = 300.0
"""Seconds after which a loop that has work, no outage, and stores nothing is stuck."""


class Health:
    """What the loop last did; written by the loop, read by the HTTP threads."""

    def __init__(
        self,
        probes: Callable[[], dict[str, str]] = dict,
        stacks: Stacks | None = None,
        stuck_loop_seconds: float = STUCK_LOOP_SECONDS,
        stuck_work_seconds: float = STUCK_WORK_SECONDS,
    ) -> None:
        """Start as not assigned.

        Args:
            probes: asks the stores, in the HTTP threads; store -> problem.
            stacks: where the threads' stacks go when nothing moves.
        """
        self._probes = probes
        self._stacks = stacks
        self._stuck_loop_seconds, self._stuck_work_seconds = stuck_loop_seconds, stuck_work_seconds
        self._beat = self._progress = time.monotonic()
        self._lag = 0
        self._assigned = False
        self._outages: dict[str, str] = {}
        self._silent: dict[str, str] = {}
        self._logged_stuck = False

    def beat(self, lag: int) -> None:
        """Note that the loop came round, and its lag in records."""
        self._beat = time.monotonic()
        self._assigned = True
        if not lag:
            self._progress = self._beat
        self._lag = lag
        if self._stacks:
            self._stacks.feed()
        self._log_stuck()

    def _stuck_for(self) -> float:
        """Seconds for which work waits without an outage and nothing is stored; 0 while not too long."""
        seconds = time.monotonic() - self._progress
        stuck = self._lag and not self._outages and seconds > self._stuck_work_seconds
        return seconds if stuck else 0.0

    def _log_stuck(self) -> None:
        """Log it, once each time that it is stuck."""
        seconds = self._stuck_for()
        if seconds and not self._logged_stuck:
            log.error("stuck", waiting_records=self._lag, seconds=round(seconds), stacks="follow")
            if self._stacks:
                self._stacks.dump()
        self._logged_stuck = bool(seconds)

    def note_progress(self) -> None:
        """Note that something became durable."""
        self._progress = time.monotonic()

    def note_outage(self, server: str, error: str) -> bool:
        """Note that a server does not work; True when that is news."""
        news = server not in self._outages
        self._outages[server] = error
        return news

    def note_silent_brokers(self, seconds: Mapping[str, float]) -> None:
        """Note which brokers owe an answer, and for how many seconds; their partitions stand still meanwhile."""
        silent = {
            f"kafka broker {broker}": f"no answer for {waited:.0f} s: waiting for another leader of its partitions"
            for broker, waited in seconds.items()
        }
        if silent and not self._silent:
            log.warning("silent broker", brokers=", ".join(sorted(seconds)), policy="waiting for another leader")
        self._silent = silent

    def note_recovery(self, server: str) -> None:
        """Note that a server works again."""
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
        problems = self._probes() | self._outages | self._silent
        if problems:
            return False, "; ".join(f"{server}: {error}" for server, error in sorted(problems.items()))
        return (True, "ok") if self._assigned else (False, "not started")
