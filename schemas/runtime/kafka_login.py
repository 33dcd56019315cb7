"""How we prove to Kafka who we are: the security settings as kafka-python wants them, refused early when they do not fit together."""

from __future__ import annotations

import importlib.util
import socket
import ssl
from typing import Any

from schemas.errors import InputError
from schemas.settings import KafkaSettings

# Mechanisms that send or prove a password.
_PASSWORD = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


def _refuse(name: str, why: str) -> InputError:
    return InputError(f"kafka.{name} (PIGEON_KAFKA__{name.upper()}) {why}")


def options(settings: KafkaSettings) -> dict[str, Any]:
    """The security options of every Kafka client.

    Raises:
        InputError: a setting is missing, would be ignored, or names a file that cannot be used; the message names it and
            never holds a secret.
    """
    return {"security_protocol": settings.security_protocol, **_sasl(settings), **_ssl(settings)}


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    protocol, mechanism = settings.security_protocol, settings.sasl_mechanism
    if not protocol.startswith("SASL"):
        for name in ("sasl_mechanism", "sasl_username", "sasl_password"):
            if getattr(settings, name) is not None:
                raise _refuse(name, f"is set, but kafka.security_protocol is {protocol}: it would be ignored")
        return {}
    if mechanism is None:
        raise _refuse(
            "sasl_mechanism", f"is empty, but kafka.security_protocol is {protocol}: say for example SCRAM-SHA-512"
        )
    if mechanism == "OAUTHBEARER":
        raise _refuse("sasl_mechanism", "OAUTHBEARER needs a token provider in code, which no setting can give")
    if mechanism == "GSSAPI" and importlib.util.find_spec("gssapi") is None:
        raise _refuse("sasl_mechanism", "GSSAPI needs a package that is not installed: pip install gssapi")
    if mechanism not in _PASSWORD:
        return {"sasl_mechanism": mechanism}
    if not settings.sasl_username:
        raise _refuse("sasl_username", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    if settings.sasl_password is None or not settings.sasl_password.get_secret_value():
        raise _refuse("sasl_password", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value(),
    }


def _ssl(settings: KafkaSettings) -> dict[str, Any]:
    files = {
        name: path
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile")
        if (path := getattr(settings, name)) is not None
    }
    if not settings.security_protocol.endswith("SSL"):
        for name in files:
            raise _refuse(
                name, f"is set, but kafka.security_protocol is {settings.security_protocol}: it would be ignored"
            )
        return {}
    for name, path in files.items():
        if not path.is_file():
            raise _refuse(name, f"{path}: no such file")
    if "ssl_keyfile" in files and "ssl_certfile" not in files:
        raise _refuse("ssl_certfile", "is empty, but kafka.ssl_keyfile is set")
    context = ssl.create_default_context()
    if "ssl_cafile" in files:
        try:
            context.load_verify_locations(files["ssl_cafile"])
        except OSError as error:  # ssl.SSLError is one
            raise _refuse("ssl_cafile", f"{files['ssl_cafile']}: holds no PEM certificates: {error.strerror}") from None
    if "ssl_certfile" in files:
        try:
            # A key with a passphrase would be asked for on the terminal; an empty one is wrong, and says so.
            context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"), password="")
        except OSError as error:
            raise _refuse(
                "ssl_certfile",
                f"{files['ssl_certfile']}: no PEM certificate with its key (kafka.ssl_keyfile): {error.strerror}",
            ) from None
    return {name: str(path) for name, path in files.items()}


def explain(settings: KafkaSettings, seconds: float = 5.0) -> InputError | None:
    """Why TLS with the first bootstrap server fails, if it does: kafka-python only says that no broker answers."""
    if not settings.security_protocol.endswith("SSL"):
        return None
    host, _, port = settings.bootstrap_servers.split(",")[0].strip().rpartition(":")
    context = ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)
    if settings.ssl_certfile:
        context.load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile, password="")
    try:
        with socket.create_connection((host, int(port)), timeout=seconds) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return _refuse("ssl_cafile", f"does not prove {host}:{port} genuine: {error.verify_message}")
    except ssl.SSLError as error:
        return _refuse(
            "security_protocol",
            f"is {settings.security_protocol}, but {host}:{port} does not speak TLS: {error.reason}",
        )
    except (OSError, ValueError):
        return None
    return None
