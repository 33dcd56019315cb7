"""`pigeon doctor` on the real servers: what is wrong, how to mend it, and nothing left behind."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from consumers.doctor import PROBES as KAFKA
from consumers.kafka import clients
from generator.nightly.doctor import PROBES as MACHINE
from generator.serving.doctor import PROBES as TRITON
from generator.storage.doctor import PROBES as S3
from generator.storage.objects import PROBE_PREFIX
from migrations import database
from migrations.doctor import PROBES as POSTGRES
from schemas.connections import s3_client, s3_options
from schemas.errors import InputError
from schemas.events import ERASURE
from schemas.runtime import checkup
from schemas.runtime.checkup import Finding, Probe, exit_code, look, ok
from schemas.settings import Settings
from tests.support.consume_world import changed, query
from tests.support.s3_proxy import Operation, S3Proxy, status

pytestmark = [
    pytest.mark.integration,
    # kafka-python 3.0.12 drops the socket of a connection that was not made (net/inet.py, sock_connect).
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]
Run = Callable[..., subprocess.CompletedProcess[str]]


def wrong(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.verdict == "wrong"]


def test_on_good_servers_nothing_is_wrong_and_nothing_is_left_behind(settings: Settings, pigeon: Run) -> None:
    admin = clients.admin(settings.kafka)
    before = set(admin.list_topics())
    done = pigeon("doctor", "--only", "kafka,postgres,s3,machine", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {one["area"] for one in found} == {"kafka", "postgres", "s3", "machine"}
    assert not [one for one in found if one["verdict"] == "wrong"]
    assert {"broker", "topics", "codecs", "rights"} <= {one["subject"] for one in found if one["area"] == "kafka"}
    assert set(admin.list_topics()) == before
    admin.close()
    client = s3_client(**s3_options(settings.s3))
    assert client.list_objects_v2(Bucket=settings.s3.bucket, Prefix=PROBE_PREFIX)["KeyCount"] == 0
    client.close()
    assert query(settings, "SELECT count(*) FROM consumer_offsets") == [(0,)]


def test_people_get_a_line_each_and_the_exit_code_of_what_they_must_mend(settings: Settings, pigeon: Run) -> None:
    query(settings, "DROP TABLE poster_feedback CASCADE")
    query(settings, "UPDATE alembic_version SET version_num = '0001'")
    done = pigeon("doctor", "--only", "postgres")
    assert done.returncode == InputError.exit_code
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert "0001" in line
    assert "`pigeon db upgrade`" in line
    assert "1 wrong" in done.stdout.splitlines()[-1]
    assert pigeon("doctor", "--only", "postgres,moon").returncode == InputError.exit_code


def test_topics_that_are_missing_or_lose_events_are_named(settings: Settings) -> None:
    none = changed(settings, "kafka", topic_prefix="nothing.here.")
    (finding,) = wrong(look(KAFKA, none))
    assert "nothing.here.catalog.items.v1" in finding.text
    assert finding.mend == "`pigeon topics create`"
    admin = clients.admin(settings.kafka)
    topic = settings.kafka.topic_prefix + ERASURE
    admin.delete_topics([topic])
    admin.close()
    (finding,) = wrong(look(KAFKA, settings))
    assert topic in finding.text


def test_a_database_that_does_not_exist_is_told_of(settings: Settings) -> None:
    url = settings.database.url.get_secret_value()
    server, _, name = url.rpartition("/")
    other = changed(settings, "database", url=type(settings.database.url)(f"{server}/{name}_none"))
    (finding,) = wrong(look(POSTGRES, other))
    assert "does not exist" in finding.text
    assert finding.exit_code == 3


def test_a_login_without_rights_is_told_which_it_lacks(settings: Settings) -> None:
    query(settings, "DROP ROLE IF EXISTS reader_only")
    query(settings, "CREATE ROLE reader_only LOGIN PASSWORD 'pw'")
    query(settings, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_only")
    rest = settings.database.url.get_secret_value().rpartition("@")[2]
    own = changed(settings, "database", url=type(settings.database.url)(f"postgresql+psycopg2://reader_only:pw@{rest}"))
    try:
        (finding,) = wrong(look(POSTGRES, own))
    finally:
        query(settings, "DROP OWNED BY reader_only")
        query(settings, "DROP ROLE reader_only")
    assert "reader_only lacks INSERT on" in finding.text
    assert finding.exit_code == InputError.exit_code


@contextmanager
def proxied(settings: Settings) -> Iterator[tuple[S3Proxy, Settings]]:
    """A proxy before the bucket, and the settings that lead through it."""
    address = urlsplit(settings.s3.endpoint_url or "")
    with S3Proxy(address.hostname or "", address.port or 80) as proxy:
        yield proxy, changed(settings, "s3", endpoint_url=f"http://127.0.0.1:{proxy.port}")


@pytest.mark.parametrize(("header", "operation"), [("If-None-Match", "create"), ("If-Match", "flip")])
def test_a_store_without_conditional_writes_is_refused(settings: Settings, header: str, operation: Operation) -> None:
    with proxied(settings) as (proxy, there):
        proxy.script(operation, status(501, "NotImplemented"), times=9)
        found = wrong(look(S3, there))
    assert [finding.subject for finding in found] == ["conditional writes"]
    assert header in found[0].text
    assert found[0].exit_code == InputError.exit_code


def ignored(handler: Any, body: bytes) -> None:
    """The store's answer to a write whose condition it has not read."""
    handler.reply(200, [("ETag", '"x"')], b"")


