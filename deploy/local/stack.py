"""The embedded servers as a caller sees them: up, down, status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from deploy.local.environment import SERVICES
from deploy.local.ports import NAMES
from deploy.local.process import ProcessId, kill_strays, tail
from deploy.local.server import Server
from deploy.local.state import Secrets, StateDir
from schemas.errors import InputError, LockHeld, PigeonError, ServerUnavailable

_START_SECONDS = 300.0
_RECOVER_SECONDS = 20.0
_DOWN_SECONDS = 60.0


@dataclass(frozen=True)
class ServerStatus:
    """One server. `state`: ready, silent (runs, does not answer), dead, starting, external or stopped."""

    name: str
    state: str
    address: str = ""
    pid: int | None = None
    restarts: int = 0
    log: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_services(names: str | None) -> tuple[str, ...]:
    """`postgres,s3` as service names in starting order; all of them when none is named.

    Raises:
        InputError: a name is unknown.
    """
    if not names:
        return SERVICES
    wanted = {name.strip() for name in names.split(",")}
    unknown = sorted(wanted - set(SERVICES))
    if unknown:
        raise InputError(f"--only: no such server: {', '.join(unknown)}; there are {', '.join(SERVICES)}")
    return tuple(name for name in SERVICES if name in wanted)


def _import_path() -> str:
    """PYTHONPATH by which the supervisor finds this very package, installed or not."""
    ours = str(Path(__file__).parents[2])
    return os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])


class Stack:
    """The stack of one state folder."""

    def __init__(self, state_dir: Path) -> None:
        self.state = StateDir(state_dir)
        self._process: subprocess.Popen[bytes] | None = None

    def up(
        self,
        *,
        detach: bool = True,
        services: tuple[str, ...] = SERVICES,
        say: Callable[[str], None] = lambda _: None,
        tied: bool = False,
    ) -> int | None:
        """Start the servers and wait until they answer; a running stack only loads new models.

        `say` gets one line per server. Without `detach` this returns only when the stack has been stopped (Ctrl-C, `down`).
        With `tied` a detached stack ends when this process does, however that happens. Returns the signal that ended a
        stack that was not detached, else None.

        Raises:
            InputError: a wheel or setting is missing, or the running stack has other servers.
            ServerUnavailable: a server does not start or answer; the message ends with the tail of its log.
        """
        if not sys.platform.startswith("linux"):
            raise InputError("the embedded servers are Linux only: set the PIGEON_* addresses of your own instead")
        self.state.make()
        if self._join(services, say):
            return None
        try:
            return self._start(detach=detach, services=services, say=say, tied=tied)
        except LockHeld:  # another `up` was faster, so that this one joins it
            if self._join(services, say):
                return None
            raise

    def _start(self, *, detach: bool, services: tuple[str, ...], say: Callable[[str], None], tied: bool) -> int | None:
        if detach:
            self._spawn(services, say, tied=tied)
            return None
        from deploy.local.supervisor import Supervisor

        supervisor = Supervisor(self.state, services, say, tied_to=None)
        supervisor.run(lambda: say(f"settings  {self.state.env_file}; Ctrl-C stops the servers"))
        say("stopped")
        return supervisor.stopped_by

    def _join(self, services: tuple[str, ...], say: Callable[[str], None]) -> bool:
        """Whether a running stack has the servers; one that lost a server for good is stopped."""
        self._await_phase()
        record = self.state.record()
        if not record:
            return False
        missing = sorted(set(services) - set(record["services"]))
        if missing:
            raise InputError(f"a stack without {', '.join(missing)} runs in {self.state.path}: `pigeon down` first")
        if not self._recovers():
            say("repaired: the running stack had lost a server and is started again")
            self.down()
            return False
        for server in self.status():
            if server.state != "stopped":
                say(
                    f"{server.name:<9} {server.address:<27} {'external' if server.state == 'external' else 'already up'}"
                )
        known = self.state.identity()
        if known and "triton" in record["servers"]:
            from deploy.local.supervisor import build_servers

            say(f"{'triton':<9} {build_servers(self.state, *known, say)['triton'].furnish()}")
        return True

    def _await_phase(self) -> None:
        """Wait for a stack that another process is starting or stopping."""
        deadline = time.monotonic() + _START_SECONDS
        while self.state.owner() and self.state.record().get("phase") != "ready":
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"another `pigeon up` has not finished in {self.state.path}: `pigeon down` ends it"
                )
            time.sleep(0.1)

    def _recovers(self) -> bool:
        """Whether every server of the running stack answers, or is brought back by its supervisor in time."""
        deadline = time.monotonic() + _RECOVER_SECONDS
        while True:
            entries = self.state.record().get("servers", {})
            if any(entry["given_up"] for entry in entries.values()):
                return False
            if all(server.state not in ("dead", "silent", "starting") for server in self.status()):
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)

    def _spawn(self, services: tuple[str, ...], say: Callable[[str], None], *, tied: bool) -> None:
        self._reap_process()
        log = self.state.logs / "supervisor.log"
        reader, writer = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",  # a folder `deploy` where the user stands is not ours
                        "-m",
                        "deploy.local.supervisor",
                        str(self.state.path),
                        ",".join(services),
                        str(writer),
                        "tied" if tied else "free",
                    ],
                    stdin=subprocess.PIPE if tied else subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[writer],
                    env={**os.environ, "PYTHONPATH": _import_path()},
                )
        finally:
            os.close(writer)
        try:
            self._follow(os.fdopen(reader), say, log)
        except BaseException:
            # Ctrl-C, or it failed: either way nothing of it may stay.
            self._process.terminate()
            self._reap_process()
            raise

    def _follow(self, report: IO[str], say: Callable[[str], None], log: Path) -> None:
        with report:
            for text in report:
                message = json.loads(text)
                if "line" in message:
                    say(message["line"])
                elif "error" in message:
                    kinds = {kind.exit_code: kind for kind in (InputError, ServerUnavailable, LockHeld)}
                    raise kinds.get(message["exit_code"], PigeonError)(message["error"])
                else:
                    say(f"settings  {self.state.env_file}")
                    return
        raise ServerUnavailable(f"the supervisor ended while starting; {log} ends:\n{tail(log)}")

    def down(self, *, purge: bool = False) -> bool:
        """Stop everything of this state folder; with `purge` also delete the servers' data, ports and secrets.

        Returns whether anything ran.

        Raises:
            ServerUnavailable: something does not end even when killed.
        """
        if not self.state.run.exists():
            return False
        ran = self._stop_supervisor(signal.SIGQUIT if purge else signal.SIGTERM)
        servers = self._servers(purge=purge)
        swept = 0
        for server in servers:
            if server.folder.exists():
                try:
                    swept += kill_strays(server.folder, server.executables)
                except TimeoutError as error:
                    raise ServerUnavailable(f"{server.name}: {error}") from None
                server.clean()
        self.state.drop_record()
        if purge:
            for server in servers:
                server.purge()
            self.state.erase()
        return ran or swept > 0

    def _servers(self, *, purge: bool) -> list[Server]:
        from deploy.local.supervisor import build_servers

        try:
            known = self.state.identity()
        except InputError:
            if not purge:
                raise
            known = dict.fromkeys(NAMES, 0), Secrets.new()  # their folders are what matters
        return list(build_servers(self.state, *known).values()) if known else []

    def _stop_supervisor(self, how: signal.Signals) -> bool:
        supervisor = self.state.owner()
        if supervisor:
            supervisor.signal(how)
            if not supervisor.wait_gone(_DOWN_SECONDS):
                supervisor.signal(signal.SIGKILL)  # its children get theirs from the kernel
                supervisor.wait_gone(5.0)
        self._reap_process()
        return supervisor is not None

    def _reap_process(self) -> None:
        """Reap the supervisor that this object started, once it has ended."""
        if self._process:
            if self._process.stdin:
                self._process.stdin.close()
            self._process.wait(_DOWN_SECONDS)
            self._process = None

    def status(self) -> list[ServerStatus]:
        """State of every server at this moment."""
        from deploy.local.supervisor import build_servers

        record = self.state.record()
        known = self.state.identity()
        servers = build_servers(self.state, *known) if known else {}
        found = []
        for name in SERVICES:
            entry = record.get("servers", {}).get(name)
            if name in record.get("external", {}):
                found.append(ServerStatus(name, "external", record["external"][name]))
            elif entry is None:
                found.append(ServerStatus(name, "stopped"))
            else:
                process = ProcessId.from_record(entry["process"])
                if not process.is_running():
                    state = "dead"
                elif servers[name].answers():
                    state = "ready" if entry["seconds"] else "starting"
                else:
                    state = "silent" if entry["seconds"] else "starting"
                found.append(ServerStatus(name, state, entry["address"], process.pid, entry["restarts"], entry["log"]))
        return found
