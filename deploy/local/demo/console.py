"""The console beside kept servers: `pigeon serve` in the background, until the servers are stopped.

python -m deploy.local.demo.console STATE_DIR PORT    # runs it; started by `start`
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

from deploy.local.state import StateDir, write_private
from schemas.errors import ServerUnavailable
from schemas.runtime.stop_signals import stop_signals

START_SECONDS = 60.0
LOOK_SECONDS = 1.0
STOP_SECONDS = 25.0
PORT = 8_080
SECRETS = "web.env"


def start(state_dir: Path, port: int | None = None) -> list[str]:
    """Start it and return what it says of its addresses, once it answers.

    Secrets are kept in `<state_dir>/web.env`, so that a later `pigeon serve` can be given the same ones.

    Raises:
        ServerUnavailable: it does not come up; the message names its log.
    """
    state = StateDir(state_dir)
    log = state.logs / "web.log"
    _write_secrets(state.path / SECRETS)
    chosen = str(_free_port() if port is None else port)
    command = [sys.executable, "-m", "deploy.local.demo.console", str(state.path), chosen]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH"))))
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines()
        if any(line.startswith("console: ") for line in lines):
            return [line for line in lines if line.startswith(("console: ", "posters and feedback: "))]
        time.sleep(0.2)
    process.terminate()
    raise ServerUnavailable(f"the console did not start; {log} ends: {log.read_text()[-500:].strip()}")


def _free_port() -> int:
    """The usual port, or 0, which is any, when another program has it."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", PORT))
        except OSError:
            return 0
    return PORT


def _write_secrets(path: Path) -> None:
    """Draw a signing key and a token for reading posters, unless there are some from before."""
    if path.exists():
        return
    token = [{"name": "demo", "token": secrets.token_urlsafe(32), "roles": ["recommend"]}]
    write_private(
        path,
        f"PIGEON_WEB__SIGNING_KEY={secrets.token_urlsafe(32)}\nPIGEON_WEB__TOKENS='{json.dumps(token)}'\n",
    )


def _secrets(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {name: value.strip("'") for name, _, value in pairs}


def main() -> None:
    """Run the server until the stack's supervisor is gone or we are stopped."""
    state, port = StateDir(Path(sys.argv[1])), sys.argv[2]
    own = {**_secrets(state.path / SECRETS), "PIGEON_WEB__PORT": port, "PIGEON_STATE_DIR": str(state.path)}
    command = [sys.executable, "-m", "generator.cli", "serve", "--login-link"]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1", **own})
    with stop_signals(lambda _: server.terminate()):
        while server.poll() is None and state.owner() is not None:
            time.sleep(LOOK_SECONDS)
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    main()
