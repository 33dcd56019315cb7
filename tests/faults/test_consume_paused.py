"""FLAWS F20: the lag while an outage keeps the consumer from reading.

Not on Tansu, which does not tell where a log ends.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest

from consumers import metrics
from consumers.loop.summary import Summary
from schemas import faultpoints
from schemas.settings import Settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import SEED, Ledger, connected, consume, events

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.parametrize("quick", BROKERS[1:], indirect=True),
]
TRIES = 30
"""Failed writes after which the outage ends, whatever was seen."""


@pytest.fixture(autouse=True)
def at_points() -> Iterator[None]:
    yield
    faultpoints.handler = None


def test_the_lag_grows_while_nothing_is_read(quick: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside fault 4, FLAWS F20: who fetches learns the logs' ends, and in an outage nobody does."""
    monkeypatch.setattr("consumers.loop.log_ends.ASK_SECONDS", 0.1)
    chance = random.Random(f"{SEED} lag")
    ledger = Ledger(quick)
    ledger.send(events(chance, 60))
    locked, more, ended = threading.Event(), threading.Event(), threading.Event()
    failed = metrics.OUTAGES.labels("database")
    before = failed._value.get()
    lags: list[int] = []
    with connected(quick) as cursor:

        def begin(reached: str) -> None:
            if reached == "staged" and not locked.is_set():
                locked.set()
                cursor.execute("BEGIN")
                cursor.execute("LOCK TABLE consumer_offsets IN ACCESS EXCLUSIVE MODE")

        def watch(summary: Summary, lag: int) -> None:
            lags.append(lag)
            tries = failed._value.get() - before
            if tries and not more.is_set():
                more.set()
                ledger.send(events(chance, 100))
            elif more.is_set() and not ended.is_set() and (lag >= 100 or tries > TRIES):
                ended.set()
                cursor.execute("ROLLBACK")

        faultpoints.handler = begin
        consume(quick, progress=watch)
    assert ended.is_set()
    assert 100 <= max(lags) <= 160
    assert lags[-1] == 0
    ledger.check_end()
