"""Children of the supervisor: in sessions of their own, never left behind, never confused with others."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEEP_LOG_BYTES = 10 * 2**20
_IMMEDIATE_SECONDS = 2.0


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, or None when there is no such process."""
    try:
        # The name may hold spaces and parentheses; nothing after the last one does.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True)
class ProcessId:
    """Identity of a process: its pid, which is reused, with its start time (clock ticks) and boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a running process, or None."""
        fields = _stat(pid)
        return None if fields is None else cls(pid, int(fields[19]), _boot_id())

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ProcessId:
        return cls(int(record["pid"]), int(record["started"]), str(record["boot"]))

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    def is_running(self) -> bool:
        """Whether this very process exists and is not a zombie."""
        fields = _stat(self.pid)
        return (
            fields is not None and fields[0] not in "ZX" and int(fields[19]) == self.started and self.boot == _boot_id()
        )

    def signal(self, number: int) -> None:
        """Signal this very process; nothing happens when it is gone, whoever has its number now."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.is_running():
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)

    def wait_gone(self, seconds: float) -> bool:
        """Whether the process ended within the time."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def processes() -> Iterator[int]:
    """The pids of this machine's processes."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def parent_of(pid: int) -> int | None:
    """The parent of a process that runs and is no zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[1])


def arguments_of(pid: int) -> list[str]:
    """The command line of a process; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        return []


def strays(folder: Path, executables: Collection[Path]) -> list[ProcessId]:
    """Processes that run one of the executables inside the folder: a server's own and what it forked."""
    wanted = {str(path.resolve()) for path in executables}
    root = folder.resolve()
    found = []
    for pid in processes():
        try:
            # A wheel that was upgraded in the meantime shows as "... (deleted)".
            executable = str(Path(f"/proc/{pid}/exe").readlink()).removesuffix(" (deleted)")
            inside = Path(f"/proc/{pid}/cwd").readlink().is_relative_to(root)
        except OSError:
            continue
        identity = ProcessId.of(pid)
        if executable in wanted and inside and identity and identity.is_running():
            found.append(identity)
    return found


def kill_strays(folder: Path, executables: Collection[Path], seconds: float = 10.0) -> int:
    """Kill what an earlier run left in the folder; returns how many processes that were.

    Raises:
        TimeoutError: some are still there after the time (uninterruptible I/O).
    """
    killed: set[int] = set()
    deadline = time.monotonic() + seconds
    # Again until none is left: a dying server may still be forking.
    while left := strays(folder, executables):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {[p.pid for p in left]} in {folder} do not end even when killed")
        for process in left:
            process.signal(signal.SIGKILL)
            killed.add(process.pid)
        time.sleep(0.02)
    return len(killed)


@dataclass(frozen=True)
class Command:
    """How to start a server.

    `stop_signal` asks it to end; `death_signal` is sent by the kernel when the supervisor dies without asking.
    """

    argv: Sequence[str]
    folder: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL


class Child:
    """One running server process, the leader of its own session and process group."""

    def __init__(self, command: Command) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        self._command = command
        uid, gid = command.user or (None, None)
        if command.log.exists() and command.log.stat().st_size > _KEEP_LOG_BYTES:
            command.log.replace(command.log.with_suffix(".log.1"))
        with command.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(command.argv),
                cwd=command.folder,
                env=dict(command.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=uid,
                group=gid,
                extra_groups=None if uid is None else [],
                # Runs after the change of user, which would clear it; the supervisor has no threads that could hold a lock.
                preexec_fn=_tie_to(os.getpid(), command.death_signal),  # noqa: PLW1509
            )
        identity = ProcessId.of(self._process.pid)
        if identity is None:
            raise OSError(f"{command.argv[0]} ended at once")
        self.identity = identity

    def exit_code(self) -> int | None:
        """Its exit code (negative: the signal), or None while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        if self.exit_code() is None:
            self._process.send_signal(self._command.stop_signal)

    def wait(self, seconds: float) -> bool:
        """Whether it ended within the time."""
        try:
            self._process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it and its process group, whatever it thinks of signals."""
        # Postgres removes its shared memory at an immediate shutdown, and leaks it when killed.
        if self._command.death_signal != signal.SIGKILL and self.exit_code() is None:
            self._process.send_signal(self._command.death_signal)
            self.wait(_IMMEDIATE_SECONDS)
        try:
            # Its number cannot be a stranger's: we have not reaped it, or its group still has members.
            if self.exit_code() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()


def _tie_to(parent: int, death_signal: int) -> Callable[[], None]:
    def tie() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel could send it a signal
            os._exit(1)

    return tie


def run_tool(
    argv: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    user: tuple[int, int] | None = None,
) -> tuple[int, str]:
    """Run a program to its end; returns its exit code and output.

    An exception meanwhile ends it with all its children.
    """
    uid, gid = user or (None, None)
    with subprocess.Popen(
        list(argv),
        cwd=folder,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        user=uid,
        group=gid,
        extra_groups=None if uid is None else [],
        preexec_fn=_tie_to(os.getpid(), signal.SIGKILL),  # noqa: PLW1509 - as in Child
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, output.strip()


def tail(log: Path, lines: int = 12) -> str:
    """The last lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return "(no log)"
    return "\n".join("    " + line for line in text.rstrip().splitlines()[-lines:]) or "(empty log)"
