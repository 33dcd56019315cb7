"""A Ray cluster of two nodes on this machine's loopback addresses, asking for a token."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.fake_triton import free_port

CHECKOUT = Path(__file__).parents[2]
START_SECONDS = 120.0
OBJECT_STORE_BYTES = 80 * 2**20


@dataclass(frozen=True)
class RayNodes:
    """Where the cluster is, and its processes."""

    address: str
    token: str
    nodes: tuple[subprocess.Popen[bytes], ...]

    def workers(self) -> list[psutil.Process]:
        """Processes that draw, on both nodes."""
        found = []
        for node in self.nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                try:
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::DrawWorker"):
                        found.append(process)
                except psutil.NoSuchProcess:
                    continue
        return found


@contextmanager
def two_nodes() -> Iterator[RayNodes]:
    """A head and another node with a CPU each; they end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
    token, port = "t" * 48, free_port()
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number, where in enumerate(
            (
                [
                    "--head",
                    f"--port={port}",
                    "--node-ip-address=127.0.0.2",
                    f"--temp-dir={folder}",
                    "--include-dashboard=false",
                ],
                [f"--address=127.0.0.2:{port}", "--node-ip-address=127.0.0.3"],
            )
        ):
            nodes.append(_start(folder / f"node{number}.log", token, *where))
        yield RayNodes(f"127.0.0.2:{port}", token, tuple(nodes))
    finally:
        for node in reversed(nodes):
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            try:
                node.wait(30)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _start(log: Path, token: str, *where: str) -> subprocess.Popen[bytes]:
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(CHECKOUT),
    }
    options = ("--num-cpus=1", f"--object-store-memory={OBJECT_STORE_BYTES}", "--block")
    ports = ("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")
    with log.open("wb") as out:
        node = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", *where, *options, *ports],
            env={**os.environ, **own},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    ends = time.monotonic() + START_SECONDS
    while b"Ray runtime started" not in log.read_bytes():
        if node.poll() is not None or time.monotonic() > ends:
            node.kill()
            raise RuntimeError(f"ray start {' '.join(where)}: {log.read_text()[-2000:]}")
        time.sleep(0.1)
    return node
