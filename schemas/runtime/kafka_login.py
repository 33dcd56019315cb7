"""The security options of every Kafka client, refused early when the settings do not fit together.

Each SASL mechanism has one function, in `_MECHANISMS`. A token provider for OAUTHBEARER belongs into `_token`, as the option
`sasl_oauth_token_provider`; until there is one, the mechanism is refused.
"""

from __future__ import annotations

import importlib.util
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from schemas.errors import InputError

if TYPE_CHECKING:
    from schemas.settings import KafkaSettings


def _refuse(name: str, why: str) -> InputError:
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
                raise _refuse(name, f"is set, but kafka.security_protocol is {protocol}: it would be ignored")
        return {}
    if mechanism is None:
        raise _refuse(
            "sasl_mechanism", f"is empty, but kafka.security_protocol is {protocol}: say for example SCRAM-SHA-512"
        )
    return {"sasl_mechanism": mechanism, **_MECHANISMS[mechanism](settings)}


def _password(settings: KafkaSettings) -> dict[str, Any]:
    mechanism = settings.sasl_mechanism
    if not settings.sasl_username:
        raise _refuse("sasl_username", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    if settings.sasl_password is None or not settings.sasl_password.get_secret_value():
        raise _refuse("sasl_password", f"is empty, but kafka.sasl_mechanism is {mechanism}")
    return {
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value(),
    }


def _ticket(settings: KafkaSettings) -> dict[str, Any]:
    if importlib.util.find_spec("gssapi") is None:
        raise _refuse("sasl_mechanism", "GSSAPI needs a package that is not installed: pip install gssapi")
    return {}


def _token(settings: KafkaSettings) -> dict[str, Any]:
    raise _refuse("sasl_mechanism", "OAUTHBEARER needs a token provider in code, which no setting can give")


_MECHANISMS: dict[str, Callable[[KafkaSettings], dict[str, Any]]] = {
    "PLAIN": _password,
    "SCRAM-SHA-256": _password,
    "SCRAM-SHA-512": _password,
    "GSSAPI": _ticket,
    "OAUTHBEARER": _token,
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
    """Why TLS with the first bootstrap server fails, if it does.

    kafka-python only reports that no broker answers.
    """
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
