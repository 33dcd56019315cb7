"""The HTTP server of a long-running part, over any part's own checks."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from prometheus_client import Counter

from schemas.runtime.health import serve
from schemas.runtime.metrics import registry


class Checks:
    """A part that is alive, and ready when it is told so."""

    def __init__(self) -> None:
        self.problem = "not started"

    def alive(self) -> tuple[bool, str]:
        return True, "ok"

    def ready(self) -> tuple[bool, str]:
        return not self.problem, self.problem or "ok"


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_it_answers_liveness_readiness_and_metrics():
    checks = Checks()
    counter = Counter("pigeon_test_answers", "Of this test.", registry=registry())
    server = serve(checks, "127.0.0.1", 0)
    try:
        port = server.server_address[1]
        assert get(port, "/live") == (200, "ok\n")
        assert get(port, "/ready") == (503, "not started\n")
        checks.problem = ""
        assert get(port, "/ready") == (200, "ok\n")
        counter.inc()
        status, text = get(port, "/metrics")
        assert status == 200
        assert "pigeon_test_answers_total 1.0" in text
        assert "process_resident_memory_bytes" in text
        assert get(port, "/elsewhere")[0] == 404
        with pytest.raises(OSError, match="in use"):
            serve(checks, "127.0.0.1", port)
    finally:
        registry().unregister(counter)
        server.shutdown()
        server.server_close()
