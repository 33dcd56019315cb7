"""A broker of the tests' own that lets in who signs as AWS IAM wants it, over TLS.

Apache Kafka cannot check these logins: what is sent is a signed address, not a token.
"""

from __future__ import annotations

import json
import socketserver
import ssl
import struct
import threading
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from botocore.auth import SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, MetadataResponse
from kafka.protocol.sasl import (
    SaslAuthenticateRequest,
    SaslAuthenticateResponse,
    SaslHandshakeRequest,
    SaslHandshakeResponse,
)

MECHANISM = "AWS_MSK_IAM"
KNOWN = {
    3: (MetadataRequest, 7),
    17: (SaslHandshakeRequest, 1),
    18: (ApiVersionsRequest, 2),
    36: (SaslAuthenticateRequest, 1),
}
"""Number of each question -> its class and the last version of it that is understood."""


class IamBroker:
    """Knows `secrets` (access key -> secret key) of one region. A context manager.

    `seen` is what clients have sent.
    """

    def __init__(self, certificate: Path, key: Path, secrets: dict[str, str], region: str) -> None:
        self.secrets, self.region = secrets, region
        self.lifetime_ms = 0
        """Milliseconds after which a client must have logged in again."""
        self.seen: list[dict[str, str]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        broker = self

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                connection, address = super().get_request()
                return context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that hang up are what the tests do."""

        class Handler(_Handler):
            own = broker

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def __enter__(self) -> IamBroker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def problem(self, said: dict[str, str]) -> str | None:
        """What is wrong with a login; the signature is compared with botocore's own."""
        key, _, scope = said["x-amz-credential"].partition("/")
        day, region, service, _ = scope.split("/")
        if (region, service, said["host"]) != (self.region, "kafka-cluster", "127.0.0.1"):
            return f"signed for {service} of {region} at {said['host']}"
        if key not in self.secrets:
            return "unknown key"
        wanted = _signature(said, key, self.secrets[key], region)
        return None if said["x-amz-signature"] == wanted and said["x-amz-date"].startswith(day) else "wrong signature"


def _signature(said: dict[str, str], key: str, secret: str, region: str) -> str:
    credentials = Credentials(key, secret, said.get("x-amz-security-token"))
    auth = SigV4QueryAuth(credentials, "kafka-cluster", region, expires=int(said["x-amz-expires"]))
    request = AWSRequest("GET", f"https://{said['host']}/?{urlencode({'Action': said['action']})}")
    request.context["timestamp"] = said["x-amz-date"]
    auth._modify_request_before_signing(request)
    canonical = auth.canonical_request(request)
    signature: str = auth.signature(auth.string_to_sign(request, canonical), request)
    assert "X-Amz-Credential" in parse_qs(urlsplit(request.url).query)
    return signature


class _Handler(socketserver.StreamRequestHandler):
    own: IamBroker

    def handle(self) -> None:
        while len(size := self.rfile.read(4)) == 4:
            body = self.rfile.read(struct.unpack(">i", size)[0])
            number, version = struct.unpack(">hh", body[:4])
            question, last = KNOWN[number]
            if version > last:  # only questions for the versions come so
                answer, version = self._versions(error=35), 0
                correlation = struct.unpack(">i", body[4:8])[0]
            else:
                asked = question.decode(body, version=version, header=True)
                answer, correlation = self._answer(number, asked), asked.header.correlation_id
            said = answer.encode(version=version)  # none of these versions has more than the number before it
            self.wfile.write(struct.pack(">ii", 4 + len(said), correlation) + said)

    def _answer(self, number: int, asked: Any) -> Any:
        if number == 18:
            return self._versions()
        if number == 17:
            return SaslHandshakeResponse(error_code=0, mechanisms=[MECHANISM])
        if number == 36:
            return self._judge(json.loads(bytes(asked.auth_bytes)))
        broker = MetadataResponse.MetadataResponseBroker(node_id=1, host="127.0.0.1", port=self.own.port, rack=None)
        return MetadataResponse(throttle_time_ms=0, brokers=[broker], cluster_id="iam", controller_id=1, topics=[])

    def _versions(self, error: int = 0) -> Any:
        known = [
            ApiVersionsResponse.ApiVersion(api_key=n, min_version=0, max_version=last) for n, (_, last) in KNOWN.items()
        ]
        return ApiVersionsResponse(error_code=error, api_keys=known, throttle_time_ms=0)

    def _judge(self, said: dict[str, str]) -> Any:
        self.own.seen.append(said)
        problem = self.own.problem(said)
        return SaslAuthenticateResponse(
            error_code=58 if problem else 0,
            error_message=problem,
            auth_bytes=b"" if problem else b'{"version":"2020_10_22"}',
            session_lifetime_ms=self.own.lifetime_ms,
        )
