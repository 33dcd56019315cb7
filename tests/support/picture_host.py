"""A small web server of the tests' own that serves pictures as hosts in the world do.

Slow, busy, moody, redirecting.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import Image


def picture(seed: int = 0, side: int = 32, kind: str = "PNG") -> bytes:
    """A file with a picture that differs for each seed."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


class PictureHost:
    """Serves `pictures` by path, on 127.0.0.1; what else a path does is in `Handler`. A context manager.

    `down` makes it answer 503 to everything, `down_after` from so many questions on.
    `asked` counts the questions by path, `unchanged` the answers 304.
    """

    def __init__(self) -> None:
        self.pictures: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.down = False
        self.down_after = math.inf
        self.etags = True
        self.busy: Counter[str] = Counter()
        """Times that a path still answers `busy_status`."""
        self.busy_status = 503
        self.retry_after = "0"
        self.asked: Counter[str] = Counter()
        self.unchanged = 0
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.end = threading.Event()
        host = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that hang up are what the tests do."""

        class Handler(_Handler):
            own = host

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def url(self, path: str, name: str = "127.0.0.1") -> str:
        """The address of a path."""
        return f"http://{name}:{self.port}{path}"

    def close(self) -> None:
        """Stop; what is asked from now on is refused."""
        self.end.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> PictureHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    own: PictureHost
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        own = self.own
        path = unquote(urlsplit(self.path).path)
        with own.lock:
            own.asked[path] += 1
            own.at_once += 1
            own.most_at_once = max(own.most_at_once, own.at_once)
            own.down = own.down or own.asked.total() > own.down_after
            busy = own.busy[path] > 0
            own.busy[path] -= busy
        try:
            if own.down or busy:
                self._say(503 if own.down else own.busy_status, b"", {"Retry-After": own.retry_after})
            elif not self.headers.get("User-Agent", "").startswith("pigeon-posters/"):
                self._say(403, b"")
            elif path in own.redirects:
                self._say(302, b"", {"Location": own.redirects[path]})
            elif path.startswith("/status/"):
                self._say(int(path.removeprefix("/status/")), b"no")
            elif path == "/drip":
                self._drip()
            elif path == "/drip-headers":
                self._drip_headers()
            elif path == "/hang":
                own.end.wait(200)
            elif path.startswith("/lies/"):
                self._lie(path.removeprefix("/lies/"))
            elif path == "/cut":
                self._cut()
            elif path == "/endless":
                self._endless()
            else:
                self._picture(path)
        finally:
            with own.lock:
                own.at_once -= 1

    def _picture(self, path: str) -> None:
        body = self.own.pictures.get(path)
        if body is None:
            self._say(404, b"<html>not here</html>")
            return
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if self.own.etags and self.headers.get("If-None-Match") == etag:
            self.own.unchanged += 1
            self._say(304, b"")
            return
        headers = {"ETag": etag} if self.own.etags else {}
        if path.startswith("/gzip/"):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        if path.startswith("/lazy/"):
            time.sleep(0.05)
        self._say(200, body, headers)

    def _say(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _lie(self, how: str) -> None:
        """Headers that do not fit the body."""
        body = b"<!doctype html><p>moved" if how == "page" else picture()
        encodings = {"plain": "gzip", "brotli": "br"}
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        if how in encodings:
            self.send_header("Content-Encoding", encodings[how])
        self.send_header("Content-Length", str(len(body) // 2 if how == "short" else len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        while not self.own.end.wait(0.2):
            self.wfile.write(b"x")

    def _drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self.own.end.wait(0.2):
            self.wfile.write(b"x")

    def _cut(self) -> None:
        body = picture()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        bomb = gzip.compress(bytes(64 * 2**20))
        self.wfile.write(bomb)
        self.close_connection = True
