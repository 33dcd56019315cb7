"""Hosts that are slow, busy or lying, and where pictures may come from (INPUTS 14, 15).

Public reports: sotoki#252; the rest is read from the code. What is asked of one address at a time: tests/unit/test_fetch.py.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address
from typing import Any

import pytest

from schemas.fetch import Fetcher
from schemas.fetched import Fetched, HostUnavailable, NotModified
from schemas.image_addresses import AddressRules
from schemas.images import ImageProblem, decode
from schemas.settings import ImageSettings, Settings
from tests.support.picture_host import PictureHost, picture

DEADLINE_SECONDS = 2.0


@pytest.fixture
def host() -> Iterator[PictureHost]:
    with PictureHost() as made:
        made.pictures["/a.png"] = picture()
        yield made


@pytest.fixture
def fetch() -> Iterator[Callable[..., Fetched | NotModified]]:
    """Fetch one address with settings of the test's own."""
    made: list[Fetcher] = []

    def one(uri: str, *, seconds: float = 10.0, **images: Any) -> Fetched | NotModified:
        images = {"allowed_networks": ("127.0.0.0/8",), **images}
        made.append(Fetcher(Settings.model_validate({"images": images, "night": {"image_timeout_seconds": seconds}})))
        return made[-1].fetch(uri)

    yield one
    for fetcher in made:
        fetcher.close()


Fetch = Callable[..., Fetched | NotModified]


def test_no_host_keeps_a_fetch_past_its_deadline(
    host: PictureHost, record_property: Callable[[str, object], None]
) -> None:
    """INPUTS 14: 100 fetches from a host that drips, hangs, cuts, is busy, redirects for ever, or answers.

    The figure is reported; that it holds on any machine is what tests/unit/test_fetch.py shows without a clock.
    """
    host.redirects = {"/round": "/round", "/to-drip": "/drip"}
    paths = ["/drip", "/drip-headers", "/to-drip", "/hang", "/cut", "/round", "/status/503", "/status/429", "/a.png"]
    asked = random.Random(14).choices(paths, k=100)
    fetcher = Fetcher(
        Settings.model_validate(
            {
                "images": {"allowed_networks": ("127.0.0.0/8",), "per_host": 16},
                "night": {"image_timeout_seconds": DEADLINE_SECONDS},
            }
        )
    )

    def timed(path: str) -> tuple[str, float]:
        began = time.monotonic()
        try:
            fetcher.fetch(host.url(path))
        except (ImageProblem, HostUnavailable) as error:
            return type(error).__name__, time.monotonic() - began
        return "fetched", time.monotonic() - began

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(timed, asked))
    fetcher.close()
    by_path = {path: {kind for one, (kind, _) in zip(asked, found, strict=True) if one == path} for path in paths}
    assert by_path["/a.png"] <= {"fetched", "HostUnavailable"}
    assert by_path["/round"] <= {"ImageProblem", "HostUnavailable"}
    assert all(by_path[path] == {"HostUnavailable"} for path in paths[:4])
    seconds = sorted(took for _, took in found)
    p99 = seconds[int(0.99 * len(seconds))]
    record_property("fetches", f"p99 {p99:.2f} s, longest {seconds[-1]:.2f} s, deadline {DEADLINE_SECONDS} s")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_host_is_asked_again_at_the_moment_that_it_names(host: PictureHost, fetch: Fetch, status: int) -> None:
    """INPUTS 14: in seconds or as a date; 429 is no property of the picture."""
    for retry_after in ("0", format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)):
        host.busy["/a.png"], host.busy_status, host.retry_after = 2, status, retry_after
        assert isinstance(fetch(host.url("/a.png")), Fetched)
    far = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    host.busy["/a.png"], host.retry_after = 1, far
    with pytest.raises(HostUnavailable, match=str(status)) as error:
        fetch(host.url("/a.png"))
    assert error.value.retry_after is not None
    assert 3_000 < error.value.retry_after <= 3_600


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/lies/short", "damaged|truncated"),  # a length below the body's: the picture is cut
        ("/lies/plain", "cannot be fetched"),  # said to be gzip, and is not
        ("/lies/page", "it is a web page"),
        ("/lies/brotli", "content encoding br is not read"),
    ],
)
def test_a_host_that_lies_costs_its_own_picture(host: PictureHost, fetch: Fetch, path: str, words: str) -> None:
    """INPUTS 14: a picture's own trouble, never a crash."""

    def look() -> None:
        answer = fetch(host.url(path))
        assert isinstance(answer, Fetched)
        decode(answer.body)

    with pytest.raises(ImageProblem, match=words):
        look()
    assert isinstance(fetch(host.url("/a.png")), Fetched)


@pytest.mark.parametrize(
    "address",
    [
        "fec0::1",  # what private networks had before fc00::/7
        "fd12::1",
        "::1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "3fff::1",
        "5f00::1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "100.64.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "240.0.0.1",
    ],
)
def test_no_spelling_of_a_private_address_is_public(address: str) -> None:
    """INPUTS 15 (F13): embedded, mapped, translated and long deprecated forms."""
    with pytest.raises(ImageProblem, match="private address"):
        AddressRules(ImageSettings(), "pigeon").check_ip("img.example", ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1"])
def test_public_addresses_are(address: str) -> None:
    """INPUTS 15 (F13): nothing else is refused with them."""
    AddressRules(ImageSettings(), "pigeon").check_ip("img.example", ip_address(address))


def test_one_private_answer_among_public_ones_is_not_connected_to(
    host: PictureHost, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """INPUTS 15 (F13): a name that leads to several addresses is asked at the allowed ones only."""
    connected: list[str] = []
    through = socket.getaddrinfo

    def connect(self: socket.socket, address: Any) -> None:
        connected.append(address[0])
        socket.socket.connect(self, address)

    monkeypatch.setattr("schemas.deadline_http._Socket.connect", connect, raising=False)
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda name, port, *args, **more: [
            one for ip in ("169.254.169.254", "10.0.0.1", "127.0.0.1") for one in through(ip, port, *args, **more)
        ],
    )
    assert isinstance(fetch(host.url("/a.png", "mixed.example")), Fetched)
    assert connected == ["127.0.0.1"]
