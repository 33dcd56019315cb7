"""Faults 5 to 8 and replay.

Poison of every kind, too much of it, nowhere to put it; events doubled, reordered, of the future and of old; a month without
a partition.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typer.testing import CliRunner

from consumers import commands, dead_letters, metrics
from consumers.dead_letters import DeadLetter
from consumers.kafka import clients
from schemas.errors import PoisonLimitExceeded, ServerUnavailable
from schemas.events import DLQ_SUFFIX, INTERACTIONS
from schemas.settings import Settings
from tests.support.apache_kafka import BROKERS
from tests.support.consume_world import SEED, START, Ledger, Victim, changed, consume, events, query

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(600)]
GOOD = events(random.Random(SEED), 1)[0]


def event(**changes: Any) -> bytes:
    return json.dumps({**json.loads(GOOD.model_dump_json()), **changes}).encode()


POISON: dict[str, tuple[bytes | None, str]] = {
    "bytes": (b"\xff\x00\xfe", "bad_json"),
    "half": (event()[:-7], "bad_json"),
    "empty": (b"", "bad_json"),
    "deep": (b'{"context":' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "bad_json"),
    "types": (event(user_id=[7]), "invalid"),
    "list": (b"[]", "invalid"),
    "missing": (b'{"user_id": "u"}', "invalid"),
    "version": (event(schema_version=2), "invalid"),
    "null": (None, "null_value"),
    "1 MB": (event(context={"x": "y" * 1_000_000}), "too_large"),
    "NUL": (event(item_id="a\x00b"), "invalid"),
    "surrogate": (event(item_id="a\ud800b"), "bad_json"),
    "number": (b'{"n": 1' + b"0" * 5_000 + b", " + event()[1:], "bad_json"),
}


def send(settings: Settings, values: list[bytes | None], key: bytes = b"k\xff") -> list[tuple[int, int, int]]:
    """Send with a key that is no text, a header and a time of our own.

    Returns (partition, offset, timestamp).
    """
    producer = clients.producer(settings.kafka, 4 * 2**20)
    now = int(time.time() * 1000) - 60_000  # not so old that retention would take it
    sent = [
        producer.send(
            settings.kafka.topic_prefix + INTERACTIONS,
            key=key,
            value=value,
            headers=[("trace", b"\x00\xff"), ("trace", b"again")],
            timestamp_ms=now + number,
        )
        for number, value in enumerate(values)
    ]
    found = [future.get(timeout=60) for future in sent]
    producer.close()
    return [(at.partition, at.offset, at.timestamp) for at in found]


def stored_offsets(settings: Settings) -> int:
    return int(query(settings, "SELECT coalesce(sum(next_offset), 0) FROM consumer_offsets")[0][0])


def own_headers(letter: DeadLetter) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in letter.headers if not name.startswith("pigeon-")]


def test_fault_5_each_kind_of_poison_goes_aside_alone_and_untouched(quick: Settings):
    """Fault 5: each kind once, in a good batch."""
    chance = random.Random(SEED)
    fresh = events(chance, 9 * len(POISON))
    values: list[bytes | None] = []
    for number, (value, _) in enumerate(POISON.values()):
        mine: list[bytes | None] = [e.model_dump_json().encode() for e in fresh[9 * number : 9 * number + 9]]
        mine.insert(chance.randrange(10), value)
        values += mine
    at = dict(zip(values, send(quick, values), strict=True))
    summary = consume(changed(quick, "consumer", batch_max_records=10))
    assert (summary.records, summary.poison) == (len(values), len(POISON))
    assert query(quick, "SELECT count(*), count(DISTINCT event_id) FROM interactions") == [(len(fresh), len(fresh))]
    letters = {letter.value: letter for letter in dead_letters.read(quick)}
    for kind, (value, reason) in POISON.items():
        letter = letters.pop(value)
        partition, offset, timestamp = at[value]
        assert letter.key == b"k\xff"
        assert own_headers(letter) == [("trace", b"\x00\xff"), ("trace", b"again")]
        assert (letter.note("reason"), letter.note("source-timestamp")) == (reason, str(timestamp)), kind
        assert letter.source == (quick.kafka.topic_prefix + INTERACTIONS, str(partition), str(offset))
        assert letter.note("detail")
        assert "Traceback" in letter.note("stack") or reason in ("null_value", "too_large") or kind == "deep"
    assert not letters


def test_fault_6_nothing_but_poison_stops_the_consumer_with_its_offsets_held(quick: Settings):
    """Fault 6: 100 % poison."""
    send(quick, [b"{"] * 130)
    wide = changed(quick, "consumer", batch_max_records=500)
    with pytest.raises(PoisonLimitExceeded, match="dlq_max_share"):
        consume(wide)
    with Victim(wide, until_idle=0.5) as stops:
        assert stops.ended() == PoisonLimitExceeded.exit_code == 5
    few = changed(wide, "consumer", dlq_max_count=20)
    with pytest.raises(PoisonLimitExceeded, match="dlq_max_count"):
        consume(few)
    assert stored_offsets(quick) == 0
    assert dead_letters.read(quick) == []
    assert consume(changed(wide, "consumer", dlq_max_share=1.0)).poison == 130, "it goes on when the limit is raised"
    assert len(dead_letters.read(quick)) == 130


@pytest.mark.parametrize("quick", BROKERS[1:], indirect=True)  # Tansu enforces no limit and makes any topic
def test_fault_6_a_dead_letter_topic_that_cannot_be_written_stops_the_consumer_with_its_offsets_held(quick: Settings):
    """Fault 6: dead letters have nowhere to go."""
    topic = quick.kafka.topic_prefix + INTERACTIONS + DLQ_SUFFIX

    def recreate(**configs: str) -> None:
        admin = clients.admin(quick.kafka)
        admin.delete_topics([topic])
        admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1, "configs": configs}})
        admin.close()

    send(quick, [event(), b"{"])
    recreate(**{"max.message.bytes": "100"})
    with pytest.raises(ServerUnavailable, match="dead-letter topic cannot be written"):
        consume(quick)
    with Victim(quick, until_idle=0.5) as stops:
        assert stops.ended() == ServerUnavailable.exit_code == 3
    assert stored_offsets(quick) == 0
    assert query(quick, "SELECT count(*) FROM interactions") == [(0,)]
    recreate()
    assert consume(quick).poison == 1
    assert len(dead_letters.read(quick)) == 1
    assert query(quick, "SELECT count(*) FROM interactions") == [(1,)]


def test_fault_7_doubled_reordered_future_and_old_events_change_nothing_that_they_should_not(quick: Settings):
    """Fault 7."""
    chance = random.Random(SEED)
    ledger = Ledger(quick)
    fresh = events(chance, 60)
    shuffled = [*fresh, *fresh[:30]]
    ledger.send(chance.sample(shuffled, len(shuffled)))
    summary = consume(quick)
    assert (summary.written.duplicates, summary.clamped) == (30, 0)
    ledger.check_end()
    before = query(quick, "SELECT user_id, fingerprint FROM user_histories ORDER BY 1")
    ledger.send(chance.sample(fresh, 20))
    consume(quick)
    assert query(quick, "SELECT user_id, fingerprint FROM user_histories ORDER BY 1") == before

    future = events(chance, 1)[0].model_copy(
        update={"user_id": "ahead", "occurred_at": datetime(2150, 1, 1, tzinfo=UTC)}
    )
    versionless = {"event_id": str(uuid.UUID(int=5, version=4)), "user_id": "old", "item_id": "i", "kind": "click"}
    send(
        quick,
        [future.model_dump_json().encode(), json.dumps({**versionless, "occurred_at": START.isoformat()}).encode()],
    )
    assert consume(quick).clamped == 1
    ((now, claimed),) = query(quick, "SELECT occurred_at, claimed_at FROM interactions WHERE user_id = 'ahead'")
    assert claimed == future.occurred_at
    assert abs(now - datetime.now(UTC)) < timedelta(hours=1)
    assert query(quick, "SELECT occurred_at FROM interactions WHERE user_id = 'old'") == [(START,)]


@pytest.mark.parametrize("quick", ["tansu"], indirect=True)
def test_fault_8_a_month_without_a_partition_is_made_and_the_alarm_rises(quick: Settings):
    """Fault 8."""
    before = metrics.PARTITIONS_MADE._value.get()
    ledger = Ledger(quick)
    ledger.send(
        e.model_copy(update={"occurred_at": datetime(1997, 5, 2, tzinfo=UTC)}) for e in events(random.Random(SEED), 20)
    )
    consume(quick)
    ledger.check_end()
    assert metrics.PARTITIONS_MADE._value.get() == before + 1


def test_a_replayed_dead_letter_changes_postgres_exactly_once(quick: Settings, monkeypatch: pytest.MonkeyPatch):
    """Fault 5: afterwards, when poison was mended and is replayed."""
    ledger = Ledger(quick)
    fresh = events(random.Random(SEED), 12)
    query(quick, "ALTER TABLE interactions ADD CONSTRAINT no_i7 CHECK (kind <> 'like')")
    refused = [e.model_copy(update={"kind": "like"}) for e in fresh[:5]]
    ledger.send([*refused, *fresh[5:]])
    consume(quick)
    letters = dead_letters.read(quick, reason="refused_by_database")
    assert len(letters) == 5
    query(quick, "ALTER TABLE interactions DROP CONSTRAINT no_i7")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the broker has them, we do not know it yet
        patch.setattr(dead_letters, "_mark", crash)
        with pytest.raises(KeyboardInterrupt):
            dead_letters.replay(quick, letters[:2])
    assert len(dead_letters.read(quick)) == 5
    monkeypatch.setattr("schemas.settings.load_settings", lambda: quick)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(commands.dlq_app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert run("replay", "--reason", "bad_json").endswith("0 replayed\n")
    assert run("replay", "--reason", "refused_by_database", "--limit", "2").endswith("2 replayed\n")
    assert run("replay", "--topic", INTERACTIONS).endswith("3 replayed\n")
    assert run("list") == "dead letters: 0 open\n"
    summary = consume(quick)
    assert (summary.records, summary.written.duplicates) == (7, 2)
    stored = query(quick, "SELECT event_id::text, count(*) FROM interactions GROUP BY 1")
    assert dict(stored) == {str(e.event_id): 1 for e in fresh}
    ((total,),) = query(quick, "SELECT sum(interaction_count) FROM user_histories")
    assert total == 12


def test_copies_of_a_dead_letter_are_one_and_offsets_of_a_topic_made_anew_are_others(quick: Settings):
    """Fault 5: a dead letter that was sent twice."""
    send(quick, [b"{"])
    consume(quick)
    (letter,) = dead_letters.read(quick)
    producer = clients.producer(quick.kafka)
    other = [(n, v if n != "pigeon-source-timestamp" else b"1") for n, v in letter.headers]
    for headers in (
        letter.headers,
        other,
    ):  # a copy, as a crash between sending and COMMIT makes it; and one of another topic
        producer.send(letter.topic, key=letter.key, value=letter.value, headers=list(headers)).get(timeout=60)
    producer.close()
    assert len(dead_letters.read(quick)) == 2
    dead_letters.drop(quick, [letter])
    (left,) = dead_letters.read(quick)
    assert left.note("source-timestamp") == "1", "its copy went with it"
