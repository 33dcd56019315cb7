"""The one fetcher of catalogue pictures, for import and night.

Http(s), s3 and file addresses within limits.

Two errors, and nothing else, come out of it: `ImageProblem`, a property of the picture, and `HostUnavailable`, an outage.
urllib3 and boto3 are imported inside functions, so that this module is light to import.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from typing import TYPE_CHECKING, Any

from schemas.deadline_http import (
    TryAgain,
    deadline,
    judged,
    one_line,
    pool_manager,
    remaining,
    retry_after,
)
from schemas.deadline_work import DeadlinePassed, await_until
from schemas.fetched import Fetched, HostUnavailable, Known, NotModified
from schemas.image_addresses import (
    Address,
    AddressRules,
    BucketAddress,
    FileAddress,
    Ip,
    WebAddress,
    follow,
    parse_address,
)
from schemas.image_files import LOCAL_FILES, read_file, too_large
from schemas.images import ImageProblem
from schemas.settings import Settings
from schemas.signed_objects import KEYS_REFUSED, NoKeys, Signer

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

MAX_REDIRECTS = 5
FIRST_WAIT_SECONDS = 0.2
OWN_SHARE = 0.9
"""Share of a fetch's time after which each of its own waits ends, so that it can still say which one it was."""
WAITED_SHARE = 0.95
"""Share of a fetch's time for which it is waited for, whatever it does; the rest is for giving up."""
CHUNK_BYTES = 64 * 2**10
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others a moment later."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Fetcher:
    """Fetches pictures as the settings images.* and night.{max_image_bytes, image_timeout_seconds} allow.

    Safe to use from several threads. `files` lets it read paths of this machine whatever images.allowed_schemes says.
    """

    def __init__(self, settings: Settings, *, files: bool = False) -> None:
        self._images = settings.images
        self._s3 = settings.s3
        self._limit = settings.night.max_image_bytes
        self._seconds = settings.night.image_timeout_seconds
        self._rules = AddressRules(settings.images, settings.s3.bucket, files=files)
        self._lock = threading.Lock()
        self._slots: dict[str, threading.BoundedSemaphore] = {}
        self._pools: dict[str, PoolManager] = {}
        self._signer = Signer(settings.s3)
        self._pool("web")  # its libraries and certificates take a while: not out of a picture's time

    def host(self, uri: str) -> str:
        """Return who is asked for a picture, as outages name it; the text itself where it is no address."""
        try:
            address = parse_address(uri)
        except ImageProblem:
            return uri[:100]
        if isinstance(address, WebAddress):
            return address.netloc
        return LOCAL_FILES if isinstance(address, FileAddress) else f"S3 at {self._s3.endpoint_url or 'AWS'}"

    def check(self, uri: str) -> None:
        """Refuse an address that may not be fetched; asks nobody.

        Raises:
            ImageProblem: it is none, or a setting does not allow it.
        """
        self._rules.check(parse_address(uri))

    def fetch(self, uri: str, known: Known | None = None) -> Fetched | NotModified:
        """Fetch a picture's bytes, or learn that they are the known ones.

        Takes at most night.image_timeout_seconds, whatever hangs: it is done in a thread of its own, which is waited for no
        longer. Not counted is the wait for other fetches from this host.

        Raises:
            ImageProblem: there is no such picture, it is too large, empty or not allowed.
            HostUnavailable: the host is away, too slow or too busy, also after images.attempts attempts.
        """
        host = self.host(uri)
        try:
            address = parse_address(uri)
            self._rules.check(address)
            with self._slot(host):
                began = time.monotonic()
                own_end = began + OWN_SHARE * self._seconds
                return await_until(
                    began + WAITED_SHARE * self._seconds,
                    lambda: self._got(address, host, known or Known(), own_end),
                    "pigeon-fetch",
                )
        except (ImageProblem, HostUnavailable):
            raise
        except DeadlinePassed as error:
            raise HostUnavailable(
                host, f"not answered in time (setting night.image_timeout_seconds): {error}"
            ) from None
        except Exception as error:  # one address must never end a night
            raise ImageProblem(one_line(f"cannot be fetched: {type(error).__name__}: {error}")) from error

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for pool in self._pools.values():
                pool.clear()
            self._pools.clear()
        self._signer.close()

    @contextlib.contextmanager
    def _slot(self, host: str) -> Any:
        with self._lock:
            slot = self._slots.setdefault(host, threading.BoundedSemaphore(self._images.per_host))
        with slot:
            yield

    def _got(self, address: Address, host: str, known: Known, end: float) -> Fetched | NotModified:
        if isinstance(address, FileAddress):
            return read_file(address.path, self._limit, known)
        with deadline(end):
            return self._patiently(address, host, known)

    def _patiently(self, address: WebAddress | BucketAddress, host: str, known: Known) -> Fetched | NotModified:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(1, self._images.attempts + 1):
            try:
                if isinstance(address, BucketAddress):
                    return self._object(address, known)
                return self._page(address, known)
            except TryAgain as error:
                pause = error.retry_after if error.retry_after is not None else wait * random.uniform(0.5, 1)
                try:
                    hopeless = attempt == self._images.attempts or pause >= remaining()
                except DeadlinePassed:
                    hopeless = True
                if hopeless:
                    raise HostUnavailable(host, error.reason, retry_after=error.retry_after) from error
            time.sleep(pause)
            wait *= 2
        raise AssertionError("unreachable")

    def _page(self, address: WebAddress, known: Known) -> Fetched | NotModified:
        pool = self._pool("web")
        for _ in range(MAX_REDIRECTS + 1):
            with self._answer(pool, address.url, known) as answer:
                location = answer.headers.get("Location")
                if answer.status not in _REDIRECTS or not location:
                    return self._picture(answer, known)
            address = follow(address, location)
            self._rules.check(address)
        raise ImageProblem(f"redirects more than {MAX_REDIRECTS} times")

    def _object(self, address: BucketAddress, known: Known) -> Fetched | NotModified:
        region = self._s3.region
        for _ in range(2):
            with self._answer(self._pool("s3"), self._signed(address, region), known) as answer:
                if answer.status in {200, 304}:
                    return self._picture(answer, known)
                elsewhere = answer.headers.get("x-amz-bucket-region")
                if answer.status in {301, 307, 400} and elsewhere and elsewhere != region:
                    region = elsewhere
                    continue
                told = answer.read(4096, decode_content=True).decode("utf-8", "replace")
                if code := next((code for code in KEYS_REFUSED if code in told), None):
                    raise TryAgain(f"{code} (settings s3.access_key_id, s3.secret_access_key, or the clock)")
                return self._picture(answer, known)
        raise ImageProblem(f"bucket {address.bucket} is in no region that answers (setting s3.region)")

    @contextlib.contextmanager
    def _answer(self, pool: PoolManager, url: str, known: Known) -> Any:
        """One question, without following redirects.

        The connection is kept only when the answer was read to its end.
        """
        import urllib3

        headers = {"User-Agent": agent(), "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "gzip, deflate"}
        if known.etag:
            headers["If-None-Match"] = known.etag
        if known.last_modified:
            headers["If-Modified-Since"] = known.last_modified
        answer: BaseHTTPResponse | None = None
        try:
            answer = pool.request(
                "GET",
                url,
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                timeout=urllib3.Timeout(connect=remaining(), read=remaining()),
            )
            yield answer
        except (OSError, urllib3.exceptions.HTTPError) as error:
            raise judged(error) from error
        finally:
            if answer is not None:
                answer.close()
                answer.release_conn()

    def _picture(self, answer: BaseHTTPResponse, known: Known) -> Fetched | NotModified:
        status = answer.status
        if status == 304 and (known.etag or known.last_modified):
            answer.read()  # there is no body; this gives the connection back
            return NotModified()
        if status in _BUSY or status >= 500:
            raise TryAgain(f"answers {status}", retry_after(answer.headers.get("Retry-After")))
        if status == 407:
            raise TryAgain("the proxy wants a login (setting images.proxy)")
        if status in {404, 410}:
            raise ImageProblem(f"there is no such picture (answer {status})")
        if status in {401, 403, 451}:
            raise ImageProblem(f"the host refuses it (answer {status})")
        if status != 200:
            raise ImageProblem(f"the host answers {status}")
        encoding = (answer.headers.get("Content-Encoding") or "identity").lower()
        if not set(encoding.replace(" ", "").split(",")) <= {"identity", "gzip", "x-gzip", "deflate", ""}:
            raise ImageProblem(f"content encoding {encoding} is not read")
        body = self._body(answer, encoded=encoding != "identity")
        return Fetched(body, _tag(answer.headers.get("ETag")), _tag(answer.headers.get("Last-Modified")))

    def _body(self, answer: BaseHTTPResponse, *, encoded: bool) -> bytes:
        told = answer.headers.get("Content-Length", "")
        if not encoded and told.isdigit() and int(told) > self._limit:
            raise too_large(self._limit)
        body = bytearray()
        while chunk := answer.read(CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > self._limit:
                raise too_large(self._limit)
            remaining()
        if not body:
            raise ImageProblem("is empty")
        return bytes(body)

    def _pool(self, kind: str) -> PoolManager:
        with self._lock:
            if kind not in self._pools:
                own = (
                    kind == "s3"
                )  # its address is a setting, so it is trusted, and never behind the proxy for pictures
                self._pools[kind] = pool_manager(
                    _trusted if own else self._rules.check_ip,
                    proxy=None if own else self._images.proxy,
                    per_host=self._images.per_host,
                )
            return self._pools[kind]

    def _signed(self, address: BucketAddress, region: str) -> str:
        try:
            return self._signer.sign(address.bucket, address.key, region)
        except NoKeys as error:
            raise TryAgain(f"no S3 keys (settings s3.access_key_id, s3.secret_access_key): {error}") from error


def agent() -> str:
    """Return the name under which we ask: pigeon-posters/<version>."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"pigeon-posters/{version('pigeon-posters')}"
    except PackageNotFoundError:
        return "pigeon-posters"


def _trusted(host: str, ip: Ip) -> None:
    """The operator's own store may be anywhere."""


def _tag(value: str | None) -> str | None:
    """A header's value when it can be stored and sent back as it is."""
    return value if value and len(value) <= 1024 and value.isprintable() else None
