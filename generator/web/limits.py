"""Requests per second of each client: bursts of a few seconds pass, more is told to wait."""

from __future__ import annotations

import math
import time
from collections import OrderedDict

BURST_SECONDS = 3.0
"""Seconds whose requests may come at once."""
MOST_CLIENTS = 50_000
"""Clients that are remembered; the one that asked longest ago goes first, which by then has its whole burst again."""


class Limit:
    """One bucket for each client. Used from one thread, the server's loop."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._burst = max(1.0, per_second * BURST_SECONDS)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, client: str, now: float | None = None) -> int:
        """0 when a request of this client may go on, else seconds until one may."""
        now = time.monotonic() if now is None else now
        left, at = self._buckets.get(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        allowed = left >= 1
        self._buckets[client] = (left - 1 if allowed else left, now)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0 if allowed else math.ceil((1 - left) / self._rate)
