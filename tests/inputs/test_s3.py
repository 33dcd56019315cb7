"""Stores of other makes (INPUTS 20 to 23): conditions, rights, addresses, clocks, keys.

Public reports: ceph/s3-tests#583, versitygw#1708; aws-cli#2041; s5cmd#518. Beside SeaweedFS, a proxy before it that answers by
a script, and a store of the tests' own that writes down what it is asked.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from consumers.files.images import Uploader
from generator.nightly.plan import Scope
from generator.storage.objects import Store
from generator.storage.outages import OutageRetry, PatientStore
from schemas.connections import s3_client, s3_options
from schemas.errors import InputError, ServerUnavailable
from schemas.fetch import Fetcher
from schemas.fetched import Fetched
from schemas.images import FORMATS, ImageProblem
from schemas.manifest import PosterManifest
from schemas.settings import Settings, load_settings
from tests.support.night_world import build, night
from tests.support.picture_host import picture
from tests.support.s3_proxy import Answer, Operation, S3Proxy, status


@pytest.fixture
def proxied(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Settings, S3Proxy]]:
    """The test's settings with S3 behind the proxy; a client asks once, the product does the rest."""
    monkeypatch.setattr("generator.storage.outages.FIRST_WAIT_SECONDS", 0.02)
    address = make_url(settings.s3.endpoint_url or "")
    assert address.host
    assert address.port
    with S3Proxy(address.host, address.port) as proxy:
        s3 = settings.s3.model_copy(update={"endpoint_url": f"http://127.0.0.1:{proxy.port}", "max_attempts": 1})
        yield settings.model_copy(update={"s3": s3, "state_dir": settings.state_dir / f"{proxy.port}"}), proxy


def said_yes(handler: Any, body: bytes) -> None:
    """A store that reads no conditions: whatever is put is taken."""
    handler.reply(200, [("ETag", '"0123"')], b"")


NO_CONDITIONS: dict[str, tuple[dict[Operation, Answer], str]] = {
    "refuses If-Match": ({"flip": status(501, "NotImplemented")}, "If-Match is answered NotImplemented"),
    "refuses If-None-Match": ({"create": status(501, "NotImplemented")}, "If-None-Match is answered NotImplemented"),
    "ignores If-Match": ({"flip": said_yes}, "If-Match is ignored"),
    "ignores If-None-Match": ({"create": said_yes}, "If-None-Match is ignored"),
    "is strict": ({"flip": status(412, "PreconditionFailed")}, "refuses the object's own tag"),
}


@pytest.mark.integration
@pytest.mark.parametrize("store", NO_CONDITIONS)
def test_a_store_without_conditional_writes_is_refused_at_the_start(
    proxied: tuple[Settings, S3Proxy], tmp_path: Path, store: str
) -> None:
    """INPUTS 20: 501 was "try again" for ever, and of two publishers both won."""
    far, proxy = proxied
    answers, words = NO_CONDITIONS[store]
    build(far, tmp_path / "art", users=1, targets=1)
    for operation, answer in answers.items():
        proxy.script(operation, answer, key="checks/", times=10**6)
    with pytest.raises(
        InputError, match=f"{words}, so two nights could overwrite each other; set PIGEON_S3__ENDPOINT_URL"
    ):
        night(far).run(Scope())
    proxy.clear()
    assert list(Store(far.s3).keys("")) == [], "what was written to ask is deleted"


@pytest.mark.integration
def test_conditions_that_fail_for_a_while_later_are_waited_out(proxied: tuple[Settings, S3Proxy]) -> None:
    """INPUTS 20: a gateway that is being replaced."""
    far, proxy = proxied
    store = PatientStore(far.s3, OutageRetry(30.0))
    store.check(writes=True)
    store.put("pointer", b"old", "a/b")
    stored = store.get("pointer")
    assert stored
    proxy.script("flip", status(501, "NotImplemented"), times=2)
    assert store.replace("pointer", b"new", "a/b", etag=stored.etag)
    assert proxy.left() == 0


