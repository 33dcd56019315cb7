"""The engine as a process of its own, with the code and weights that a build wrote for it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from generator.serving.backends.engine_client import EngineRefused

START_SECONDS = 600.0


@dataclass(frozen=True)
class RunningEngine:
    socket: Path
    start_seconds: float


@contextmanager
def running_engine(python: Path, folder: Path, *options: str) -> Iterator[RunningEngine]:
    """Start the engine of an engine folder and stop it at the end.

    Raises:
        SystemExit: it ended before it listened; the end of its log is the message.
    """
    with tempfile.TemporaryDirectory(prefix="pigeon-") as place:
        socket, log = Path(place) / "engine.sock", Path(place) / "engine.log"
        command = [str(python), "-m", "generator.serving.engine", str(folder), "--socket", str(socket), *options]
        began = time.monotonic()
        environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "0")}
        environment.pop("PYTHONPATH", None)
        with log.open("w") as written:
            process = subprocess.Popen(command, cwd=folder, stdout=written, stderr=subprocess.STDOUT, env=environment)
        try:
            while not socket.exists():
                if process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    raise SystemExit(f"the engine did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield RunningEngine(socket, time.monotonic() - began)
            if process.poll() is not None:
                raise SystemExit(f"the engine ended by itself:\n{log.read_text()[-3000:]}")
        except EngineRefused as error:
            raise SystemExit(f"{error}; the engine's log ends:\n{log.read_text()[-3000:]}") from error
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
