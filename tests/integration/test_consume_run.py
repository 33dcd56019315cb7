"""How `pigeon consume` is refused, watched and stopped.

Its process, its group and its offsets, whatever the topics bring.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from kafka import errors
from kafka.coordinator.base import BaseCoordinator

from consumers.kafka import clients
from schemas.errors import InputError, PoisonLimitExceeded, Refused, ServerUnavailable
from schemas.events import FEEDBACK, INTERACTIONS
from schemas.settings import Settings
from tests.support.consume_world import changed, click, consume, query, send, send_raw

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # a hang ends, a busy machine does not fail
Pigeon = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("rebalance", ["eager", "cooperative"])
def test_a_group_that_shares_out_otherwise_is_refused_by_name(
    settings: Settings, rebalance: str, monkeypatch: pytest.MonkeyPatch
):
    """What Apache Kafka answers to a member whose assignors none of the others has.

    The brokers of the tests let it in.
    """
    join = BaseCoordinator._process_join_group_response
    answers = []

    def refuse(self: BaseCoordinator, response: Any, send_time: float) -> Any:
        response.error_code = errors.InconsistentGroupProtocolError.errno
        answers.append(response)
        return join(self, response, send_time)

    monkeypatch.setattr(BaseCoordinator, "_process_join_group_response", refuse)
    with pytest.raises(InputError, match=r"^kafka\.rebalance: other members of the group have another") as refused:
        consume(changed(settings, "kafka", rebalance=rebalance))
    assert refused.value.exit_code == 2
    assert len(answers) == 1, "it is not tried again"
    assert query(settings, "SELECT count(*) FROM consumer_offsets") == [(0,)]


def offsets(settings: Settings) -> int:
    return int(query(settings, "SELECT coalesce(sum(next_offset), 0) FROM consumer_offsets")[0][0])


def test_an_epidemic_of_poison_stops_the_consumer_with_its_offsets_held(settings: Settings, pigeon: Pigeon):
    send_raw(settings, INTERACTIONS, [b"{"] * 150)
    with pytest.raises(PoisonLimitExceeded, match="150 of 150"):
        consume(settings)
    assert offsets(settings) == 0
    ended = pigeon("consume", "--topics", INTERACTIONS, "--until-idle", "0.5")
    assert ended.returncode == 5
    assert ended.stderr.splitlines()[-1].startswith("pigeon: 150 of 150 records undecodable")
    assert pigeon("dlq", "list").stdout == "dead letters: 0 open\n"


def test_without_a_dead_letter_topic_it_stops_with_its_offsets_held(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    send_raw(settings, INTERACTIONS, [b"{"])
    admin = clients.admin(settings.kafka)
    admin.delete_topics([f"{settings.kafka.topic_prefix}{INTERACTIONS}.dlq"])
    admin.close()

    def as_apache_kafka_answers(*_: Any, **__: Any) -> Any:
        raise clients.KafkaError("the topic is not in the metadata")  # the embedded broker would make the topic

    producer = clients.producer(settings.kafka)
    monkeypatch.setattr(producer, "send", as_apache_kafka_answers)
    monkeypatch.setattr(clients, "producer", lambda *_: producer)
    with pytest.raises(ServerUnavailable, match="pigeon topics create"):
        consume(settings)
    assert offsets(settings) == 0


def test_a_topic_made_anew_is_noticed(settings: Settings):
    send(settings, [click(number) for number in range(30)])
    consume(settings)
    query(settings, "UPDATE consumer_offsets SET next_offset = next_offset + 1000 WHERE next_offset > 0")
    with pytest.raises(Refused, match="before our offset"):
        consume(settings)
    again = consume(changed(settings, "consumer", on_topic_recreated="restart"))
    assert (again.records, again.written.duplicates) == (30, 30)
    assert consume(settings).records == 0

    query(settings, "UPDATE consumer_offsets SET topic_id = '01a208f8-0000-7000-8000-000000000000'")
    with pytest.raises(Refused, match="another id"):
        consume(settings)
    assert consume(changed(settings, "consumer", on_topic_recreated="restart")).written.duplicates == 30
    assert query(settings, "SELECT count(*) FROM interactions") == [(30,)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def until(check: Callable[[], bool], what: str, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_running_consumer_can_be_watched_and_stops_gently(settings: Settings):
    port = free_port()
    send(settings, [click(number) for number in range(25)])
    command = [sys.executable, "-m", "generator.cli", "consume", "--topics", f"{INTERACTIONS},{FEEDBACK}"]
    own = environment(settings) | {"PIGEON_CONSUMER__METRICS_PORT": str(port)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=own) as child:
        try:
            wanted = f'pigeon_rows_total{{topic="{INTERACTIONS}"}} 25.0'
            until(lambda: wanted in get(port, "/metrics")[1], "the rows show in the metrics")
            assert get(port, "/live") == (200, "ok\n")
            assert get(port, "/ready") == (200, "ok\n")
            assert get(port, "/else")[0] == 404
            assert "pigeon_lag_records{" in get(port, "/metrics")[1]
            child.send_signal(signal.SIGTERM)
            out, err = child.communicate()
        finally:
            child.kill()
    assert child.returncode == 143, err
    assert out.startswith("consumed: 25 records in 1 batches"), out


def environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "PIGEON_KAFKA__GROUP_ID": settings.kafka.group_id,
        "PIGEON_KAFKA__SESSION_TIMEOUT_MS": "3000",
    }


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"PIGEON_KAFKA__TOPIC_PREFIX": "absent."}, 2, "pigeon topics create"),
        (
            {"PIGEON_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "PIGEON_KAFKA__REQUEST_TIMEOUT_MS": "1500"},
            3,
            "127.0.0.1:1",
        ),
        ({"PIGEON_DATABASE__URL": "postgresql+psycopg2://nobody:wrong@127.0.0.1:1/x"}, 3, "database.url"),
        ({"PIGEON_KAFKA__SECURITY_PROTOCOL": "SASL_SSL"}, 2, "kafka.sasl_mechanism"),
    ],
)
def test_what_is_wrong_at_the_start_is_said_in_one_line(settings: Settings, changes, code, said):
    ended = subprocess.run(
        [sys.executable, "-m", "generator.cli", "consume", "--until-idle", "0.5"],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(settings) | changes,
    )
    assert ended.returncode == code, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert said in ended.stderr
    assert "wrong" not in ended.stderr, "no password in a message"
