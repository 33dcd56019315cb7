"""Liveness proves progress, readiness names what is in the way.

Postgres being down is no reason for a restart.
"""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import prometheus_client.parser
import pytest
import structlog
from kafka import TopicPartition
from kafka.consumer.fetcher import ConsumerRecord
from prometheus_client import generate_latest

from consumers import metrics
from consumers.loop import health, probes, progress
from consumers.loop.health import Health
from consumers.loop.summary import Summary
from consumers.loop.thread_stacks import Stacks
from consumers.write import writer
from consumers.write.batch import Batch
from consumers.write.decode import Decoded, Poison
from consumers.write.upsert import Written
from schemas.settings import ConsumerSettings, DatabaseSettings, load_settings
from schemas.settings_kafka import KafkaSettings


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
    state.note_progress()
    assert state.alive()[0]


def test_waiting_out_an_outage_is_alive_and_not_ready(clock: list[float]):
    state = Health()
    assert state.ready() == (False, "not started")
    state.beat(0)
    assert state.ready() == (True, "ok")
    assert state.note_outage("database", "read-only")
    assert not state.note_outage("database", "still read-only"), "news only once"
    for _ in range(20):
        clock[0] += 30
        state.beat(7)
    assert state.alive()[0]
    assert state.ready() == (False, "database: still read-only")
    state.note_recovery("database")
    assert state.ready()[0]
    assert state.alive()[0], "the wait does not count against it afterwards"


def test_a_store_that_is_away_is_not_ready_and_no_reason_for_a_restart(clock: list[float]):
    """Kafka's client says nothing when its brokers are gone.

    And Postgres is not asked while there is nothing to write.
    """
    away = {}
    state = Health(lambda: away)
    state.beat(7)
    assert state.ready() == (True, "ok")
    away["kafka"] = "refused"
    assert state.ready() == (False, "kafka: refused")
    clock[0] += health.STUCK_WORK_SECONDS + 1
    state.beat(7)
    assert state.alive()[0]
    away.clear()
    assert not state.alive()[0]


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_the_stores_are_asked_and_not_too_often(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(probes.time, "monotonic", lambda: now[0])
    nobody = free_address()
    with socket.create_server(("127.0.0.1", 0)) as server:
        broker = f"127.0.0.1:{server.getsockname()[1]}"
        assert probes.kafka(KafkaSettings(bootstrap_servers=f"{nobody}, {broker}")) is None, "one broker is enough"
        assert "refused" in (probes.kafka(KafkaSettings(bootstrap_servers=nobody)) or "")
    database = DatabaseSettings.model_validate({"url": f"postgresql+psycopg2://u:secret@{nobody}/d"})
    asked = []

    def ask() -> str | None:
        asked.append(1)
        return probes.postgres(database)

    told = probes.Probes({"database": ask, "other": lambda: None})
    assert list(told()) == ["database"]
    assert "secret" not in told()["database"]
    assert len(asked) == 1
    now[0] += probes.KEPT_SECONDS + 1
    told()
    assert len(asked) == 2


HANGS = """
import sys, threading, time
from consumers.loop.health import Health
from consumers.loop.thread_stacks import Stacks

def hang_in_the_writer(seconds):
    threading.Event().wait(seconds)

threading.Thread(target=hang_in_the_writer, args=(60,), daemon=True).start()
stacks = Stacks(sys.stderr, {loop})
state = Health(stacks=stacks, stuck_work_seconds={work})

def loop():
    state.beat(5)
    {then}

loop()
stacks.close()
"""


def stacks_of(tmp_path: Path, **parts: object) -> str:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS.format(**parts))
    return subprocess.run([sys.executable, script], check=True, capture_output=True, text=True, timeout=240).stderr


def test_a_loop_that_hangs_has_all_stacks_logged(tmp_path: Path):
    """In C and with the interpreter's lock held, as `re` is here: no thread of ours could tell it then."""
    dumped = stacks_of(tmp_path, loop=0.2, work=1e6, then="import re; re.match(r'(a+)+$', 'a' * 24 + 'b')")
    assert dumped.startswith("Timeout")
    assert "in loop" in dumped
    assert "in hang_in_the_writer" in dumped


