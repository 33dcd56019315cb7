"""Which picture hosts are away: an outage is waited out once, not once for each of its pictures."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from schemas.errors import ServerUnavailable
from schemas.fetched import HostUnavailable
from schemas.images import ImageProblem

T = TypeVar("T")

FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 10.0
OWN_ATTEMPTS = 3
"""Failures of one address, while its host answers for others, after which the trouble is the address's own."""

ENOUGH_FAILURES = 8
"""Failures in a row after which a host is asked for no picture that can be had otherwise."""

TRY_AGAIN_SECONDS = 30.0
"""Seconds after which a host that is not asked any more is asked by one caller again."""


class AddressInTrouble(HostUnavailable):
    """The host answers for others, but fails for this address again and again.

    A broken picture, or bad luck.
    """


class HostOutage(ServerUnavailable):
    """Hosts of many pictures that were never seen are away for longer than the night waits."""


@dataclass(frozen=True)
class Outage:
    """What an outage of a host costs this night: addresses."""

    host: str
    reason: str
    known: int
    """Addresses that are taken as they were seen last."""
    unseen: int
    """Addresses that were never seen: nothing is known of their pictures."""


@dataclass
class _Host:
    answers: int = 0
    failures: int = 0
    """Since the last answer."""
    away_since: float | None = None
    given_up: bool = False
    asked_at: float = 0.0
    reason: str = ""
    known: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)


class ImageHosts:
    """Remembers who answers. Safe to use from several threads; `stopping` ends every wait."""

    def __init__(self, outage_seconds: float, stopping: threading.Event) -> None:
        self._outage_seconds = outage_seconds
        self.stopping = stopping
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    def ask(self, host: str, work: Callable[[], T], *, patient: bool = False) -> T:
        """The result of `work`, which asks the host once.

        A host that has failed often enough is mostly not asked.

        Raises:
            HostUnavailable: it is away.
            ImageProblem: as `work`.
        """
        with self._lock:
            state = self._hosts.setdefault(host, _Host())
            now = time.monotonic()
            if state.given_up or (state.failures >= ENOUGH_FAILURES and not patient):
                if now - state.asked_at < TRY_AGAIN_SECONDS:
                    raise HostUnavailable(host, state.reason)
                state.asked_at = now
        try:
            result = work()
        except HostUnavailable as error:
            self._failed(state, error)
            raise
        except ImageProblem:
            self._answered(state)
            raise
        self._answered(state)
        return result

    def ask_patiently(self, host: str, work: Callable[[], T]) -> T:
        """As `ask`, repeated until the host has been away for night.outage_seconds.

        It also ends when the host answers for others only.

        Raises:
            HostUnavailable: it is away still.
            AddressInTrouble: only this question fails.
            ImageProblem: as `work`.
        """
        began = time.monotonic()
        wait = FIRST_WAIT_SECONDS
        answers: int | None = None
        attempts = 0
        while True:
            try:
                return self.ask(host, work, patient=True)
            except HostUnavailable as error:
                with self._lock:
                    state = self._hosts[host]
                    if answers is not None and state.answers > answers:
                        attempts += 1
                    answers = state.answers if answers is None else answers
                    since = state.away_since if state.away_since is not None else began
                    left = min(since, began) + self._outage_seconds - time.monotonic()
                    if attempts >= OWN_ATTEMPTS or (attempts and left <= 0):
                        raise AddressInTrouble(host, error.reason) from error
                    if left <= 0:
                        raise
                pause = max(wait * random.uniform(0.5, 1), error.retry_after or 0.0)
                if self.stopping.wait(min(pause, left)):
                    raise
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    def count(self, host: str, uri: str, *, known: bool) -> None:
        """Note an address that could not be asked about."""
        with self._lock:
            state = self._hosts.setdefault(host, _Host())
            (state.known if known else state.unseen).add(uri)

    def outages(self) -> list[Outage]:
        """Hosts that were away, most unseen addresses first."""
        with self._lock:
            found = [
                Outage(host, state.reason, len(state.known), len(state.unseen))
                for host, state in self._hosts.items()
                if state.known or state.unseen
            ]
        return sorted(found, key=lambda outage: (-outage.unseen, -outage.known, outage.host))

    def _answered(self, state: _Host) -> None:
        with self._lock:
            state.answers += 1
            state.failures = 0
            state.away_since = None
            state.given_up = False

    def _failed(self, state: _Host, error: HostUnavailable) -> None:
        with self._lock:
            state.failures += 1
            state.reason = error.reason
            state.asked_at = time.monotonic()
            if state.away_since is None:
                state.away_since = state.asked_at
            state.given_up = state.asked_at - state.away_since >= self._outage_seconds
