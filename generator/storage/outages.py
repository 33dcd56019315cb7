"""Outages of Postgres and S3, waited out: what failed is done again until the server is back."""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from generator.storage.objects import Entry, Store, Stored
from schemas.errors import ServerUnavailable
from schemas.settings_s3 import S3Settings

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client
    from types_boto3_s3.type_defs import HeadObjectOutputTypeDef

T = TypeVar("T")

log = logging.getLogger("pigeon.storage")

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 10.0


class OutageRetry:
    """Calls work that may be done twice, with growing waits while it raises ServerUnavailable.

    Safe to use from several threads.

    Args:
        outage_seconds: time that one call waits for its server; 0 = not at all.
        stopping: when set, nobody waits any longer.
    """

    def __init__(self, outage_seconds: float = 0.0, stopping: threading.Event | None = None) -> None:
        self._outage_seconds = outage_seconds
        self._stopping = stopping or threading.Event()
        self.after_outage: Callable[[], None] = lambda: None
        """Called after each call that succeeded at a later try."""
        self.outages = 0
        """Calls that met an outage."""

    def call(self, work: Callable[[], T]) -> T:
        """The result of `work`.

        Raises:
            ServerUnavailable: its server has been away for `outage_seconds`, or the wait was stopped.
        """
        wait = FIRST_WAIT_SECONDS
        away_since: float | None = None
        while True:
            try:
                result = work()
            except ServerUnavailable as error:
                now = time.monotonic()
                if away_since is None:
                    away_since = now
                    self.outages += 1
                    if self._outage_seconds:
                        log.warning("%s; waiting for at most %.0f s", error, self._outage_seconds)
                left = away_since + self._outage_seconds - now
                if left <= 0 or self._stopping.wait(min(left, wait * random.uniform(0.5, 1))):
                    raise
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)
            else:
                if away_since is not None:
                    with contextlib.suppress(ServerUnavailable):  # away again: the next call finds out
                        self.after_outage()
                return result


class PatientStore(Store):
    """A store whose reads and writes wait outages out; doing one twice has the same effect."""

    def __init__(self, settings: S3Settings, outages: OutageRetry, s3: S3Client | None = None) -> None:
        super().__init__(settings, s3)
        self._outages = outages

    def get(self, key: str, *, bucket: str | None = None) -> Stored | None:
        """As `Store.get`."""
        return self._outages.call(lambda: super(PatientStore, self).get(key, bucket=bucket))

    def _head(self, key: str) -> HeadObjectOutputTypeDef | None:
        return self._outages.call(lambda: super(PatientStore, self)._head(key))

    def _probe(self, key: str, **condition: Any) -> str | None:
        return self._outages.call(lambda: super(PatientStore, self)._probe(key, **condition))

    def _page(self, prefix: str, after: str) -> tuple[list[Entry], bool]:
        return self._outages.call(lambda: super(PatientStore, self)._page(prefix, after))

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        self._outages.call(lambda: super(PatientStore, self).delete(key))

    def _put(self, key: str, body: bytes | BinaryIO, content_type: str, **condition: Any) -> bool:
        return self._outages.call(lambda: super(PatientStore, self)._put(key, body, content_type, **condition))
