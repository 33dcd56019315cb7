"""Fault 11 with two Triton servers, on real Postgres and S3.

The servers are test doubles that speak its protocol.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.run import Night, NightContext
from generator.nightly.status import status_of, words
from generator.serving.client import TritonPigeon
from generator.storage.postgres import connect
from schemas.settings import Settings
from schemas.tables import NightRun
from tests.support.fake_triton import servers
from tests.support.night_world import NIGHT, Announcements, build, reader

pytestmark = [pytest.mark.integration, pytest.mark.faults]


def test_a_server_killed_in_the_middle_of_a_night_fails_no_task(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fault 11: its requests are asked of the other server, and it is named."""
    caplog.set_level(logging.WARNING)
    build(settings, tmp_path / "art", users=24, targets=2)
    engine = connect(settings.database)
    with servers(2, seconds=0.2) as started:
        (first, dying), (second, _) = started
        triton = settings.triton.model_copy(
            update={"url": f"{first},{second}", "max_in_flight": 4, "model_repository": tmp_path / "none"}
        )
        served = settings.model_copy(update={"triton": triton})
        over = threading.Event()

        def kill_in_the_middle() -> None:
            while not over.wait(0.02):
                if Ledger(engine).count_tasks("night-20260301").get("done", 0) >= 1:
                    dying.kill()
                    return

        killer = threading.Thread(target=kill_in_the_middle)
        killer.start()
        with TritonPigeon(served) as model:
            Night(NightContext(served, lambda: model, Announcements, lambda line: None), NIGHT).run(Scope())
        over.set()
        killer.join()
        assert dying.wait(5) != 0
    ledger = Ledger(engine)
    assert ledger.count_tasks("night-20260301") == {"done": 48}
    assert len({(row["user_id"], row["item_id"]) for row in reader(settings).rows().to_pylist()}) == 48
    with Session(engine) as session:
        run = session.get_one(NightRun, "night-20260301")
        states = {server["address"]: server for server in run.figures["last_session"]["servers"]}
    assert states[first]["requests"] > 0
    assert states[first]["failures"] > 0
    assert states[first]["problem"]
    assert states[second]["problem"] == ""
    assert f"Triton at {first} is not used" in caplog.text
    shown = words(status_of(settings, None))
    assert f"triton   {first}: " in shown
    assert (
        f"triton   {second}: {states[second]['requests']} requests answered, {states[second]['failures']} not" in shown
    )
    engine.dispose()