def test_a_store_that_ignores_conditions_is_refused(settings: Settings) -> None:
    with proxied(settings) as (proxy, there):
        proxy.script("create", ignored)
        proxy.script("flip", ignored)
        found = wrong(look(S3, there))
    assert [finding.text.partition(":")[0] for finding in found] == ["If-None-Match is ignored", "If-Match is ignored"]


def test_a_wrong_bucket_is_named(settings: Settings) -> None:
    found = wrong(look(S3, changed(settings, "s3", bucket="no-such-bucket")))
    assert len(found) == 1, "what follows from it is not told again"
    assert "no-such-bucket" in found[0].text
    assert found[0].exit_code == InputError.exit_code


def test_triton_without_models_says_what_loads_them(settings: Settings) -> None:
    found = look(TRITON, settings)
    assert "2.5" in next(finding.text for finding in found if finding.subject == "server")
    (finding,) = wrong(found)
    assert "are not loaded" in finding.text
    assert "pigeon models load" in finding.mend
    assert finding.exit_code == 4


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


@pytest.mark.parametrize("area", ["kafka", "postgres", "s3", "triton"])
def test_a_server_that_hangs_is_away_and_the_doctor_does_not_hang(settings: Settings, area: str) -> None:
    with silent_server() as port:
        there = {
            "kafka": lambda: changed(
                settings, "kafka", bootstrap_servers=f"127.0.0.1:{port}", request_timeout_ms=1_000
            ),
            "postgres": lambda: changed(
                settings,
                "database",
                url=type(settings.database.url)(f"postgresql+psycopg2://u:p@127.0.0.1:{port}/x"),
                connect_timeout_seconds=1.0,
            ),
            "s3": lambda: changed(
                settings,
                "s3",
                endpoint_url=f"http://127.0.0.1:{port}",
                connect_timeout_seconds=1.0,
                read_timeout_seconds=1.0,
            ),
            "triton": lambda: changed(settings, "triton", url=f"127.0.0.1:{port}"),
        }[area]()
        probes = {"kafka": KAFKA, "postgres": POSTGRES, "s3": S3, "triton": TRITON}[area]
        found = look(probes, there)
    gc.collect()
    assert exit_code(found) == 3
    assert {finding.area for finding in found} == {area}


def test_a_probe_without_an_end_is_given_up_and_the_others_are_told(settings: Settings) -> None:
    never = threading.Event()

    def hangs(_: Settings) -> Iterator[Finding]:
        yield ok("a", "first", "seen")
        never.wait(300)

    probes = [Probe("a", "hangs", hangs, seconds=0.2), Probe("b", "fine", lambda _: [ok("b", "fine", "yes")])]
    found = look(probes, settings)
    never.set()
    assert [finding.verdict for finding in found] == ["ok", "wrong", "ok"]
    assert found[1].text == "no answer within 0.2 s"


def test_the_machine_is_looked_at(settings: Settings, tmp_path: Path) -> None:
    found = look(MACHINE, settings.model_copy(update={"state_dir": tmp_path / "not" / "yet"}))
    assert {finding.subject for finding in found} >= {"disk", "fonts", "safety"}
    assert not wrong(found)
    bad = changed(settings, "night", font=tmp_path / "no.ttf")
    (finding,) = wrong(look(MACHINE, bad))
    assert "night.font" in finding.text


def test_a_part_refuses_before_it_begins_what_a_person_must_mend(settings: Settings) -> None:
    with pytest.raises(InputError, match="`pigeon topics create`"):
        checkup.require(KAFKA, changed(settings, "kafka", topic_prefix="nothing.here."))
    checkup.require(MACHINE, settings)
    assert database.head()
