"""NVIDIA's tritonserver 2.51 from `nvidia-pytriton`: Python backend, model control behind a key."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from deploy.local.process import Command, arguments_of, parent_of, processes
from deploy.local.server import LOCALHOST, Server
from deploy.local.state import Secrets, StateDir
from deploy.local.triton_control import KEY_HEADER, RESTRICTED, TritonControl
from deploy.local.triton_env import environment_folder, open_environment
from schemas.errors import ModelError, ServerUnavailable

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the kernel keeps named shared memory
_EXIT_SECONDS = 15
# The stub's command line: program, model.py, shared memory's name, ..., instance name, runtime (python backend, release 24.10).
_STUB_MODEL, _STUB_INSTANCE = 1, 8


class Triton(Server):
    """Serves the state folder's `models/`.

    The admin key is among the server's arguments, as Triton offers no other way: users of this machine can see it there.
    """

    name: ClassVar[str] = "triton"
    start_seconds: ClassVar[float] = 120.0
    stop_seconds: ClassVar[float] = _EXIT_SECONDS + 3.0

    def __init__(
        self, state: StateDir, ports: Mapping[str, int], secrets: Secrets, say: Callable[[str], None] = lambda _: None
    ) -> None:
        super().__init__(state, ports, secrets)
        self._say = say
        self.control = TritonControl(ports["triton_http"], secrets.triton_admin_key)

    @property
    def folder(self) -> Path:
        return self.state.path / self.name / "runtime"

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.ports['triton_grpc']}"

    @property
    def _stub(self) -> Path:
        return self.folder / "backends" / "python" / "triton_python_backend_stub"

    @property
    def executables(self) -> tuple[Path, ...]:
        # The environment may be gone or not made yet; only what can run matters here.
        servers = environment_folder(self.state.path).glob(
            "lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"
        )
        return (*servers, self._stub)

    @property
    def _shared_memory_prefix(self) -> str:
        return f"pigeon_{self.state.key}_"

    def settings(self) -> dict[str, str]:
        return {
            "PIGEON_TRITON__URL": self.address,
            "PIGEON_TRITON__METRICS_URL": f"http://{LOCALHOST}:{self.ports['triton_metrics']}/metrics",
            "PIGEON_TRITON__ADMIN_KEY": self.secrets.triton_admin_key,
            "PIGEON_TRITON__MODEL_REPOSITORY": str(self.state.models),
        }

    def prepare(self) -> str | None:
        found = open_environment(environment_folder(self.state.path), self._say)
        shutil.rmtree(self.folder, ignore_errors=True)
        for part in ("backends", "caches"):
            shutil.copytree(found.server / part, self.folder / part)
        shutil.copyfile(found.stub, self._stub)
        self._stub.chmod(0o755)
        return None

    def clean(self) -> None:
        for leftover in _SHARED_MEMORY.glob(f"{self._shared_memory_prefix}*"):
            leftover.unlink(missing_ok=True)

    def command(self) -> Command:
        found = open_environment(environment_folder(self.state.path), self._say)
        key = f"{KEY_HEADER}={self.secrets.triton_admin_key}"
        options: list[str] = [
            f"--model-repository={self.state.models}",
            f"--backend-directory={self.folder / 'backends'}",
            f"--cache-directory={self.folder / 'caches'}",
            "--model-control-mode=explicit",
            # A full config.pbtxt is part of our repositories; guessing one costs a second for each model.
            "--disable-auto-complete-config",
            "--exit-on-error=false",
            f"--exit-timeout-secs={_EXIT_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={self._shared_memory_prefix}",
            f"--grpc-restricted-protocol={RESTRICTED}:{key}",
            f"--http-restricted-api={RESTRICTED}:{key}",
        ]
        for part in ("http", "grpc", "metrics"):
            options += [f"--{part}-address={LOCALHOST}", f"--{part}-port={self.ports[f'triton_{part}']}"]
        libraries = [str(found.library_folder), str(found.site_packages / "nvidia_pytriton.libs")]
        return Command(
            argv=[str(found.server / "bin" / "tritonserver"), *options],
            folder=self.folder,
            log=self.log,
            environment={
                # The stub finds its interpreter by `python3` on PATH.
                "PATH": os.pathsep.join([str(found.folder / "bin"), os.defpath]),
                "LD_LIBRARY_PATH": os.pathsep.join(libraries),
                "HOME": str(self.folder),
                "LC_ALL": "C.UTF-8",
                "PYTHONDONTWRITEBYTECODE": "1",
                # Each instance is one thread; instances, not threads, use the cores.
                "OMP_NUM_THREADS": "1",
                "OPENBLAS_NUM_THREADS": "1",
            },
        )

    def answers(self) -> bool:
        return self.control.is_live()

    def furnish(self) -> str | None:
        try:
            loaded, failed = self.control.load_all()
        except ModelError as error:
            raise ServerUnavailable(f"triton: cannot load its models: {error}") from None
        for model, reason in failed.items():
            self._say(f"triton    model {model} does not load: {reason}")
        return f"{len(loaded)} models" + (f", {len(failed)} failed" if failed else "")

    def resume(self) -> None:
        self.furnish()

    def live_instances(self, server_pid: int) -> set[tuple[str, str, str]]:
        """(model, version, instance) of every stub process that is alive under the server."""
        live = set()
        for pid in processes():
            if parent_of(pid) != server_pid:
                continue
            words = arguments_of(pid)
            if len(words) > _STUB_INSTANCE and words[0] == str(self._stub):
                # The model's file is REPOSITORY/MODEL/VERSION/model.py
                version_folder = Path(words[_STUB_MODEL]).parent
                live.add((version_folder.parent.name, version_folder.name, words[_STUB_INSTANCE]))
        return live
