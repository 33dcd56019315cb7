"""What comes out of fetching a picture, from wherever: its bytes, no news, or that its host is away."""

from __future__ import annotations

from dataclasses import dataclass


class HostUnavailable(Exception):
    """A host that pictures come from is away or too busy; the picture itself may be fine."""

    def __init__(self, host: str, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(f"{host}: {reason}")
        self.host = host
        self.reason = reason
        self.retry_after = retry_after
        """Seconds after which the host wants to be asked again; None when it did not say."""


@dataclass(frozen=True)
class Known:
    """What an earlier answer gave to ask with whether the picture has changed."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A picture's bytes, and what to ask with the next time."""

    body: bytes
    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class NotModified:
    """The picture is the one that is known."""