@pytest.mark.integration
def test_a_picture_is_imported_into_a_store_without_conditions(proxied: tuple[Settings, S3Proxy]) -> None:
    """INPUTS 20: its key is made of its content, so nothing can be overwritten."""
    far, proxy = proxied
    proxy.script("create", status(501, "NotImplemented"), times=10**6)
    uploader = Uploader(far.s3)
    uri = uploader.upload(picture(), FORMATS["PNG"])
    uploader.close()
    assert uri.startswith(f"s3://{far.s3.bucket}/catalog/")
    assert len(list(Store(far.s3).keys("catalog/"))) == 1


def open_reader(settings: Settings, cache: Path) -> PosterManifest:
    return PosterManifest.open(
        bucket=settings.s3.bucket,
        client=Store(settings.s3).s3,
        refresh_seconds=math.inf,
        cache_dir=cache,
    )


@pytest.mark.integration
def test_a_reader_that_may_only_read_starts_before_the_first_night(
    proxied: tuple[Settings, S3Proxy], tmp_path: Path
) -> None:
    """INPUTS 21: without s3:ListBucket a missing object is 403."""
    far, proxy = proxied
    proxy.script("get", status(403, "AccessDenied"), times=10**6)
    reader = open_reader(far, tmp_path / "cache")
    assert reader.current is None
    assert reader.posters_for("u0", ["item8"]) == {}
    assert set(reader.alarms) == {"access_denied"}
    told: list[str] = []
    reader._on_alarm = lambda alarm, detail: told.append(detail)
    reader.refresh()
    assert told
    assert all("s3:ListBucket" in detail and "s3:GetObject" in detail for detail in told)
    proxy.clear()
    build(far, tmp_path / "art", users=1, targets=1)
    night(far).run(Scope())
    assert reader.refresh()
    # Later only the list of what is taken back is missing, which is no alarm; a denied shard is one, and answers go on.
    told.clear()
    proxy.script("get", status(403, "AccessDenied"), key="manifests/withdrawn", times=1)
    reader.refresh()
    assert told == []
    proxy.script("get", status(403, "AccessDenied"), times=10**6)
    reader.refresh()
    assert reader.alarms["access_denied"] > 2
    assert reader.posters_for("u0", ["item8"])["item8"].image_key
    reader.close()


@pytest.mark.integration
@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "NoSuchBucket"])
def test_a_reader_with_wrong_keys_does_not_start(proxied: tuple[Settings, S3Proxy], tmp_path: Path, code: str) -> None:
    """INPUTS 21: these are never a missing right."""
    far, proxy = proxied
    proxy.script("get", status(403, code), times=10**6)
    with pytest.raises(InputError, match=code):
        open_reader(far, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ENDPOINT_URL", "host:9000", "is no address; write http://host:port"),
        ("ENDPOINT_URL", "host", "is no address"),
        ("ENDPOINT_URL", "https://host/bucket", "the bucket is s3.bucket"),
        ("BUCKET", "s3://shop", "write shop"),
        ("BUCKET", "s3://shop/posters/", "write shop, and posters as s3.prefix"),
        ("BUCKET", "my bucket", "is no bucket's name"),
        ("BUCKET", "", "is no bucket's name"),
        ("REGION", "", "is no region"),
        ("REGION", "us east", "is no region"),
        ("PREFIX", "../x", "is no first part of a key"),
        ("PREFIX", "s3://x", "is no first part of a key"),
        ("ADDRESSING_STYLE", "dns", "'auto', 'path' or 'virtual'"),
    ],
)
def test_an_address_that_is_none_is_named_by_its_setting(
    own_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, words: str
) -> None:
    """INPUTS 22: tracebacks of boto3, or "unavailable"."""
    monkeypatch.setenv(f"PIGEON_S3__{name}", value)
    with pytest.raises(InputError, match=rf"setting s3.{name.lower()} \(PIGEON_S3__{name}\)") as error:
        load_settings(state_dir=tmp_path)
    assert words in str(error.value)


