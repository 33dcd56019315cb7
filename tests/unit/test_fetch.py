"""The fetcher of catalogue pictures, against a web server of the tests' own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from schemas.fetch import OWN_SHARE, Fetcher, agent
from schemas.fetched import Fetched, HostUnavailable, Known, NotModified
from schemas.image_files import read_file
from schemas.images import ImageProblem
from schemas.settings import Settings
from tests.support.picture_host import PictureHost, picture


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with PictureHost() as made:
        made.pictures["/a.png"] = picture()
        yield made


def fetcher(*, files: bool = False, seconds: float = 2.0, limit: int = 2**20, **images: Any) -> Fetcher:
    return Fetcher(
        Settings.model_validate(
            {
                "images": {"allowed_networks": ("127.0.0.0/8",), **images},
                "night": {"image_timeout_seconds": seconds, "max_image_bytes": limit},
            }
        ),
        files=files,
    )


def fetched(uri: str, known: Known | None = None, **options: Any) -> Fetched | NotModified:
    made = fetcher(**options)
    try:
        return made.fetch(uri, known)
    finally:
        made.close()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names of the test's own, with their addresses; every other name is unknown."""
    table: dict[str, list[str]] = {}
    true = socket.getaddrinfo

    def look_up(name: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if name not in table:
            return true(name, port, *args, flags=socket.AI_NUMERICHOST, **kwargs)
        return [entry for ip in table[name] for entry in true(ip, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


def test_a_picture_is_fetched_once_and_then_only_asked_about(host: PictureHost) -> None:
    made = fetcher()
    first = made.fetch(host.url("/a.png"))
    assert isinstance(first, Fetched)
    assert first.body == picture()
    assert isinstance(made.fetch(host.url("/a.png"), Known(first.etag)), NotModified)
    host.pictures["/a.png"] = picture(1)
    again = made.fetch(host.url("/a.png"), Known(first.etag))
    assert isinstance(again, Fetched)
    assert again.body == picture(1)
    made.close()


def test_we_say_who_we_are() -> None:
    assert agent().startswith("pigeon-posters")


@pytest.mark.parametrize("path", ["/drip", "/drip-headers", "/hang"])
def test_a_host_that_sends_a_byte_now_and_then_or_nothing_is_given_up_while_it_does(
    host: PictureHost, path: str
) -> None:
    with pytest.raises(HostUnavailable, match="not answered in time"):
        fetched(host.url(path), seconds=0.5)
    assert host.at_once == 1, "it is still at it"


STEPS = {
    "the lookup": ("socket.getaddrinfo", "http://img.example/a.png", r"looking up img\.example took too long"),
    "the connection": ("schemas.deadline_http._Socket.connect", "http://127.0.0.1:1/a.png", "not answered in time"),
    "the handshake": ("ssl.SSLSocket.do_handshake", "https://127.0.0.1:{port}/a.png", "not answered in time"),
    "the question": ("http.client.HTTPConnection.endheaders", "http://127.0.0.1:{port}/a.png", "not answered in time"),
    "the answer": ("http.client.HTTPResponse.begin", "http://127.0.0.1:{port}/a.png", "not answered in time"),
    "the body": ("urllib3.response.HTTPResponse.read", "http://127.0.0.1:{port}/a.png", "not answered in time"),
    "the keys of S3": ("schemas.signed_objects.Signer.sign", "s3://pigeon/a.png", "not answered in time"),
    "the disk": ("schemas.fetch.read_file", "file:///a.png", "not answered in time"),
}
"""What a fetch waits for: the function that does it, an address that needs it, and what is said."""


@pytest.mark.parametrize("step", STEPS)
def test_whatever_hangs_a_fetch_is_given_up_at_its_deadline(
    host: PictureHost, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """INPUTS 14: no step is trusted to end by itself; nothing here depends on how quick the machine is."""
    name, uri, words = STEPS[step]
    started, end = threading.Event(), threading.Event()

    def hang(*args: Any, **kwargs: Any) -> None:
        started.set()
        end.wait()
        raise OSError("over")

    monkeypatch.setattr(name, hang)
    made = fetcher(files=True, seconds=0.5)
    with pytest.raises(HostUnavailable, match=words):
        made.fetch(uri.format(port=host.port))
    assert started.is_set()
    assert not end.is_set(), "it hangs still"
    monkeypatch.undo()
    assert isinstance(made.fetch(host.url("/a.png")), Fetched), "and keeps nobody else"
    end.set()
    made.close()


def test_every_wait_of_a_fetch_ends_before_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """INPUTS 14: on a clock that only waits move, no wait reaches past the fetch's own end."""
    now, waits = [100.0], list[float]()

    def wait(self: Any, *args: Any, **kwargs: Any) -> None:
        waits.append(self.gettimeout())
        now[0] += self.gettimeout()
        raise TimeoutError("timed out")

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    for module in ("fetch", "deadline_http"):
        monkeypatch.setattr(f"schemas.{module}.time", clock)
    monkeypatch.setattr("schemas.deadline_http._Socket.connect", wait)
    monkeypatch.setattr(
        "schemas.deadline_http._resolve", lambda host, port: [(2, (f"127.0.0.{n}", port)) for n in range(1, 9)]
    )
    monkeypatch.setattr("schemas.fetch.await_until", lambda end, work, name: work())
    with pytest.raises(HostUnavailable, match="not answered in time"):
        fetched("http://img.example/a.png", seconds=10.0, allowed_hosts=("img.example",))
    assert len(waits) == 8
    assert now[0] == pytest.approx(100.0 + OWN_SHARE * 10.0)


def test_a_busy_host_is_asked_again_when_it_says(host: PictureHost) -> None:
    host.busy["/a.png"] = 2
    assert isinstance(fetched(host.url("/a.png")), Fetched)
    assert host.asked["/a.png"] == 3


def test_a_host_that_wants_us_back_after_the_deadline_is_not_waited_for(host: PictureHost) -> None:
    host.busy["/a.png"], host.retry_after = 1, "3600"
    with pytest.raises(HostUnavailable, match="503") as error:
        fetched(host.url("/a.png"))
    assert error.value.retry_after == 3600
    assert host.asked["/a.png"] == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_trouble_of_the_host_is_an_outage_that_names_it(host: PictureHost, status: int) -> None:
    with pytest.raises(HostUnavailable, match=rf"127\.0\.0\.1:{host.port}: answers {status}"):
        fetched(host.url(f"/status/{status}"), seconds=10)
    assert host.asked[f"/status/{status}"] == 3


@pytest.mark.parametrize("status", [204, 206, 304, 401, 403, 404, 410, 418])
def test_trouble_of_the_picture_is_its_own(host: PictureHost, status: int) -> None:
    with pytest.raises(ImageProblem, match=str(status)):
        fetched(host.url(f"/status/{status}"))
    assert host.asked[f"/status/{status}"] == 1


def test_nobody_listening_no_such_name_and_a_cut_body_are_outages(
    host: PictureHost, names: dict[str, list[str]]
) -> None:
    with pytest.raises(HostUnavailable, match="IncompleteRead"):
        fetched(host.url("/cut"), seconds=10)
    with pytest.raises(HostUnavailable, match="gaierror"):
        fetched("http://nowhere.example/a.png", seconds=10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(HostUnavailable, match="refused"):
            fetched(f"http://127.0.0.1:{port}/a.png", seconds=10)


def test_compressed_bodies_are_read_and_bombs_are_not(host: PictureHost) -> None:
    host.pictures["/gzip/a.png"] = picture()
    got = fetched(host.url("/gzip/a.png"))
    assert isinstance(got, Fetched)
    assert got.body == picture()
    with pytest.raises(ImageProblem, match=r"larger than 1048576 bytes \(setting night.max_image_bytes\)"):
        fetched(host.url("/endless"), seconds=10)


def test_a_picture_over_the_limit_is_refused(host: PictureHost) -> None:
    host.pictures["/big"] = bytes(2000)
    with pytest.raises(ImageProblem, match="larger than 1024 bytes"):
        fetched(host.url("/big"), limit=1024)
    host.pictures["/none"] = b""
    with pytest.raises(ImageProblem, match="empty"):
        fetched(host.url("/none"))


@pytest.mark.parametrize(
    "path",
    [
        "/my poster.png",
        "/плакат.png",
        "/100%.png",
        "/a%20b.png",
        "/[a]|{b}^.png",
        "/a'b+c~d.png",
        "/x.png?w=1 2&é=ü#top",
    ],
)
def test_addresses_are_quoted_as_a_browser_does(host: PictureHost, path: str) -> None:
    from urllib.parse import unquote

    served = unquote(path.partition("?")[0])
    host.pictures[served] = picture()
    assert isinstance(fetched(f" {host.url(path)}\n"), Fetched)


def test_redirects_are_followed_but_not_for_ever(host: PictureHost) -> None:
    host.redirects = {"/old": "/älter.png?x", "/round": "/round", "/away": "file:///etc/passwd", "/odd": "http://[::1"}
    host.pictures["/älter.png"] = picture()
    assert isinstance(fetched(host.url("/old")), Fetched)
    for path, words in (("/round", "redirects more than"), ("/away", "not http"), ("/odd", "bad address")):
        with pytest.raises(ImageProblem, match=words):
            fetched(host.url(path))


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[fe80::1]/",
        "http://[::ffff:169.254.169.254]/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://2852039166/",  # 169.254.169.254 as one number
        "http://100.100.100.200/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://metadata.example/",
    ],
)
def test_metadata_is_never_asked_neither_first_nor_after_a_redirect(
    host: PictureHost, names: dict[str, list[str]], target: str
) -> None:
    names["metadata.example"] = ["169.254.169.254"]
    host.redirects["/go"] = target
    everything = {"allowed_networks": ("0.0.0.0/0", "::/0"), "allowed_hosts": ("*", "metadata.example", "127.0.0.1")}
    for uri in (target, host.url("/go")):
        with pytest.raises(ImageProblem, match="never asked"):
            fetched(uri, **everything)


@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/", "http://[fd00::1]/", "http://localhost.example/", "http://127.1/"]
)
def test_private_addresses_are_refused_unless_allowed(
    host: PictureHost, names: dict[str, list[str]], target: str
) -> None:
    names["localhost.example"] = ["127.0.0.1"]
    with pytest.raises(ImageProblem, match="private address"):
        fetched(target, allowed_networks=())


def test_a_named_host_may_be_private_and_a_list_of_hosts_is_all_there_is(
    host: PictureHost, names: dict[str, list[str]]
) -> None:
    names["img.example"] = names["a.cdn.example"] = names["other.example"] = ["127.0.0.1"]
    for name, allowed in (("img.example", "IMG.example"), ("a.cdn.example", "*.cdn.example")):
        got = fetched(host.url("/a.png", name), allowed_networks=(), allowed_hosts=(allowed,))
        assert isinstance(got, Fetched)
    with pytest.raises(ImageProblem, match=r"other.example is not allowed \(setting images.allowed_hosts\)"):
        fetched(host.url("/a.png", "other.example"), allowed_hosts=("img.example",))
    with pytest.raises(ImageProblem, match="private"):
        fetched(host.url("/a.png", "other.example"), allowed_networks=(), allowed_hosts=("*", "img.example"))


def test_the_address_that_was_checked_is_the_one_connected_to(
    host: PictureHost, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["turning.example"] = ["127.0.0.1"]
    asked: list[str] = []
    through = socket.getaddrinfo

    def turning(name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        found = through(name, *args, **kwargs)
        names["turning.example"] = ["169.254.169.254"]
        return found

    monkeypatch.setattr(socket, "getaddrinfo", turning)
    assert isinstance(fetched(host.url("/a.png", "turning.example")), Fetched)
    assert asked == ["turning.example"]


def test_the_second_address_of_a_host_is_tried(host: PictureHost, names: dict[str, list[str]]) -> None:
    names["two.example"] = ["10.255.255.1", "127.0.0.2", "127.0.0.1"]  # refused, nobody there, there
    assert isinstance(fetched(host.url("/a.png", "two.example")), Fetched)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "http://",
        "http:///a.png",
        "http://a..b/",
        "http://exa mple/",
        "http://host:99999/",
        "http://[::1/",
        "http://user:secret@127.0.0.1/",
        "ftp://127.0.0.1/a",
        "javascript:alert(1)",
        "s3://bucket",
        "s3://",
        "s3://other/a.png",
        "data:image/png;base64,AAAA",
        "http://" + "a" * 300 + "/",
        "http://x/" + "a" * 3000,
        "http://\udcff/",
        "\x00",
        "//host/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
def test_what_is_no_address_or_not_allowed_is_the_pictures_own_trouble(uri: str) -> None:
    with pytest.raises(ImageProblem) as error:
        fetched(uri)
    assert "secret" not in str(error.value)


def test_any_surprise_is_one_of_the_two(host: PictureHost, monkeypatch: pytest.MonkeyPatch) -> None:
    def surprise(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("never seen\nbefore")

    monkeypatch.setattr("schemas.fetch.Fetcher._picture", surprise)
    with pytest.raises(ImageProblem, match="RuntimeError: never seen before"):
        fetched(host.url("/a.png"))


def test_one_host_is_asked_by_a_few_at_a_time(host: PictureHost) -> None:
    made = fetcher(per_host=2, seconds=20)
    for number in range(12):
        host.pictures[f"/lazy/{number}"] = picture(number)
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(made.fetch, [host.url(f"/lazy/{number}") for number in range(12)]))
    made.close()
    assert [one.body for one in got if isinstance(one, Fetched)] == [picture(number) for number in range(12)]
    assert host.most_at_once <= 2


def test_files_are_read_where_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(picture())
    for uri in (f"file://{tmp_path}/a%20b.png", str(tmp_path / "a b.png")):
        first = fetched(uri, files=True)
        assert isinstance(first, Fetched)
        assert first.body == picture()
        assert isinstance(fetched(uri, Known(first.etag), allowed_schemes=("file",)), NotModified)
    (tmp_path / "a b.png").write_bytes(picture(1))
    assert isinstance(fetched(uri, Known(first.etag), files=True), Fetched)


def test_pipes_folders_and_large_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(2000))
    (tmp_path / "empty").touch()
    for name, words in (("pipe", "not a file"), ("", "not a file|directory"), ("large", "larger"), ("empty", "empty")):
        with pytest.raises(ImageProblem, match=words):
            read_file(tmp_path / name, 1024)
    with pytest.raises(ImageProblem, match="No such file"):
        read_file(tmp_path / "none", 1024)
    with pytest.raises(ImageProblem, match="cannot read"):
        read_file("a\x00b", 1024)


def test_behind_a_proxy_the_list_of_hosts_decides(host: PictureHost) -> None:
    through = {"proxy": f"http://127.0.0.1:{host.port}", "allowed_hosts": ("img.example",)}
    assert isinstance(fetched("http://img.example/a.png", **through), Fetched)
    with pytest.raises(ImageProblem, match="not allowed"):
        fetched("http://other.example/a.png", **through)
    with pytest.raises(ValueError, match="needs images"):
        fetcher(proxy="http://127.0.0.1:1")
