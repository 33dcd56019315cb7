"""nano behind a Triton of the tests' own, which they may kill, stop, and give altered models."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.process import parent_of, processes
from deploy.local.stack import Stack
from deploy.local.triton_control import TritonControl
from generator.serving.build import build_repository
from generator.serving.repository import MODELS, default_checkpoint
from schemas.settings import Settings

CHECKOUT = Path(__file__).parents[2]
CACHE = CHECKOUT / ".pigeon" / "cache" / "tests" / "nano-repository"
QUIET_SECONDS = 4.0
"""The supervisor looks each second, and mends what it has seen broken twice."""

WRAPPED = """
import time
import numpy as np
from original import TritonPythonModel as Original

class TritonPythonModel(Original):
    def _run(self, request):
        out = super()._run(request)
        {line}
        return out
"""


def copy_nano_repository(folder: Path) -> None:
    """A copy of the committed checkpoint's repository, exported only when an input has changed."""
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with CACHE.with_name(f"{CACHE.name}.wait").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process of the tests may be exporting it; the product would refuse
        build_repository(default_checkpoint(), "nano", CACHE)
        shutil.copytree(CACHE, folder, dirs_exist_ok=True)


class NanoServer:
    """An embedded Triton whose supervisor starts it again; `settings` lead to it."""

    def __init__(self, settings: Settings) -> None:
        assert settings.triton.model_repository
        self.settings = settings
        self.repository: Path = settings.triton.model_repository
        self._stack = Stack(settings.state_dir)
        identity = self._stack.state.identity()
        assert identity
        ports, secrets = identity
        self.control = TritonControl(ports["triton_http"], secrets.triton_admin_key)

    @property
    def pid(self) -> int:
        """The server's process."""
        (pid,) = [server.pid for server in self._stack.status() if server.name == "triton" and server.pid]
        return pid

    def kill(self) -> None:
        """SIGKILL; its supervisor starts it again."""
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """SIGSTOP the server and its stubs: they hang."""
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        os.killpg(self.pid, signal.SIGCONT)

    def settle(self, seconds: float = 60.0) -> None:
        """Wait until all models stay ready.

        A server that was stopped may have lost stubs; its supervisor loads those again, which would undo what a test has altered.
        """
        quiet_since, ends = time.monotonic(), time.monotonic() + seconds
        while time.monotonic() - quiet_since < QUIET_SECONDS:
            assert time.monotonic() < ends, self.control.index()
            states = {(model.name, model.state) for model in self.control.index()}
            if not {(name, "READY") for name in MODELS} <= states:
                quiet_since = time.monotonic()
            time.sleep(0.2)

    def kill_stubs(self, model: str) -> int:
        """SIGKILL the processes of a model, which Triton does not notice; how many there were."""
        killed = 0
        for pid in processes():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent_of(pid) == self.pid and str(self.repository / model).encode() in b" ".join(words):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        return killed

    @contextmanager
    def wrapped(self, model: str, line: str) -> Iterator[None]:
        """Serve a model whose outputs `out` a line of Python changes; on disk it stays what was built."""
        folder = self.repository / model / "1"
        program = folder / "model.py"
        original = program.read_text()
        (folder / "original.py").write_text(original)
        with self._changed(model, program, WRAPPED.format(line=line)):
            (folder / "original.py").unlink()
            yield

    @contextmanager
    def configured(self, model: str, old: str, new: str) -> Iterator[None]:
        """Serve a model with a part of its configuration replaced; on disk it stays what was built."""
        file = self.repository / model / "config.pbtxt"
        text = file.read_text()
        assert old in text
        with self._changed(model, file, text.replace(old, new)):
            yield

    @contextmanager
    def _changed(self, model: str, file: Path, text: str) -> Iterator[None]:
        before = file.read_text()
        file.write_text(text)
        try:
            self.control.load(model)
            file.write_text(before)
            yield
        finally:
            time.sleep(0.01)
            file.write_text(before)  # newer than what is loaded, which is how Triton tells that it has changed
            self.control.load(model)

    def unload_all(self) -> None:
        """Serve nothing, as a server that was restarted without its supervisor."""
        for model in reversed(MODELS):
            self.control.unload(model)