def test_work_that_hangs_has_all_stacks_logged_once(tmp_path: Path):
    dumped = stacks_of(tmp_path, loop=1e6, work=0.2, then="[(time.sleep(0.1), state.beat(5)) for _ in range(10)]")
    assert dumped.count("in hang_in_the_writer") == 1
    assert "Timeout" not in dumped


def test_stacks_are_rearmed_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch):
    now, armed = [0.0], []
    monkeypatch.setattr("consumers.loop.thread_stacks.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "consumers.loop.thread_stacks.faulthandler.dump_traceback_later", lambda s, file: armed.append(s)
    )
    stacks = Stacks(io.StringIO(), 60.0)
    for _ in range(30):
        stacks.feed()
        now[0] += 0.1
    assert armed == [60.0] * 3


def test_metrics_have_a_prefix_a_text_and_labels_that_cannot_grow():
    families = list(prometheus_client.parser.text_string_to_metric_families(generate_latest(metrics.REGISTRY).decode()))
    ours = [family for family in families if family.name.startswith("pigeon_")]
    assert {family.name for family in families if not family.name.startswith("process_")} == {f.name for f in ours}
    assert any(family.name == "process_resident_memory_bytes" for family in families)
    assert len(ours) >= 18
    for family in ours:
        assert family.documentation, family.name
        if family.type == "histogram":
            assert re.search("_(seconds|records)$", family.name), "its unit is in its name"
        labels = {label for sample in family.samples for label in sample.labels}
        bounded = {
            "topic",
            "partition",
            "reason",
            "server",
            "le",
            *("job", "exit_code"),  # the scheduler's and the web's families are in the same registry
            *("page", "status", "source", "outcome", "action"),
        }
        assert labels <= bounded, "no users, items or events"


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """What the consumers log, as JSON would have it."""
    lines: list[dict[str, object]] = []

    def keep(_: object, level: str, fields: dict[str, object]) -> str:
        lines.append(json.loads(json.dumps(fields | {"level": level})))
        raise structlog.DropEvent

    for module in (progress, writer):
        monkeypatch.setattr(module, "log", structlog.wrap_logger(structlog.PrintLogger(), processors=[keep]))
    return lines


def batch(*offsets: int, poison: bool = False) -> Batch:
    made = Batch(ConsumerSettings())
    why = Poison("invalid", "kind: Field required", "ValidationError", "stack") if poison else None
    for offset in offsets:
        record = ConsumerRecord("t", offset % 2, 0, offset, 0, 0, b"k", b"v", [], None, 0, 0, 0)
        made.add(TopicPartition("t", offset % 2), [Decoded(record, "t", None if poison else ("row",), why, False)])
    return made


def test_one_line_in_n_seconds_says_where_each_partition_is(monkeypatch: pytest.MonkeyPatch, logged: list[dict]):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report, summary = progress.Reporter(10.0), Summary()
    for number in range(100):
        summary.add(batch(2 * number, 2 * number + 1) if number < 60 else batch(2 * number), Written())
        now[0] += 0.25
        report(summary, 3)
    assert [line["event"] for line in logged] == ["consuming", "consuming"]
    assert logged[0] == {
        "event": "consuming",
        "level": "info",
        "records": 80,
        "per_second": 8,
        "lag": 3,
        "poison": 0,
        "next_offsets": {"t/0": 79, "t/1": 80},
    }
    assert logged[1]["next_offsets"] == {"t/0": 159, "t/1": 120}


def test_poison_is_told_with_its_place_and_not_for_each_record(
    monkeypatch: pytest.MonkeyPatch, logged: list[dict], tmp_path: Path
):
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    one = writer.Writer(load_settings(state_dir=tmp_path), "me")
    for first in (10, 20, 30):
        one._tell_poison(batch(first, first + 1, poison=True).poison)
    assert [(line["offset"], line["records"]) for line in logged] == [(10, 2)]
    now[0] += 11
    one._tell_poison(batch(41, poison=True).poison)
    assert logged[1] == {
        "event": "poison",
        "level": "warning",
        "topic": "t",
        "partition": 0,
        "offset": 20,
        "reason": "invalid",
        "detail": "kind: Field required",
        "records": 5,
        "see": "`pigeon dlq list`",
    }
