"""Postgres, S3 and Kafka go away in the middle of a night; the model is a test double."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, make_url, select, text

from deploy.local.stack import Stack
from generator.nightly import runs
from generator.nightly.announce import Announcer
from generator.nightly.ledger import Ledger
from generator.nightly.plan import Scope
from generator.nightly.run import find_open
from generator.storage.lease import lead
from generator.storage.postgres import connect
from migrations import database
from schemas import faultpoints
from schemas.errors import LockHeld, ServerUnavailable
from schemas.events import PosterPublished
from schemas.settings import DatabaseSettings, Settings, load_settings
from schemas.tables import NightTask
from tests.support.fake_pigeon import FakePigeon
from tests.support.night_world import NIGHT, Announcements, build, night, reader
from tests.support.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.integration, pytest.mark.faults]
TOMORROW = date(2026, 3, 2)


@pytest.fixture(autouse=True)
def _no_handler() -> Iterator[None]:
    yield
    faultpoints.handler = None


@pytest.fixture(scope="module")
def own_postgres(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A Postgres that may be ill-treated; its supervisor starts it again when it dies."""
    servers = Stack(tmp_path_factory.mktemp("postgres"))
    servers.up(services=("postgres",), tied=True)
    yield servers
    servers.down(purge=True)


@pytest.fixture
def restarted(settings: Settings, own_postgres: Stack) -> Settings:
    """`settings` on a database of the Postgres that is ill-treated."""
    url = make_url(load_settings(state_dir=own_postgres.state.path).database.url.get_secret_value())
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS night"))
        connection.execute(text("CREATE DATABASE night"))
    engine.dispose()
    own = DatabaseSettings(url=SecretStr(url.set(database="night").render_as_string(hide_password=False)))
    database.upgrade(own)
    return settings.model_copy(update={"database": own})


def test_postgres_restarted_mid_night_costs_time_only(restarted: Settings, own_postgres: Stack, tmp_path: Path) -> None:
    """Fault 10: Postgres restarts at once while tasks are drawn; the lease is held afterwards."""
    build(restarted, tmp_path / "art", users=4, targets=2)
    model, restarts = FakePigeon(), list[int]()
    refused: list[str] = []
    finished = itertools.count()  # tasks finish in two threads

    def restart() -> None:
        (pid,) = [server.pid for server in own_postgres.status() if server.name == "postgres" and server.pid]
        restarts.append(pid)
        os.kill(pid, signal.SIGQUIT)

    def handler(reached: str) -> None:
        if reached == "finished" and next(finished) == 0:
            restart()
        if reached == "judged":
            engine = connect(restarted.database)
            with pytest.raises(LockHeld) as held, lead(engine, "night"):
                pass
            refused.append(str(held.value))
            engine.dispose()

    faultpoints.handler = handler
    night(restarted, model).run(Scope())
    assert len(restarts) == len(refused) == 1
    assert len(model.answered) == 8, "what was drawn is not drawn again"
    assert len(reader(restarted).rows()) == 16


def test_postgres_away_at_each_step_costs_time_only(settings: Settings, tmp_path: Path) -> None:
    """Fault 13: Postgres goes for a second after each step from the plan to the announcement."""
    url = make_url(settings.database.url.get_secret_value())
    assert url.host
    assert url.port
    build(settings, tmp_path / "art", users=2, targets=1)
    points = ["planned", "judged", "manifest stored", "pointer flipped", "published", "announced"]
    announced = Announcements()
    with TcpProxy(url.host, url.port) as proxy:
        near = url.set(port=proxy.port).render_as_string(hide_password=False)
        database = settings.database.model_copy(update={"url": SecretStr(near)})

        def handler(reached: str) -> None:
            if reached in points:
                points.remove(reached)
                proxy.cut()
                threading.Timer(1.0, proxy.mend).start()  # the length of the fault

        faultpoints.handler = handler
        night(settings.model_copy(update={"database": database}), announcements=announced).run(Scope())
    assert points == []
    rows = reader(settings).rows().to_pylist()
    assert len(rows) == 4
    # Its mark was lost with the last outage, or not: an event may come twice, and none is missing.
    assert {event.poster_id for event in announced.events} == {row["poster_id"] for row in rows}


