"""Picture hosts that are away while a night is planned or drawn, on real Postgres and S3.

The model is a test double.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from generator.nightly.image_hosts import HostOutage
from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.run import Interrupted
from generator.storage.postgres import connect
from schemas.settings import Settings
from schemas.tables import Item, NightRun
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, build, night
from tests.support.picture_host import PictureHost
from tests.support.schedule_world import until

pytestmark = [pytest.mark.integration, pytest.mark.faults]
TOMORROW = date(2026, 3, 2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.nightly.image_hosts.FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr("generator.nightly.image_hosts.LONGEST_WAIT_SECONDS", 0.2)


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with PictureHost() as made:
        yield made


@pytest.fixture
def served(settings: Settings, host: PictureHost, tmp_path: Path) -> Settings:
    """A catalogue of which all pictures are on the host."""
    build(settings, tmp_path / "art", users=3, targets=2)
    for path in (tmp_path / "art").iterdir():
        host.pictures[f"/{path.name}"] = path.read_bytes()
    engine = connect(settings.database)
    with Session(engine) as session, session.begin():
        for item in session.scalars(select(Item)):
            item.image_uri = host.url(f"/{item.item_id}.png")
    engine.dispose()
    data = settings.model_dump()
    data["state_dir"] = tmp_path / "state"
    data["night"] |= {"outage_seconds": 0.5, "image_timeout_seconds": 2.0}
    data["images"] |= {"allowed_networks": ("127.0.0.0/8",), "fresh_seconds": 0.0, "attempts": 1}
    return Settings.model_validate(data)


def runs(settings: Settings) -> dict[date, str]:
    engine = connect(settings.database)
    with Session(engine) as session:
        found = {run.logical_date: run.status for run in session.scalars(select(NightRun))}
    engine.dispose()
    return found


def skips(settings: Settings, run_id: str) -> dict[str, int]:
    engine = connect(settings.database)
    found = Ledger(engine).count_skips(run_id)
    engine.dispose()
    return found


def test_a_host_that_was_never_seen_and_is_away_publishes_no_empty_night(served: Settings, host: PictureHost) -> None:
    """Fault 20 (F4): away from the start."""
    host.down = True
    with pytest.raises(HostOutage, match=f"127.0.0.1:{host.port}"):
        night(served).run(Scope())
    assert runs(served) == {}
    host.down = False
    model = FakePigeon()
    night(served, model).run(Scope())
    assert runs(served) == {NIGHT: "published"}
    assert len(model.answered) == 6


def test_a_host_that_is_away_tomorrow_redraws_nothing_tomorrow_nor_the_day_after(
    served: Settings, host: PictureHost
) -> None:
    """Fault 20 (F4): history pictures stay the same ones."""
    night(served).run(Scope())
    for day, down in ((TOMORROW, True), (date(2026, 3, 3), False)):
        host.down = down
        model = FakePigeon()
        night(served, model, on=day).run(Scope())
        assert model.answered == []
        assert skips(served, f"night-{day:%Y%m%d}").get("unreadable image") is None
    host.down = False


def test_a_stopped_night_waits_for_no_picture_host_and_keeps_its_tasks(served: Settings, host: PictureHost) -> None:
    """Fault 20: the plan knows the pictures, but nobody has their bytes when they are needed."""
    patient = served.model_copy(update={"night": served.night.model_copy(update={"outage_seconds": 3600.0})})
    night(patient).dry_run(Scope())
    shutil.rmtree(served.state_dir / "cache" / "pictures")
    host.down = True
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(Interrupted, match="0 of 6 tasks finished and kept"):
        night(patient, FakePigeon()).run(Scope())
    engine = connect(served.database)
    assert Ledger(engine).count_tasks("night-20260301") == {"pending": 6}
    engine.dispose()
    host.down = False
    model = FakePigeon()
    night(served, model).resume()
    assert len(model.answered) == 6


def test_a_night_that_has_its_pictures_is_drawn_without_their_host(served: Settings, host: PictureHost) -> None:
    """Fault 20: away after the plan."""
    plan = night(served)
    plan.dry_run(Scope())
    host.down = True
    model = FakePigeon()
    night(served, model).run(Scope())
    assert len(model.answered) == 6
    assert runs(served) == {NIGHT: "published"}


def test_a_host_that_goes_away_mid_plan_and_stays_away_leaves_no_plan(served: Settings, host: PictureHost) -> None:
    """Fault 20: away after the fourth picture, for good."""
    host.down_after = 4
    with pytest.raises(HostOutage, match=f"127.0.0.1:{host.port}"):
        night(served).run(Scope())
    assert runs(served) == {}
    host.down_after, host.down = math.inf, False
    model = FakePigeon()
    night(served, model).run(Scope())
    assert runs(served) == {NIGHT: "published"}
    assert len(model.answered) == 6
    assert skips(served, f"night-{NIGHT:%Y%m%d}") == {}


def test_a_host_that_is_away_mid_plan_for_a_while_costs_time_only(served: Settings, host: PictureHost) -> None:
    """Fault 20: away after the fourth picture, and back within the patience of a night."""
    host.down_after = 4
    patient = served.model_copy(update={"night": served.night.model_copy(update={"outage_seconds": 60.0})})

    def back() -> None:
        until(lambda: host.down)
        host.down_after, host.down = math.inf, False

    watcher = threading.Thread(target=back)
    watcher.start()
    model = FakePigeon()
    night(patient, model).run(Scope())
    watcher.join()
    assert len(model.answered) == 6
    assert skips(served, f"night-{NIGHT:%Y%m%d}") == {}
