"""The gRPC channel to a Triton server, with TLS where the settings say so."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import tritonclient.grpc as triton

from schemas.errors import InputError
from schemas.settings_triton import TritonSettings

FIRST_RECONNECT_MS = 200
LONGEST_RECONNECT_MS = 2_000
"""Milliseconds until a lost connection is tried again, at most; gRPC's own two minutes are as long as a night waits."""
KEEPALIVE_MS = 310_000
"""Milliseconds between questions whether the server is still there; a server takes no more than one in five minutes."""
KEEPALIVE_ANSWER_MS = 10_000
"""Milliseconds without an acknowledgement, of a question or of data, after which the connection is made again."""
MESSAGE_BYTES = 2**31 - 1
_PEM = b"-----BEGIN "


def open_channel(settings: TritonSettings, address: str) -> triton.InferenceServerClient:
    """A client that connects at its first call, and soon again when the server is back.

    Raises:
        InputError: a file of the settings cannot be read, or holds nothing in PEM.
    """
    return triton.InferenceServerClient(
        address,
        **_tls(settings),
        channel_args=[
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", FIRST_RECONNECT_MS),
            ("grpc.min_reconnect_backoff_ms", FIRST_RECONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", LONGEST_RECONNECT_MS),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_ANSWER_MS),
        ],
    )


def is_loopback(address: str) -> bool:
    """Whether a server is on this very machine."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls(settings: TritonSettings) -> dict[str, Any]:
    """Arguments of the client.

    The files are looked at first: gRPC only reports that it cannot connect.
    """
    files = {"root_certificates": "ca_file", "certificate_chain": "cert_file", "private_key": "key_file"}
    given = {
        argument: (name, path) for argument, name in files.items() if (path := getattr(settings, name)) is not None
    }
    for name, path in given.values():
        _check_pem(name, path)
    return {"ssl": settings.tls, **{argument: str(path) for argument, (_, path) in given.items()}}


def _check_pem(name: str, path: Path) -> None:
    setting = f"triton.{name} (PIGEON_TRITON__{name.upper()}) {path}"
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{setting}: {error.strerror}") from None
    if _PEM not in text:
        raise InputError(f"{setting}: holds nothing in PEM")
    if b"ENCRYPTED" in text:
        raise InputError(f"{setting}: has a passphrase, which nobody can be asked for")
