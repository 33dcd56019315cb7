"""Security settings reach kafka-python, bad ones are refused by name, and no message holds a secret."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import errors
from pydantic import ValidationError

from consumers.kafka import clients
from schemas import kafka_token
from schemas.errors import InputError, ServerUnavailable
from schemas.runtime import kafka_login
from schemas.settings import ConsumerSettings
from schemas.settings_kafka import KafkaSettings

SECRET = "hunter2-not-to-be-seen"


def settings(**values: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": "127.0.0.1:1", "request_timeout_ms": 2_000, **values})


def sasl(**values: Any) -> KafkaSettings:
    usual = {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "u",
        "sasl_password": SECRET,
    }
    return settings(**(usual | values))


class Recorder:
    """Takes the place of a Kafka client."""

    def __init__(self, **config: Any) -> None:
        self.config = config
        self._manager = SimpleNamespace(config={})


@pytest.mark.parametrize("kind", ["KafkaConsumer", "KafkaProducer", "KafkaAdminClient"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_sasl_reaches_every_client(kind: str, mechanism: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clients, kind, Recorder)
    given = sasl(sasl_mechanism=mechanism)
    make = {
        "KafkaConsumer": lambda: clients.consumer(given, ConsumerSettings()),
        "KafkaProducer": lambda: clients.producer(given),
        "KafkaAdminClient": lambda: clients.admin(given),
    }
    config = make[kind]().config
    assert config["security_protocol"] == "SASL_PLAINTEXT"
    assert config["sasl_mechanism"] == mechanism
    assert (config["sasl_plain_username"], config["sasl_plain_password"]) == ("u", SECRET)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"sasl_mechanism": None}, "kafka.sasl_mechanism"),
        ({"sasl_username": None}, "kafka.sasl_username"),
        ({"sasl_username": ""}, "kafka.sasl_username"),
        ({"sasl_password": None}, "kafka.sasl_password"),
        ({"sasl_password": ""}, "kafka.sasl_password"),
        ({"sasl_mechanism": "OAUTHBEARER"}, "kafka.oauth_token_url"),
        ({"sasl_mechanism": "GSSAPI"}, "kafka.sasl_mechanism"),
        ({"security_protocol": "PLAINTEXT"}, "kafka.sasl_mechanism"),
        ({"security_protocol": "PLAINTEXT", "sasl_mechanism": None, "sasl_username": None}, "kafka.sasl_password"),
        ({"ssl_cafile": "/somewhere"}, "kafka.ssl_cafile"),
        ({"security_protocol": "SASL_SSL", "ssl_cafile": "/no/such/file"}, "kafka.ssl_cafile"),
        ({"security_protocol": "SASL_SSL", "ssl_certfile": "/no/such/file"}, "kafka.ssl_certfile"),
        ({"security_protocol": "SASL_SSL", "ssl_cafile": __file__}, "kafka.ssl_cafile"),
        ({"security_protocol": "SASL_SSL", "ssl_certfile": __file__}, "kafka.ssl_certfile"),
        ({"security_protocol": "SASL_SSL", "ssl_keyfile": __file__}, "kafka.ssl_certfile"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(values: dict[str, Any], named: str):
    with pytest.raises(InputError) as refused:
        kafka_login.options(sasl(**values))
    assert str(refused.value).startswith(f"{named} (PIGEON_KAFKA__{named.removeprefix('kafka.').upper()}) ")
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("values", [{"security_protocol": "TLS"}, {"sasl_mechanism": "MD5"}])
def test_unknown_words_are_refused_by_the_settings(values: dict[str, str]):
    with pytest.raises(ValidationError, match=next(iter(values))):
        settings(**values)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (errors.SaslAuthenticationFailedError("no such user"), "kafka.sasl_username and kafka.sasl_password"),
        (errors.UnsupportedSaslMechanismError("no"), "kafka.sasl_mechanism"),
        (errors.TopicAuthorizationFailedError({"t"}), "kafka.sasl_username"),
        (errors.GroupAuthorizationFailedError("g"), "kafka.sasl_username"),
        (errors.InvalidSessionTimeoutError(), "kafka.session_timeout_ms"),
        (errors.FencedInstanceIdError(), "kafka.group_instance_id"),
    ],
)
def test_what_the_broker_refuses_names_the_setting(error: Exception, named: str, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: Any) -> None:
        raise error

    monkeypatch.setattr(clients, "KafkaConsumer", refuse)
    with pytest.raises(InputError) as refused:
        clients.consumer(sasl(), ConsumerSettings())
    assert str(refused.value).startswith(named)
    assert SECRET not in str(refused.value)


# All that kafka-python and we say, at the most talkative, on the way to a broker that is not there.
TALK = """
import logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from consumers.kafka import clients
from schemas.errors import ServerUnavailable
from schemas.settings import ConsumerSettings, load_settings
settings = load_settings()
print(settings, settings.model_dump_json())
try:
    clients.consumer(settings.kafka, ConsumerSettings())
