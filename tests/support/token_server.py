"""An OIDC provider of the tests' own: a token endpoint for client credentials, and its keys."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ISSUER, AUDIENCE, KEY_ID = "https://tests.example", "kafka", "one"


def _encoded(value: bytes | dict[str, Any]) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(text).rstrip(b"=").decode()


class TokenServer:
    """127.0.0.1:`port`, `/token` and `/keys`; a context manager."""

    def __init__(self, folder: Path, client: str, secret: str) -> None:
        self._key = folder / "token.key"
        subprocess.run(
            ["openssl", "genrsa", "-traditional", "-out", str(self._key), "2048"], check=True, capture_output=True
        )
        modulus = subprocess.run(
            ["openssl", "rsa", "-in", str(self._key), "-noout", "-modulus"], check=True, capture_output=True, text=True
        ).stdout.partition("=")[2]
        self._modulus = bytes.fromhex(modulus.strip())
        self._login = "Basic " + base64.b64encode(f"{client}:{secret}".encode()).decode()
        self._client = client
        self.lifetime_seconds = 300.0
        self.given = 0
        own = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                key = {
                    "kty": "RSA",
                    "kid": KEY_ID,
                    "alg": "RS256",
                    "use": "sig",
                    "e": "AQAB",
                    "n": _encoded(own._modulus),
                }
                self.answer(200, {"keys": [key]})

            def do_POST(self) -> None:
                form = self.rfile.read(int(self.headers["Content-Length"])).decode()
                if self.headers["Authorization"] != own._login or "grant_type=client_credentials" not in form:
                    self.answer(401, {"error": "invalid_client", "error_description": "no such client"})
                    return
                own.given += 1
                self.answer(200, {"access_token": own.token(), "expires_in": own.lifetime_seconds})

            def answer(self, status: int, told: dict[str, Any]) -> None:
                body = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]

    def token(self) -> str:
        """A JWT of the client, signed."""
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": self._client,
            "scope": "kafka",
            "iat": now,
            "exp": now + int(self.lifetime_seconds),
        }
        text = f"{_encoded({'alg': 'RS256', 'typ': 'JWT', 'kid': KEY_ID})}.{_encoded(claims)}"
        signature = subprocess.run(
            ["openssl", "dgst", "-sha256", "-sign", str(self._key)],
            input=text.encode(),
            check=True,
            capture_output=True,
        ).stdout
        return f"{text}.{_encoded(signature)}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
