"""Liveness proves progress, readiness names what is in the way; Postgres being down is no reason for a restart."""

from __future__ import annotations

import pytest

from consumers import health
from consumers.health import Health


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1_000.0]
    monkeypatch.setattr(health.time, "monotonic", lambda: now[0])
    return now


def test_a_loop_that_stands_still_is_dead(clock: list[float]):
    state = Health()
    state.beat(0)
    clock[0] += health.STUCK_LOOP_SECONDS + 1
    assert not state.alive()[0]
    state.beat(0)
    assert state.alive() == (True, "ok")


def test_work_that_waits_while_nothing_is_stored_is_dead(clock: list[float]):
    state = Health()
    for _ in range(20):
        clock[0] += 30
        state.beat(7)
    assert state.alive() == (False, "7 records wait and nothing was stored for 600 s")
    state.progressed()
    assert state.alive()[0]


def test_waiting_out_an_outage_is_alive_and_not_ready(clock: list[float]):
    state = Health()
    assert state.ready() == (False, "not started")
    state.beat(0)
    assert state.ready() == (True, "ok")
    assert state.outage("database", "read-only")
    assert not state.outage("database", "still read-only"), "news only once"
    for _ in range(20):
        clock[0] += 30
        state.beat(7)
    assert state.alive()[0]
    assert state.ready() == (False, "database: still read-only")
    state.recovered("database")
    assert state.ready()[0]
    assert state.alive()[0], "the wait does not count against it afterwards"
