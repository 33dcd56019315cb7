"""The security options of every Kafka client, refused early when the settings do not fit together.

Each SASL mechanism has one function, in `_MECHANISMS`; what a broker says to them is asked in `schemas.kafka_access`.
"""

from __future__ import annotations

import importlib.util
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from schemas.errors import InputError

if TYPE_CHECKING:
    from schemas.settings_kafka import KafkaSettings


def refuse(name: str, why: str) -> InputError:
    """What is wrong with one of Kafka's settings."""
    return InputError(f"kafka.{name} (PIGEON_KAFKA__{name.upper()}) {why}")


def options(settings: KafkaSettings) -> dict[str, Any]:
    """Security options as kafka-python wants them.

    Raises:
        InputError: a setting is missing, would be ignored, or names a file that cannot be used; the message names it and
            contains no secret.
    """
    return {"security_protocol": settings.security_protocol, **_sasl(settings), **_ssl(settings)}


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    protocol, mechanism = settings.security_protocol, settings.sasl_mechanism
    if not protocol.startswith("SASL"):
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if getattr(settings, name) is not None:
                raise refuse(name, f"is set, but kafka.security_protocol is {protocol}: it would be ignored")
        return {}
    if mechanism is None:
        raise refuse(
            "sasl_mechanism", f"is empty, but kafka.security_protocol is {protocol}: say for example SCRAM-SHA-512"
        )
    return {"sasl_mechanism": mechanism, **_MECHANISMS[mechanism](settings)}


def _password(settings: KafkaSettings) -> dict[str, Any]:
    mechanism = settings.sasl_mechanism
    if not settings.sasl_username:
        raise refuse("sasl_username", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    if settings.sasl_password is None or not settings.sasl_password.get_secret_value():
        raise refuse("sasl_password", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    return {
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value(),
    }


def _ticket(settings: KafkaSettings) -> dict[str, Any]:
    if importlib.util.find_spec("gssapi") is None:
        raise refuse("sasl_mechanism", "GSSAPI needs a package that is not installed: pip install gssapi")
    return {}


def _token(settings: KafkaSettings) -> dict[str, Any]:
    """Nothing here: `schemas.connections.kafka_options` adds the provider, which needs kafka-python."""
    for name in ("oauth_token_url", "oauth_client_id"):
        if not getattr(settings, name):
            raise refuse(name, "is empty, but kafka.sasl_mechanism is OAUTHBEARER")
    if settings.oauth_client_secret is None or not settings.oauth_client_secret.get_secret_value():
        raise refuse("oauth_client_secret", "is empty, but kafka.sasl_mechanism is OAUTHBEARER")
    if not str(settings.oauth_token_url).startswith(("https://", "http://")):
        raise refuse("oauth_token_url", f"{settings.oauth_token_url}: must begin with https:// (or http://)")
    if settings.oauth_cafile is not None and not settings.oauth_cafile.is_file():
        raise refuse("oauth_cafile", f"{settings.oauth_cafile}: no such file")
    return {}


def _iam(settings: KafkaSettings) -> dict[str, Any]:
    """Nothing here: keys and region come from where boto3 looks."""
    if settings.security_protocol != "SASL_SSL":
        raise refuse(
            "security_protocol", f"is {settings.security_protocol}, but AWS_MSK_IAM is offered by SASL_SSL only"
        )
    return {}


TOKENS = ("OAUTHBEARER", "AWS_MSK_IAM")
"""Mechanisms whose login is a token and not a password."""
_MECHANISMS: dict[str, Callable[[KafkaSettings], dict[str, Any]]] = {
    "PLAIN": _password,
    "SCRAM-SHA-256": _password,
    "SCRAM-SHA-512": _password,
    "GSSAPI": _ticket,
    "OAUTHBEARER": _token,
    "AWS_MSK_IAM": _iam,
}
"""Options of each SASL mechanism, beside its name."""


def _ssl(settings: KafkaSettings) -> dict[str, Any]:
    files = {
        name: path
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if (path := getattr(settings, name)) is not None
    }
    if not settings.security_protocol.endswith("SSL"):
        for name in files:
            raise refuse(
                name, f"is set, but kafka.security_protocol is {settings.security_protocol}: it would be ignored"
            )
        return {}
    for name, path in files.items():
        if not path.is_file():
            raise refuse(name, f"{path}: no such file")
    if "ssl_keyfile" in files and "ssl_certfile" not in files:
        raise refuse("ssl_certfile", "is empty, but kafka.ssl_keyfile is set")
    context = ssl.create_default_context()
    if "ssl_cafile" in files:
        try:
            context.load_verify_locations(files["ssl_cafile"])
        except OSError as error:  # ssl.SSLError is one
            raise refuse("ssl_cafile", f"{files['ssl_cafile']}: holds no PEM certificates: {error.strerror}") from None
    if "ssl_certfile" in files:
        try:
            # A key with a passphrase would be asked for on the terminal; an empty one is wrong, and says so.
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"), password="")
        except OSError as error:
            raise refuse(
                "ssl_certfile",
                f"{files['ssl_certfile']}: no PEM certificate with its key (kafka.ssl_keyfile): {error.strerror}",
            ) from None
    return {name: str(path) for name, path in files.items()}


def refused_login(settings: KafkaSettings, where: str) -> InputError:
    """What a broker means that refuses the login of the settings."""
    if settings.sasl_mechanism == "AWS_MSK_IAM":
        return refuse(
            "sasl_mechanism",
            f"is AWS_MSK_IAM, and {where} refuses the AWS keys: their right to kafka-cluster:Connect, AWS_DEFAULT_REGION, clock?",
        )
    if settings.sasl_mechanism in TOKENS:
        return refuse(
            "sasl_mechanism",
            f"is {settings.sasl_mechanism}, and {where} refuses our token: issuer, audience, scope, clock?",
        )
    return refuse(
        "sasl_username",
        f"{settings.sasl_username}, or kafka.sasl_password, is refused by {where} ({settings.sasl_mechanism})",
    )


def explain(settings: KafkaSettings, address: tuple[str, int], seconds: float = 5.0) -> InputError | None:
    """Why TLS with a broker fails, if it does; kafka-python only reports that no broker answers."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    where = f"{address[0]}:{address[1]}"
    context = ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)
    if settings.ssl_certfile:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password="")
    try:
        with (
            socket.create_connection(address, timeout=seconds) as plain,
            context.wrap_socket(plain, server_hostname=address[0]) as secure,
        ):
            secure.settimeout(0.3)  # a refusal of our certificate comes after the handshake of TLS 1.3
            secure.recv(1)
    except ssl.SSLCertVerificationError as error:
        return refuse("ssl_cafile", f"does not prove {where} genuine: {error.verify_message}")
    except ssl.SSLError as error:
        if "CERTIFICATE" in (error.reason or ""):
            return refuse("ssl_certfile", f"is what {where} asks for, and it does not accept ours: {error.reason}")
        return refuse(
            "security_protocol", f"is {settings.security_protocol}, but {where} does not speak TLS: {error.reason}"
        )
    except (OSError, ValueError):
        return None
    return None