except ServerUnavailable as error:
    print(repr(error))
"""


def test_secrets_are_in_no_text_of_the_settings_and_in_no_log(tmp_path: Path):
    own = {
        "BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "REQUEST_TIMEOUT_MS": "1000",
        "SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "SASL_MECHANISM": "SCRAM-SHA-256",
        "SASL_USERNAME": "u",
        "SASL_PASSWORD": SECRET,
    }
    talk = subprocess.run(
        [sys.executable, "-c", TALK],
        check=True,
        capture_output=True,
        text=True,
        timeout=200,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("PIGEON_")},
            **{f"PIGEON_KAFKA__{name}": value for name, value in own.items()},
            "PIGEON_STATE_DIR": str(tmp_path),
        },
    )
    assert "ServerUnavailable" in talk.stdout
    assert "DEBUG:kafka" in talk.stdout
    assert SECRET not in talk.stdout + talk.stderr


class Listener:
    """A TLS server that shakes hands and hangs up."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.greeted = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            with plain:
                plain.settimeout(5)
                try:
                    with self._context.wrap_socket(plain, server_side=True):
                        self.greeted += 1
                except OSError:
                    continue

    def close(self) -> None:
        """Hear nobody any more; what was accepted has been answered."""
        if self._thread.is_alive():
            self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(10)
            self._socket.close()


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key."""
    made, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(made)),
        ],
        check=True,
        capture_output=True,
    )
    return made, key


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    server = Listener(*certificate(tmp_path, "ours"))
    yield server
    server.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with the openssl command")
def test_a_server_that_the_authority_does_not_vouch_for_is_refused(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_broker_answers(**_: Any) -> None:  # all that kafka-python says of a failed handshake
        raise errors.KafkaTimeoutError("bootstrap")

    monkeypatch.setattr(clients, "KafkaAdminClient", no_broker_answers)
    theirs, key = certificate(tmp_path, "theirs")

    def meet(**values: Any) -> None:
        clients.admin(settings(bootstrap_servers=f"127.0.0.1:{listener.port}", security_protocol="SSL", **values))

    with pytest.raises(InputError, match=r"^kafka\.ssl_cafile .* does not prove"):
        meet(ssl_cafile=theirs)
    assert listener.greeted == 0
    ours = {"ssl_cafile": tmp_path / "ours.pem", "ssl_certfile": theirs}
    with pytest.raises(ServerUnavailable):  # TLS is not what is wrong
        meet(**ours, ssl_keyfile=key)
    listener.close()
    # Before a client is made and again when it has failed: TLS by itself, the login, which logins the broker offers.
    assert listener.greeted == 2 * 3
    with pytest.raises(InputError, match=r"^kafka\.ssl_certfile"):
        meet(**ours, ssl_keyfile=tmp_path / "ours.key")


def test_a_plain_listener_is_not_mistaken_for_tls():
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]

        def answer() -> None:
            connection, _ = plain.accept()
            with connection:
                connection.recv(1_024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        refused = kafka_login.explain(settings(security_protocol="SSL"), ("127.0.0.1", port))
        thread.join(10)
    assert refused is not None
    assert "kafka.security_protocol" in str(refused)


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"no HTTP\r\n"])
def test_a_token_endpoint_that_hangs_up_in_its_answer_is_away(said: bytes):
    with socket.create_server(("127.0.0.1", 0)) as endpoint:

        def answer() -> None:
            connection, _ = endpoint.accept()
            with connection:
                connection.recv(4_096)
                connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        credentials = kafka_token.ClientCredentials(
            settings(
                security_protocol="SASL_PLAINTEXT",
                sasl_mechanism="OAUTHBEARER",
                oauth_token_url=f"http://127.0.0.1:{endpoint.getsockname()[1]}/token",
                oauth_client_id="pigeon",
                oauth_client_secret=SECRET,
            )
        )
        with pytest.raises(ServerUnavailable, match=r"^kafka\.oauth_token_url "):
            credentials.token()
        thread.join(10)