@pytest.fixture
def far(settings: Settings) -> Iterator[tuple[Settings, TcpProxy]]:
    """S3 behind a proxy, asked once per call; an outage of 2 s ends the night."""
    address = make_url(settings.s3.endpoint_url or "")
    assert address.host
    assert address.port
    with TcpProxy(address.host, address.port) as proxy:
        s3 = settings.s3.model_copy(
            update={"endpoint_url": f"http://127.0.0.1:{proxy.port}", "max_attempts": 1, "connect_timeout_seconds": 2.0}
        )
        yield settings.model_copy(update={"s3": s3}), proxy


def test_s3_away_mid_night_costs_time_only(far: tuple[Settings, TcpProxy], tmp_path: Path) -> None:
    """Fault 12: S3 is away while posters are stored, and again before the pointer is flipped."""
    settings, proxy = far
    build(settings, tmp_path / "art", users=3, targets=2)
    points = ["intended", "manifest stored"]
    model = FakePigeon()

    def handler(reached: str) -> None:
        if reached in points:
            points.remove(reached)
            proxy.cut()
            threading.Timer(2.0, proxy.mend).start()  # the length of the fault

    faultpoints.handler = handler
    night(settings, model).run(Scope())
    assert points == []
    assert len(model.answered) == 6
    assert len(reader(settings).rows()) == 12


def test_s3_away_for_too_long_ends_the_night_and_resume_continues(
    far: tuple[Settings, TcpProxy], tmp_path: Path
) -> None:
    """Fault 12: S3 does not come back within night.outage_seconds."""
    settings, proxy = far
    build(settings, tmp_path / "art", users=2, targets=1)
    impatient = settings.model_copy(update={"night": settings.night.model_copy(update={"outage_seconds": 1.0})})

    def handler(reached: str) -> None:
        if reached == "intended":
            proxy.cut()

    faultpoints.handler = handler
    with pytest.raises(ServerUnavailable, match=r"setting s3\.endpoint_url"):
        night(impatient).run(Scope())
    proxy.mend()
    faultpoints.handler = None
    with Ledger(connect(settings.database)).reading() as session:
        assert "pending" in set(session.scalars(select(NightTask.status)))
    assert find_open(settings) == (NIGHT, "night-20260301")
    night(settings).resume()
    assert len(reader(settings).rows()) == 4


class AwayAnnouncer:
    """Test double: a broker that does not answer."""

    def send(self, events: Iterable[PosterPublished]) -> None:
        raise ServerUnavailable("Kafka 127.0.0.1:9092: no brokers")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("by", ["the same night", "resume", "the next night"])
def test_kafka_away_after_the_flip_is_caught_up(settings: Settings, tmp_path: Path, by: str) -> None:
    """Fault 13: the night is published, and its events wait for Kafka (F25)."""
    build(settings, tmp_path / "art", users=2, targets=1)
    with pytest.raises(ServerUnavailable, match="published, but not announced"):
        night(settings, announcements=AwayAnnouncer()).run(Scope())
    run = Ledger(connect(settings.database)).get_run(NIGHT)
    assert run
    assert run.status == "published"
    posters = {row["poster_id"] for row in reader(settings).rows().to_pylist()}
    assert find_open(settings) == (NIGHT, "night-20260301"), "resume without a date finds it"
    echoed: list[str] = []
    announced = Announcements()

    def again(announcer: Announcer) -> None:
        if by == "the same night":
            night(settings, announcements=announcer, echo=echoed.append).run(Scope())
        elif by == "resume":
            night(settings, announcements=announcer, echo=echoed.append).resume("night-20260301")
        else:
            night(settings, announcements=announcer, on=TOMORROW, echo=echoed.append).run(Scope())

    if by == "the next night":  # which does not wait for Kafka
        again(AwayAnnouncer())
        assert any("announcements of earlier runs wait" in line for line in echoed)
    again(announced)
    assert {event.poster_id for event in announced.events} == posters
    assert len(announced.events) == len(posters)
    assert any("caught up" in line for line in echoed)
    assert runs.read_unannounced_runs(Ledger(connect(settings.database)), TOMORROW) == []
