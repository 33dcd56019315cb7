"""The Python environment of vLLM on a CPU, apart from ours: it pins other versions of what we use."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.local.process import run_tool
from schemas.errors import ServerUnavailable

REQUIREMENTS = Path(__file__).with_name("engine-requirements.txt")
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
_TORCH = re.compile(r"^torch==\S+$", re.MULTILINE)


def engine_environment(state_dir: Path) -> Path:
    """The environment's folder; PIGEON_ENGINE_VENV shares one among state folders."""
    given = os.environ.get("PIGEON_ENGINE_VENV")
    return Path(given).resolve() if given else state_dir.absolute() / "engine" / "venv"


def open_engine_environment(folder: Path, say: Callable[[str], None]) -> Path:
    """Its interpreter; the environment is made first when it is missing or of other requirements.

    Raises:
        ServerUnavailable: it cannot be installed (the installer's last words are in the message).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    wanted = "\n".join([*_TORCH.findall(CONSTRAINTS.read_text()), REQUIREMENTS.read_text()])
    with (folder.parent / f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = folder / "requirements.txt"
        if not stamp.exists() or stamp.read_text() != wanted:
            say("engine    making vLLM's Python environment (once; 147 packages, 3.4 GB unpacked)")
            _install(folder)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


def _install(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "-c", str(CONSTRAINTS), "torch"],
        [*pip, "--no-deps", "-r", str(REQUIREMENTS)],
    )
    for step in steps:
        code, output = run_tool(step, folder=folder.parent)
        if code:
            words = "\n    ".join(output.splitlines()[-8:])
            raise ServerUnavailable(f"engine: its environment in {folder} cannot be installed:\n    {words}")