class Asked(BaseHTTPRequestHandler):
    """A store that writes down how it is addressed, and has nothing."""

    seen: list[tuple[str, str, str]]

    def do_GET(self) -> None:
        self.seen.append((self.headers["Host"], self.path, self.headers.get("X-Amz-Security-Token", "")))
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, list[tuple[str, str, str]]]]:
    """Port of the store, at every name; and what it was asked."""
    seen: list[tuple[str, str, str]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Asked,), {"seen": seen}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    through = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *args, **more: through("127.0.0.1", *args, **more))
    yield server.server_address[1], seen
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("style", "virtual"), [("auto", False), ("path", False), ("virtual", True)])
def test_stores_that_know_one_way_of_addressing_are_asked_in_theirs(
    asked: tuple[int, list[tuple[str, str, str]]], style: str, virtual: bool
) -> None:
    """INPUTS 22: virtual-host-only stores, for our objects and for catalogue pictures."""
    port, seen = asked
    settings = Settings.model_validate(
        {
            "s3": {
                "endpoint_url": f"http://store.example:{port}",
                "addressing_style": style,
                "access_key_id": "a",
                "secret_access_key": "b",
                "session_token": "token",
            }
        }
    )
    with closing(Store(settings.s3).s3), closing(Fetcher(settings)) as fetcher:
        assert Store(settings.s3).get("manifests/latest.json") is None
        with pytest.raises(ImageProblem, match="no such picture"):
            fetcher.fetch("s3://pigeon/catalog/a.png")
    host, start = ("pigeon.store.example", "") if virtual else ("store.example", "/pigeon")
    assert {name for name, _, _ in seen} == {f"{host}:{port}"}
    assert [path.partition("?")[0] for _, path, _ in seen] == [
        f"{start}/manifests/latest.json",
        f"{start}/catalog/a.png",
    ]
    assert seen[0][2] == "token"
    assert "X-Amz-Security-Token=token" in seen[1][1]


@pytest.mark.integration
def test_an_installation_shares_its_bucket_under_a_prefix(settings: Settings, tmp_path: Path) -> None:
    """INPUTS 22: nothing outside of the prefix is written, listed, deleted or read as ours."""
    whole = Store(settings.s3)
    for key in ("manifests/latest.json", "posters/other", "team-a/pigeons/x"):
        whole.put(key, b"somebody else's", "a/b")
    options = {**settings.s3.model_dump(), "prefix": "/team-a/pigeon"}
    shared = settings.model_copy(
        update={"s3": type(settings.s3).model_validate(options), "state_dir": settings.state_dir / "shared"}
    )
    uploader = Uploader(shared.s3)
    uri = uploader.upload(picture(), FORMATS["PNG"])
    uploader.close()
    assert uri.startswith(f"s3://{settings.s3.bucket}/team-a/pigeon/catalog/")
    with closing(Fetcher(shared)) as fetcher:
        got = fetcher.fetch(uri)
    assert isinstance(got, Fetched)
    assert got.body == picture()
    build(shared, tmp_path / "art", users=1, targets=1)
    night(shared).run(Scope())
    ours = Store(shared.s3)
    keys = list(ours.keys(""))
    assert {f"team-a/pigeon/{key}" for key in keys} == set(whole.keys("team-a/pigeon/"))
    assert len(set(whole.keys(""))) == len(keys) + 3
    assert {key.partition("/")[0] for key in keys} >= {"catalog", "manifests", "posters"}
    reader = PosterManifest.open(
        bucket=settings.s3.bucket,
        endpoint_url=settings.s3.endpoint_url,
        access_key_id=settings.s3.access_key_id,
        secret_access_key=s3_options(settings.s3)["secret_access_key"],
        prefix="team-a/pigeon",
        refresh_seconds=math.inf,
        cache_dir=tmp_path / "cache",
    )
    key = reader.posters_for("u0", ["item8"])["item8"].image_key
    assert key in keys
    reader.close()
    ours.delete(str(key))
    assert not whole.exists(f"team-a/pigeon/{key}")
    first = [entry.key for page in ours.pages("posters/") for entry in page]
    assert first == sorted(one for one in keys if one.startswith("posters/") and one != key)


