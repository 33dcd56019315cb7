"""S3 behind a proxy that answers by a script: errors, delays, cut bodies, lost answers."""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qs, unquote, urlsplit

Operation = Literal["create", "flip", "put", "get", "head", "list", "delete", "other"]
"""What a request is for; `create` is a PUT with If-None-Match, `flip` one with If-Match."""
OPERATIONS: tuple[Operation, ...] = ("create", "flip", "put", "get", "head", "list", "delete")


@dataclass(frozen=True)
class Asked:
    """A request as the proxy sees it; `key` is a list's prefix."""

    operation: Operation
    key: str

    @classmethod
    def of(cls, handler: BaseHTTPRequestHandler) -> Asked:
        """What a request is for."""
        split = urlsplit(handler.path)
        _, _, key = unquote(split.path).lstrip("/").partition("/")
        query = parse_qs(split.query)
        if "list-type" in query:
            return cls("list", query.get("prefix", [""])[0])
        if handler.command == "PUT":
            headers = handler.headers
            return cls("create" if headers["If-None-Match"] else "flip" if headers["If-Match"] else "put", key)
        found: dict[str, Operation] = {"GET": "get", "HEAD": "head", "DELETE": "delete"}
        return cls(found.get(handler.command, "other"), key)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client; answers "100 Continue" itself."""

    own: S3Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client has hung up
            self.close_connection = True

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self.own.next_answer(Asked.of(self))
        (answer or pass_on)(self, body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815 - the library's names

    def ask(self, body: bytes, sent: int | None = None) -> tuple[int, list[tuple[str, str]], bytes]:
        """The real server's answer; with `sent` it gets so many bytes of the body, then the connection ends."""
        connection = http.client.HTTPConnection(*self.own.target, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in {"expect", "connection"}:
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body[:sent])
        if sent is not None:
            connection.close()
            return 0, [], b""
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, response.getheaders(), data

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int | None = None) -> None:
        """Answer the client; with `sent` the connection ends after so many bytes of the body."""
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"transfer-encoding", "connection", "content-length"}:
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(body)))
        if status not in {204, 304}:
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)


Answer = Callable[[_Handler, bytes], None]


def pass_on(handler: _Handler, body: bytes) -> None:
    """The real server's answer."""
    handler.reply(*handler.ask(body))


def status(number: int, code: str) -> Answer:
    """An error of S3; the real server is not asked."""

    def answer(handler: _Handler, body: bytes) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the script</Message></Error>"
        handler.reply(number, [("Content-Type", "application/xml")], text.encode())

    return answer


def slow(seconds: float) -> Answer:
    """The real answer, later than a client waits."""

    def answer(handler: _Handler, body: bytes) -> None:
        handler.own.end.wait(seconds)
        pass_on(handler, body)

    return answer


def cut(handler: _Handler, body: bytes) -> None:
    """Half of the answer's body; where it has none, half of nothing."""
    found, headers, data = handler.ask(body)
    if data:
        handler.reply(found, headers, data, sent=len(data) // 2)
    else:
        handler.hang_up()


def cut_upload(handler: _Handler, body: bytes) -> None:
    """Half of the request's body reaches the server, then both connections end."""
    handler.ask(body, sent=len(body) // 2)
    handler.hang_up()


def lost(handler: _Handler, body: bytes) -> None:
    """The server does what it was asked, and nobody is told."""
    handler.ask(body)
    handler.hang_up()


@dataclass
class _Rule:
    operation: Operation | None
    key: str
    answer: Answer
    times: int


class S3Proxy:
    """127.0.0.1:`port` in front of an S3 server; a context manager.

    Without a script everything is passed on.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self.asked: list[Asked] = []
        """Every request, those of the script included."""
        self.end = threading.Event()
        self._rules: list[_Rule] = []
        self._first: Callable[[Asked], Answer | None] = lambda asked: None
        self._seen: Counter[Asked] = Counter()
        self._lock = threading.Lock()
        proxy = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Connections that end are what the script does."""

        class Handler(_Handler):
            own = proxy

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end.set()
        self._server.shutdown()
        self._server.server_close()

    def script(self, operation: Operation | None, answer: Answer, *, key: str = "", times: int = 1) -> None:
        """Answer so for the next `times` requests of an operation (None: any) whose key begins with `key`."""
        with self._lock:
            self._rules.append(_Rule(operation, key, answer, times))

    def on_first(self, answer: Callable[[Asked], Answer | None]) -> None:
        """Answer by this function when an operation is asked for on a key for the first time from now on."""
        with self._lock:
            self._seen.clear()
            self._first = answer

    def clear(self) -> None:
        """Pass everything on."""
        with self._lock:
            self._rules.clear()
            self._first = lambda asked: None

    def left(self) -> int:
        """Answers of the script that nobody has got yet."""
        with self._lock:
            return sum(rule.times for rule in self._rules)

    def next_answer(self, asked: Asked) -> Answer | None:
        """What the script has for this request."""
        with self._lock:
            self.asked.append(asked)
            for rule in self._rules:
                if rule.times and rule.operation in {None, asked.operation} and asked.key.startswith(rule.key):
                    rule.times -= 1
                    return rule.answer
            self._seen[asked] += 1
            return self._first(asked) if self._seen[asked] == 1 else None
