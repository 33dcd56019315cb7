"""The small HTTP server of a long-running part: /metrics, /live and /ready."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Protocol

from schemas.runtime.metrics import registry


class Checks(Protocol):
    """What a part knows of its own health; asked in the server's threads."""

    def alive(self) -> tuple[bool, str]:
        """Whether it makes progress, and why not: False when a restart would help."""

    def ready(self) -> tuple[bool, str]:
        """Whether it can do its work now, and what is in the way."""


class _Handler(BaseHTTPRequestHandler):
    checks: Checks

    def do_GET(self) -> None:
        if self.path == "/metrics":
            from prometheus_client import generate_latest

            self._answer(200, generate_latest(registry()), "text/plain; version=0.0.4; charset=utf-8")
            return
        questions = {"/live": self.checks.alive, "/ready": self.checks.ready}
        if self.path not in questions:
            self._answer(404, b"/metrics, /live, /ready\n")
            return
        good, reason = questions[self.path]()
        self._answer(200 if good else 503, f"{reason}\n".encode())

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # the base class names it so
        """Log nothing: probes come every few seconds."""


def serve(checks: Checks, host: str, port: int) -> ThreadingHTTPServer:
    """Answer /metrics, /live and /ready in the background until `shutdown()`.

    Raises:
        OSError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"checks": checks})
    server = ThreadingHTTPServer((host, port), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="pigeon-health", daemon=True).start()
    return server