def test_a_bucket_that_is_not_ours_has_no_prefix(asked: tuple[int, list[tuple[str, str, str]]]) -> None:
    """INPUTS 22: pictures are read from other buckets by their whole keys."""
    port, seen = asked
    client = s3_client(
        endpoint_url=f"http://store.example:{port}",
        access_key_id="a",
        secret_access_key="b",
        prefixed=("ours", "p/"),
        addressing_style="path",
    )
    for bucket in ("ours", "other"):
        with pytest.raises(client.exceptions.ClientError):
            client.get_object(Bucket=bucket, Key="k")
    client.close()
    assert [path for _, path, _ in seen] == ["/ours/p/k", "/other/k"]


MENDED_ELSEWHERE = {
    "RequestTimeTooSkewed": (403, r"set the clock \(NTP\)"),
    "ExpiredToken": (400, "the temporary keys have expired"),
    "InvalidToken": (400, "PIGEON_S3__SESSION_TOKEN"),
    "AuthorizationHeaderMalformed": (400, "PIGEON_S3__REGION"),
    "PermanentRedirect": (301, "PIGEON_S3__REGION"),
}


@pytest.mark.integration
@pytest.mark.parametrize("code", MENDED_ELSEWHERE)
def test_clock_region_and_expired_keys_are_named_at_the_start_and_waited_for_later(
    proxied: tuple[Settings, S3Proxy], caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """INPUTS 23: they were retried as outages that nobody could name."""
    far, proxy = proxied
    number, words = MENDED_ELSEWHERE[code]
    store = PatientStore(far.s3, OutageRetry(30.0))
    store.put("x", b"x", "a/b")
    proxy.script("list", status(number, code), times=1)
    with pytest.raises(InputError, match=f"{code}; .*{words}"):
        store.check()
    proxy.clear()
    store.check()
    proxy.script("get", status(number, code), times=2)
    with caplog.at_level(logging.WARNING, "pigeon.storage"):
        assert store.get("x")
    assert proxy.left() == 0
    assert code in caplog.text
    proxy.script("get", status(number, code), times=10**6)
    with pytest.raises(ServerUnavailable, match=code):
        Store(far.s3).get("x")


@pytest.mark.integration
def test_keys_that_end_are_warned_about(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    """INPUTS 23: a fixed session token is nothing that renews itself."""
    options = {**settings.s3.model_dump(), "session_token": "t"}
    store = Store(type(settings.s3).model_validate(options), Store(settings.s3).s3)
    with caplog.at_level(logging.WARNING, "pigeon.storage"):
        store.check()
    assert "s3.session_token is fixed" in caplog.text


def test_keys_in_files_are_read_again_when_they_are_renewed(
    asked: tuple[int, list[tuple[str, str, str]]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """INPUTS 23: temporary keys that somebody renews; files that are away change nothing."""
    port, seen = asked
    for name in ("access_key_id", "secret_access_key", "session_token"):
        (tmp_path / name).write_text(f"{name}-1\n")
        monkeypatch.setenv(f"PIGEON_S3__{name.upper()}_FILE", str(tmp_path / name))
    settings = Settings.model_validate({"s3": {"endpoint_url": f"http://store.example:{port}"}})
    with closing(Store(settings.s3).s3) as s3:
        store = Store(settings.s3, s3)
        assert store.get("x") is None
        (tmp_path / "session_token").write_text("session_token-2")
        assert store.get("x") is None
        (tmp_path / "session_token").write_text("")  # as one that is being written
        assert store.get("x") is None
        (tmp_path / "session_token").unlink()
        assert store.get("x") is None
    assert [token for _, _, token in seen] == ["session_token-1", *["session_token-2"] * 3]
    with pytest.raises(InputError, match="session_token"):
        Store(settings.s3)
