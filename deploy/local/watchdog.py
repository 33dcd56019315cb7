"""Restart limits for servers that end, and repair of Triton's stubs, whose end Triton hides."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.local.triton import Triton
from deploy.local.triton_control import ModelState
from schemas.errors import ModelError, ServerUnavailable


@dataclass
class RestartLimit:
    """At most `count` restarts within `seconds`: a server that cannot stay up is not started for ever."""

    count: int = 3
    seconds: float = 300.0
    _times: deque[float] = field(default_factory=deque)

    def allows(self) -> bool:
        """Count one restart, if there is one left."""
        now = time.monotonic()
        while self._times and now - self._times[0] > self.seconds:
            self._times.popleft()
        if len(self._times) >= self.count:
            return False
        self._times.append(now)
        return True


class StubWatch:
    """Watch for models that are ready although one of their stub processes is dead: they are loaded again.

    A killed stub is never restarted by Triton, every readiness endpoint stays green, and each request that meets it fails
    after a second.
    """

    def __init__(self, triton: Triton, say: Callable[[str], None]) -> None:
        self._triton = triton
        self._say = say
        self._suspected: set[tuple[str, str]] = set()
        self._instances: dict[tuple[str, str], list[str]] = {}
        self._limits: dict[str, RestartLimit] = {}

    def look(self, server_pid: int) -> None:
        """Look once; a model is repaired when two looks in a row find it broken.

        One look may have met a load under way.
        """
        control = self._triton.control
        try:
            ready = [model for model in control.index() if model.state == "READY"]
            live = self._triton.live_instances(server_pid)
            broken = {
                (model.name, model.version)
                for model in ready
                if self._dead(model, live, fresh=(model.name, model.version) in self._suspected)
            }
        except (ServerUnavailable, ModelError):  # starting, stopping or between two loads; the next round sees more
            return
        for name in sorted({name for name, version in broken & self._suspected}):
            self._mend(name)
        self._suspected = broken

    def _dead(self, model: ModelState, live: set[tuple[str, str, str]], *, fresh: bool) -> list[str]:
        key = (model.name, model.version)
        if fresh or key not in self._instances:
            self._instances[key] = self._triton.control.instances(*key)
        return [instance for instance in self._instances[key] if (*key, instance) not in live]

    def _mend(self, name: str) -> None:
        if not self._limits.setdefault(name, RestartLimit(count=5)).allows():
            return
        start = time.monotonic()
        try:
            self._triton.control.unload(name)
            self._triton.control.load(name)
        except (ServerUnavailable, ModelError) as error:
            self._say(f"triton    model {name} had a dead stub and does not load again: {error}")
        else:
            self._say(f"triton    model {name} had a dead stub: loaded again in {time.monotonic() - start:.1f} s")
