"""Ports of one stack: a block that follows from the state folder, so a checkout keeps its addresses."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from schemas.errors import ServerUnavailable

GRPC_OFFSET = 10_000
"""Distance of SeaweedFS's gRPC port from each of its ports; both ranges stay under Linux's ephemeral ports (32768 and up)."""
_FIRST, _LAST = 10_240, 22_520
_BLOCK = 20

NAMES = (
    "postgres",
    "kafka",
    "triton_http",
    "triton_grpc",
    "triton_metrics",
    "s3",
    "s3_master",
    "s3_volume",
    "s3_filer",
    "s3_admin",
)
_WITH_GRPC = frozenset({"s3", "s3_master", "s3_volume", "s3_filer", "s3_admin"})


def is_free(port: int) -> bool:
    """Whether a server could listen on 127.0.0.1:port now (connections that only linger do not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def opened_by(name: str, port: int) -> tuple[int, ...]:
    """Every port that the server opens for one named port."""
    return (port, port + GRPC_OFFSET) if name in _WITH_GRPC else (port,)


def all_free(ports: Mapping[str, int], names: Iterable[str] = NAMES) -> bool:
    return all(is_free(opened) for name in names for opened in opened_by(name, ports[name]))


def choose(state_dir: Path) -> dict[str, int]:
    """A free port for each name, starting at a block that two different folders rarely share.

    Raises:
        ServerUnavailable: no block of ports is free on this machine.
    """
    blocks = (_LAST - _FIRST) // _BLOCK
    start = int.from_bytes(hashlib.sha256(str(state_dir.resolve()).encode()).digest()[:4], "big") % blocks
    for step in range(blocks):
        base = _FIRST + (start + step) % blocks * _BLOCK
        ports = {name: base + index for index, name in enumerate(NAMES)}
        if all_free(ports):
            return ports
    raise ServerUnavailable(f"no {_BLOCK} free neighbouring ports between {_FIRST} and {_LAST} on 127.0.0.1")
