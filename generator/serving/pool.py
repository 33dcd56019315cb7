"""`ServerPool`: several Triton servers that serve the same models, and which of them is asked.

A request goes to the server with the fewest requests under way. One that fails goes to another server at once, within its
deadline; the server that failed is left alone for a growing while, and is looked at before it is asked again. A server is
looked at now and then anyway: it is used only while its models are ready, it serves what the others serve (weights, tokenizer,
decoder) and, where a request names an adapter, has that adapter. With a single server nothing of this happens: it is asked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from generator.serving.api import InferenceCorrupt, InferenceError, InferenceUnavailable, ServerState
from generator.serving.server import ServedParts, TritonServer
from schemas.errors import ModelError, PigeonError, ServerUnavailable

T = TypeVar("T")

log = logging.getLogger("pigeon.serving")

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 60.0
LOOK_EVERY_SECONDS = 60.0
"""Time after which a server that works is looked at again."""
ADAPTER_LOOK_SECONDS = 2.0
"""The same, where a request needs an adapter that the server did not have."""
PERSONALIZER = "personalizer"


@dataclass(eq=False)
class Member:
    """A server and what is known of it; changed under the pool's lock."""

    server: TritonServer
    outstanding: int = 0
    requests: int = 0
    """Requests that it answered."""
    failures: int = 0
    looked_at: float | None = None
    looking: bool = False
    """Somebody looks at it now."""
    away_until: float = 0.0
    backoff: float = 0.0
    """Seconds; 0 while it works."""
    problem: str = "not looked at yet"
    """Why it is not used; empty while it is."""
    adapters: frozenset[int] = frozenset()

    def fits(self, adapter: int | None) -> bool:
        """Whether it can be asked, as far as is known."""
        return not self.problem and (adapter is None or adapter in self.adapters)

    def is_due(self, adapter: int | None, now: float) -> bool:
        """Whether to look at it before it is asked."""
        if self.looked_at is None:
            return True
        if self.problem:
            return now >= self.away_until
        return now - self.looked_at >= (LOOK_EVERY_SECONDS if self.fits(adapter) else ADAPTER_LOOK_SECONDS)


