"""HTTP on urllib3 with one deadline for everything that a thread does.

And connections only to addresses that were checked.

A timeout of urllib3 holds for each read alone, so a host that sends a byte now and then is never given up. Here every wait
(name lookup, connecting, TLS, headers, body) ends at the deadline that `deadline` sets for the thread.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from schemas.deadline_work import DeadlinePassed, await_until
from schemas.image_addresses import Ip
from schemas.images import ImageProblem

if TYPE_CHECKING:
    from urllib3 import PoolManager

CheckIp = Callable[[str, Ip], None]
"""Raises ImageProblem for an address that a host's name may not lead to."""

SHORTEST_CONNECT_SECONDS = 1.0
"""Seconds that each of a host's addresses gets before the next one is tried, while the deadline allows."""

_clock = threading.local()


class TryAgain(Exception):
    """Something that may be better at the next attempt: a busy or failing host, a broken connection."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


@contextlib.contextmanager
def deadline(end: float) -> Iterator[None]:
    """Let everything that this thread waits for in the block end at `end` (time.monotonic)."""
    _clock.end = end
    try:
        yield
    finally:
        del _clock.end


def remaining() -> float:
    """Seconds left to this thread.

    Raises:
        DeadlinePassed: none.
    """
    left: float = _clock.end - time.monotonic()
    if left <= 0:
        raise DeadlinePassed("the deadline has passed")
    return left


class _Socket(socket.socket):
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(remaining())
        return super().recv_into(*args, **kwargs)


class _SecureSocket(ssl.SSLSocket):
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self.settimeout(remaining())
        return super().recv_into(*args, **kwargs)


def pool_manager(check_ip: CheckIp, *, proxy: str | None, per_host: int) -> PoolManager:
    """Connections that all threads use again, each one to an address that `check_ip` let pass.

    With a proxy they lead to the proxy; where it goes is decided by the list of hosts.
    """
    import urllib3
    from urllib3.connection import HTTPConnection, HTTPSConnection

    if proxy:
        check_ip = _anything

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, check_ip)

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            return _connect(self._dns_host, self.port, check_ip)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Secure

    options: dict[str, Any] = {"num_pools": 64, "maxsize": per_host, "block": False, "ssl_context": _tls()}
    manager: PoolManager = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}
    return manager


def _anything(host: str, ip: Ip) -> None:
    """Let every address pass."""


def _tls() -> ssl.SSLContext:
    from urllib3.util.ssl_ import create_urllib3_context

    context = create_urllib3_context()
    context.load_default_certs()
    paths = ssl.get_default_verify_paths()
    if not (paths.cafile or paths.capath):  # a small container: the certificates that boto3 brings
        from botocore.httpsession import get_cert_path

        context.load_verify_locations(get_cert_path(True))
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        context.load_verify_locations(bundle)
    context.sslsocket_class = _SecureSocket
    return context


def _connect(host: str, port: int | None, check_ip: CheckIp) -> socket.socket:
    """Connect to the first of a host's addresses that is allowed and answers.

    Raises:
        ImageProblem: none of them is allowed.
        OSError: none answers, or the name cannot be resolved (socket.gaierror).
    """
    allowed = []
    refused: ImageProblem | None = None
    for family, address in _resolve(host.strip("[]"), port or 80):
        try:
            check_ip(host.strip("[]"), ip_address(address[0].partition("%")[0]))
        except ImageProblem as problem:
            refused = problem
        else:
            allowed.append((family, address))
    failure: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
    if not allowed and refused:
        raise refused
    for number, (family, address) in enumerate(allowed):
        connection = _Socket(family, socket.SOCK_STREAM)
        try:
            share = remaining() / (len(allowed) - number)
            connection.settimeout(min(remaining(), max(share, SHORTEST_CONNECT_SECONDS)))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.connect(address)
            connection.settimeout(remaining())  # the TLS handshake as a whole is held to this
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure


def _resolve(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    """(family, socket address) of a host; a lookup has no timeout."""

    def look_up() -> list[tuple[int, tuple[Any, ...]]]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(int(family), address) for family, _, _, _, address in found]

    try:
        return await_until(time.monotonic() + remaining(), look_up, "pigeon-lookup")
    except DeadlinePassed:
        raise DeadlinePassed(f"looking up {host} took too long") from None


def judged(error: Exception) -> Exception:
    """What a failed question tells: about the address itself, or that the host is away."""
    from urllib3 import exceptions

    if isinstance(error, (exceptions.LocationParseError, exceptions.DecodeError)):
        return ImageProblem(one_line(f"cannot be fetched: {error}"))
    inner: BaseException = error
    while isinstance(inner, exceptions.HTTPError):
        deeper = next((arg for arg in reversed(inner.args) if isinstance(arg, BaseException)), None) or inner.__cause__
        if deeper is None:
            break
        inner = deeper
    if isinstance(inner, ImageProblem):
        return inner
    if isinstance(inner, TimeoutError):  # ours says where the time went
        where = f": {inner}" if isinstance(inner, DeadlinePassed) else ""
        return TryAgain(f"not answered in time (setting night.image_timeout_seconds){where}")
    return TryAgain(one_line(f"{type(inner).__name__}: {inner}"))


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a number or a date."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def one_line(text: str) -> str:
    """The first 200 characters of a text in one line, without what a database does not store."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:200]
