"""The Python environment of Triton and its models, apart from ours because it needs numpy < 2."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy.local.process import run_tool
from schemas.errors import InputError, ServerUnavailable

REQUIREMENTS = Path(__file__).with_name("triton-requirements.txt")
# Python versions of the stubs in the wheel, up to the newest that numpy 1.26 has wheels for.
_VERSIONS = ("3.11", "3.12")
_ASK = """
import json, sys, sysconfig
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "site": sysconfig.get_path("purelib"),
                  "prefix": sys.base_prefix, "library": sysconfig.get_config_var("LIBDIR"),
                  "multiarch": sysconfig.get_config_var("MULTIARCH") or ""}))
"""


@dataclass(frozen=True)
class TritonEnvironment:
    """Where the pieces are."""

    folder: Path
    python_version: str
    site_packages: Path
    library_folder: Path

    @property
    def server(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def stub(self) -> Path:
        return self.server / "python_backend_stubs" / self.python_version / "triton_python_backend_stub"


def _interpreter() -> str:
    """A Python for the environment: ours when Triton has a stub for it, else one on PATH."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" in _VERSIONS:
        return sys.executable
    for version in _VERSIONS:
        if found := shutil.which(f"python{version}"):
            return found
    raise InputError(
        f"the embedded Triton needs Python {' or '.join(_VERSIONS)} (this is {sys.version.split()[0]}): "
        "put one on PATH, or set PIGEON_TRITON__URL"
    )


def environment_folder(state_dir: Path) -> Path:
    """The environment's folder; PIGEON_TRITON_VENV shares one among state folders."""
    given = os.environ.get("PIGEON_TRITON_VENV")
    return Path(given).resolve() if given else state_dir / "triton" / "venv"


def open_environment(folder: Path, say: Callable[[str], None]) -> TritonEnvironment:
    """The environment, made first when it is missing or was made for other requirements.

    Raises:
        ServerUnavailable: it cannot be installed (the installer's last words are in the message).
        InputError: this machine has no Python that fits.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks may share the folder
        stamp = folder / "requirements.txt"
        if not stamp.exists() or stamp.read_text() != REQUIREMENTS.read_text():
            say("triton    making its Python environment (once; downloads about 130 MB)")
            _install(folder)
            shutil.copyfile(REQUIREMENTS, stamp)
    return _inspect(folder)


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    for command in ([_interpreter(), "-m", "venv", str(folder)], [*pip, "--no-deps", "-r", str(REQUIREMENTS)]):
        code, output = run_tool(command, folder=folder.parent)
        if code:
            words = "\n    ".join(output.splitlines()[-8:])
            raise ServerUnavailable(f"triton: its environment in {folder} cannot be installed:\n    {words}")


def _inspect(folder: Path) -> TritonEnvironment:
    code, output = run_tool([str(folder / "bin" / "python"), "-c", _ASK], folder=folder)
    if code:
        raise ServerUnavailable(
            f"triton: its environment is broken, delete {folder} to have it made again: {output[-300:]}"
        )
    facts = json.loads(output)
    shared = f"libpython{facts['version']}.so.1.0"
    built = Path(facts["library"])
    # Where it was built for, Debian's deeper folder, and where a Python that was moved (uv's, say) has it.
    for library in (built, built / facts["multiarch"], Path(facts["prefix"]) / "lib"):
        if os.access(library / shared, os.R_OK):
            return TritonEnvironment(folder, facts["version"], Path(facts["site"]), library)
    raise InputError(
        f"the embedded Triton needs {shared}, which this Python lacks: install libpython{facts['version']} "
        "(or a Python built with --enable-shared), or set PIGEON_TRITON__URL"
    )