class ServerPool:
    """The servers of one process; safe to use from several threads.

    `expected` names what all of them should serve, or None: then it is what most of those serve that answer first.
    """

    def __init__(self, servers: Sequence[TritonServer], expected: Callable[[], ServedParts | None]) -> None:
        self.members = tuple(Member(server) for server in servers)
        self._read_expected = expected
        self._expected: ServedParts | None = None
        self._changed = threading.Condition()
        self._expecting = threading.Lock()
        if self.is_single:
            self.members[0].problem = ""

    @property
    def is_single(self) -> bool:
        """Whether there is nothing to choose from."""
        return len(self.members) == 1

    def states(self) -> list[ServerState]:
        """Each server, with what it has answered."""
        with self._changed:
            return [ServerState(m.server.address, m.requests, m.failures, m.problem) for m in self.members]

    # --- requests ---

    def call(
        self, work: Callable[[TritonServer, float], T], *, timeout_seconds: float, adapter: int | None = None
    ) -> T:
        """The result of `work` on one of the servers, which is given the seconds that are left.

        Raises:
            InferenceError: what the last server said; Unavailable when none can be asked.
        """
        ends = time.monotonic() + timeout_seconds
        tried: list[Member] = []
        corrupt: list[tuple[Member, InferenceError]] = []
        failure: InferenceError | None = None
        left = timeout_seconds
        while left > 0 and (member := self._take(adapter, tried)) is not None:
            tried.append(member)
            try:
                result = work(member.server, left)
            except InferenceUnavailable as error:
                failure = error
                self._failed(member, error)
            except InferenceCorrupt as error:
                failure = error
                corrupt.append((member, error))
            else:
                self._answered(member)
                for other, answered in corrupt:  # it was not the request: another server answers it
                    self._failed(other, answered)
                return result
            finally:
                with self._changed:
                    member.outstanding -= 1
            left = ends - time.monotonic()
        raise failure or InferenceUnavailable(f"no Triton server can be asked: {self.problems(adapter)}")

    def problems(self, adapter: int | None = None) -> str:
        """What keeps the servers from being used."""
        with self._changed:
            return "; ".join(
                f"{m.server.address}: {m.problem or (f'has no adapter {adapter}' if not m.fits(adapter) else 'failed')}"
                for m in self.members
            )

    def _take(self, adapter: int | None, tried: Collection[Member]) -> Member | None:
        """The server to ask next, its request counted; None when there is none left."""
        looked: list[Member] = []
        while True:
            with self._changed:
                member, look = self._next(adapter, tried, looked)
                if member is None:
                    if not any(m.looking for m in self.members if m not in tried):
                        return None
                    self._changed.wait()  # what another thread finds out is for us, too
                    continue
                if not look:
                    member.outstanding += 1
                    return member
                member.looking = True
            looked.append(member)
            self._look(member)

    def _next(
        self, adapter: int | None, tried: Collection[Member], looked: Collection[Member]
    ) -> tuple[Member | None, bool]:
        """A server, and whether to look at it before it is asked.

        What is due, else the least busy one; where nobody else is there, one that is left alone. `looked`: servers that were
        looked at for this request.
        """
        left = [m for m in self.members if m not in tried and not m.looking]
        if self.is_single:
            return (left[0], False) if left else (None, False)
        now = time.monotonic()
        new = [m for m in left if m not in looked]
        if due := [m for m in new if m.is_due(adapter, now)]:
            return due[0], True
        if usable := [m for m in left if m.fits(adapter)]:
            return min(usable, key=lambda m: (m.outstanding, m.requests)), False
        alone = [m for m in new if m.problem]
        return (min(alone, key=lambda m: m.away_until), True) if alone else (None, False)

    def _answered(self, member: Member) -> None:
        with self._changed:
            member.requests += 1
            member.backoff = 0.0

    def _failed(self, member: Member, error: InferenceError) -> None:
        with self._changed:
            member.failures += 1
        if not self.is_single:
            self._put_away(member, str(error))

    def _put_away(self, member: Member, problem: str) -> None:
        with self._changed:
            known, member.problem = member.problem, problem
            member.backoff = min(LONGEST_BACKOFF_SECONDS, 2 * member.backoff or FIRST_BACKOFF_SECONDS)
            member.away_until = time.monotonic() + member.backoff
        if known != problem:
            log.warning("Triton at %s is not used: %s", member.server.address, problem)

    # --- looking ---

    def look(self) -> list[Member]:
        """Look at every server now; those that are used.

        Raises:
            ServerUnavailable, ModelError: there is none.
        """
        errors = [self._look(member) for member in self.members]
        usable = [member for member in self.members if not member.problem]
        if not usable:
            raise next((e for e in errors if isinstance(e, ModelError)), None) or ServerUnavailable(
                f"no Triton server can be asked: {self.problems()}"
            )
        return usable

    def look_again(self, member: Member) -> None:
        """Have a server looked at before it is asked next: what it serves was changed."""
        with self._changed:
            member.looked_at = None

    def expected(self) -> ServedParts:
        """What the servers should serve.

        Raises:
            ServerUnavailable, ModelError: no server says.
        """
        with self._expecting:
            if self._expected is None:
                self._expected = self._read_expected() or self._most_common()
            return self._expected

    def _most_common(self) -> ServedParts:
        found: Counter[ServedParts] = Counter()
        errors: list[PigeonError] = []
        for member in self.members:
            try:
                found[member.server.parts()] += 1
            except (ServerUnavailable, ModelError) as error:
                errors.append(error)
        if not found:
            raise errors[0]
        return found.most_common(1)[0][0]  # of equally many, the first server's

    def _look(self, member: Member) -> PigeonError | None:
        """Find out whether a server can be used; the reason when it cannot."""
        adapters: frozenset[int] = frozenset()
        failure: PigeonError | None = None
        try:
            adapters = self._inspect(member.server)
        except (ServerUnavailable, ModelError) as error:
            failure = error
        except BaseException:
            with self._changed:
                member.looking = False
                self._changed.notify_all()
            raise
        with self._changed:
            member.looking, member.looked_at = False, time.monotonic()
            if failure is not None:
                self._put_away(member, str(failure))
            else:
                if member.backoff and member.problem:
                    log.warning("Triton at %s is used again", member.server.address)
                member.adapters, member.problem = adapters, ""
            self._changed.notify_all()
        return failure

    def _inspect(self, server: TritonServer) -> frozenset[int]:
        """Adapters of a server that can be used.

        Raises:
            ServerUnavailable: it is away.
            ModelError: it serves something else, or not all of it.
        """
        if unready := server.unready():
            raise ModelError(
                f"Triton at {server.address}: {', '.join(unready)} not loaded; `pigeon models load` loads what is missing"
            )
        expected = self.expected()
        if others := expected.others(server.parts()):
            raise ModelError(
                f"Triton at {server.address}: serves another {' and '.join(others)} than the others or the repository; give "
                "it the same model repository and run `pigeon models load`"
            )
        return server.loaded_versions(PERSONALIZER)
