"""A topic recreated, cut or shortened is noticed and treated by the stated policy, never silently."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumers.kafka import clients
from consumers.loop import ownership
from consumers.loop.ingest import Ingest
from consumers.loop.summary import Summary
from deploy.local.state import StateDir
from schemas.errors import Refused
from schemas.events import INTERACTIONS
from schemas.settings import Settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import SEED, Ledger, NoidaBroker, Victim, changed, consume, events, make_topics, query

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(600)]
WITH_IDS = [BROKERS[0], *BROKERS[2:]]


def again(settings: Settings) -> Settings:
    return changed(settings, "consumer", on_topic_recreated="restart")


def make_anew(settings: Settings) -> None:
    topic = settings.kafka.topic_prefix + INTERACTIONS
    admin = clients.admin(settings.kafka)
    admin.delete_topics([topic])
    for _ in range(100):
        if topic not in clients.topic_ids(admin, [topic]):
            break
        time.sleep(0.1)
    admin.create_topics({topic: {"num_partitions": 4, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()


def state(settings: Settings) -> tuple[object, ...]:
    return (
        query(settings, "SELECT partition, next_offset FROM consumer_offsets ORDER BY 1"),
        query(settings, "SELECT count(*) FROM interactions"),
    )


def test_a_topic_made_anew_stops_the_consumer_or_is_read_from_its_start(quick: Settings):
    """Fault 19: recreated and shorter."""
    chance = random.Random(SEED)
    old, new = events(chance, 60), events(chance, 8)
    Ledger(quick).send(old)
    consume(quick)
    held = state(quick)
    make_anew(quick)
    Ledger(quick).send([*old[:10], *new])
    with pytest.raises(Refused, match="recreated or cut") as refused:
        consume(quick)
    assert refused.value.exit_code == 8
    assert "PIGEON_CONSUMER__ON_TOPIC_RECREATED" in str(refused.value)
    assert state(quick) == held, "nothing was read and no offset moved"
    with Victim(quick, until_idle=0.5) as stops:
        assert stops.ended() == 8
    summary = consume(again(quick))
    assert (summary.records, summary.written.duplicates) == (18, 10)
    assert query(quick, "SELECT count(*), count(DISTINCT event_id) FROM interactions") == [(68, 68)]
    assert consume(quick).records == 0, "from now on the new topic's offsets count"


@pytest.mark.parametrize("quick", WITH_IDS, indirect=True)  # only a topic's id tells it, and noida-db has none
def test_a_topic_made_anew_and_longer_than_before_is_noticed_by_its_id(quick: Settings):
    """Fault 19: recreated and longer."""
    chance = random.Random(SEED)
    Ledger(quick).send(events(chance, 20))
    consume(quick)
    held = state(quick)
    make_anew(quick)
    Ledger(quick).send(events(chance, 80))
    with pytest.raises(Refused, match="another id"):
        consume(quick)
    assert state(quick) == held
    assert consume(again(quick)).records == 80
    assert query(quick, "SELECT count(*) FROM interactions") == [(100,)]


@pytest.mark.parametrize("quick", WITH_IDS, indirect=True)
def test_a_topic_made_anew_under_a_running_consumer_is_noticed(quick: Settings, monkeypatch: pytest.MonkeyPatch):
    """Fault 19: recreated while it is read."""
    monkeypatch.setattr(ownership, "IDENTIFY_SECONDS", 1.0)
    chance = random.Random(SEED)
    Ledger(quick).send(events(chance, 20))
    done: list[int] = []

    def swap(summary: Summary, lag: int) -> None:
        if summary.records == 20 and not done:
            done.append(1)
            make_anew(quick)
            Ledger(quick).send(events(chance, 80))

    with pytest.raises(Refused, match="another id"):
        Ingest(quick, [INTERACTIONS], progress=swap, max_records=1_000).run()
    assert done


def test_an_offset_past_the_end_is_noticed(quick: Settings):
    """Fault 19: our offset is past the end."""
    old = events(random.Random(SEED), 40)
    Ledger(quick).send(old)
    consume(quick)
    query(quick, "UPDATE consumer_offsets SET next_offset = next_offset + 1000 WHERE next_offset > 0")
    with pytest.raises(Refused, match="our offset"):
        consume(quick)
    summary = consume(again(quick))
    assert (summary.records, summary.written.duplicates) == (40, 40)
    assert consume(quick).records == 0


@pytest.fixture
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoidaBroker]:
    """A noida-db of the test's own."""
    made = NoidaBroker(StateDir(tmp_path_factory.mktemp("mortal")))
    yield made
    made.kill()


@pytest.mark.parametrize("quick", ["noida"], indirect=True)
def test_a_log_that_was_restored_from_an_older_backup_is_noticed(quick: Settings, mortal: NoidaBroker, tmp_path: Path):
    """Fault 19: the broker's data is older than ours."""
    own = changed(quick, "kafka", bootstrap_servers=mortal.address)
    make_topics(own)
    chance = random.Random(SEED)
    kept, lost, later = events(chance, 30), events(chance, 30), events(chance, 5)
    data = mortal.server.folder

    def backed_up() -> bool:
        """Copy the data of the dead broker, and say whether the topics are in it."""
        mortal.kill()
        shutil.rmtree(tmp_path / "backup", ignore_errors=True)
        shutil.copytree(data, tmp_path / "backup")
        mortal.start()
        admin = clients.admin(own.kafka)
        found = clients.topic_ids(admin, [own.kafka.topic_prefix + INTERACTIONS])
        admin.close()
        return bool(found)

    Ledger(own).send(kept)
    time.sleep(3)  # noida-db writes to disk about once a second
    assert backed_up()
    Ledger(own).send(lost)
    assert consume(own).records == 60
    held = state(own)
    mortal.kill()
    shutil.rmtree(data)
    shutil.copytree(tmp_path / "backup", data)
    mortal.start()
    with pytest.raises(Refused, match="our offset"):
        consume(own)
    assert state(own) == held
    assert consume(again(own)).written.duplicates == 30, "what was kept is recognised"
    Ledger(own).send(later)
    consume(own)
    assert query(own, "SELECT count(*), count(DISTINCT event_id) FROM interactions") == [(65, 65)]
