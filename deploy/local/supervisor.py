"""The process that owns the embedded servers: starts, watches, restarts and stops all of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from deploy.local import ports as port_choice
from deploy.local.environment import SERVICES, external_services, given, write_environment
from deploy.local.postgres import Postgres
from deploy.local.process import Child, kill_strays, tail
from deploy.local.seaweedfs import SeaweedFS
from deploy.local.server import Server
from deploy.local.state import Secrets, StateDir
from deploy.local.tansu import BUCKET as TANSU_BUCKET
from deploy.local.tansu import Tansu
from deploy.local.triton import Triton
from deploy.local.watchdog import RestartLimit, StubWatch
from schemas.errors import LockHeld, ServerUnavailable
from schemas.runtime.stop_signals import stop_signals

_TICK_SECONDS = 0.5
_STUB_ROUND_SECONDS = 1.0


class StopRequested(Exception):
    """Ctrl-C, SIGTERM, or the caller that we are tied to has gone."""


@dataclass
class _Running:
    """A server with its process and what is known about it."""

    server: Server
    child: Child
    since: float
    note: str | None = None
    seconds: float = 0.0
    restarts: int = 0
    given_up: bool = False
    limit: RestartLimit = field(default_factory=RestartLimit)


def build_servers(
    state: StateDir, ports: Mapping[str, int], secrets: Secrets, say: Callable[[str], None] = lambda _: None
) -> dict[str, Server]:
    """Every server of a state folder, whether it is to be started or not, in the order of starting."""
    bucket = given("s3", "bucket") or "pigeon"
    prefix = given("kafka", "topic_prefix") or ""
    servers: tuple[Server, ...] = (
        Postgres(state, ports, secrets),
        SeaweedFS(state, ports, secrets, buckets=(bucket, TANSU_BUCKET)),
        Triton(state, ports, secrets, say),
        Tansu(state, ports, secrets, prefix),
    )
    return {server.name: server for server in servers}


def _settings(servers: Iterable[Server]) -> set[tuple[str, str]]:
    return {item for server in servers for item in server.settings().items()}


def _kill_strays(server: Server) -> int:
    try:
        return kill_strays(server.folder, server.executables) if server.folder.exists() else 0
    except TimeoutError as error:
        raise ServerUnavailable(f"{server.name}: {error}") from None


class Supervisor:
    """One run of the stack, all in the main thread.

    The kernel ties children to the thread that forked them.
    """

    def __init__(
        self, state: StateDir, services: tuple[str, ...], say: Callable[[str], None], tied_to: IO[bytes] | None
    ) -> None:
        """`say` gets one line for people at a time; with `tied_to`, the stack ends when that pipe does."""
        self._state = state
        self._services = services
        self._say = say
        self._tied_to = tied_to
        self._stop = 0
        self._raise_at_once = False
        self._wake: int | None = None
        self.stopped_by: int | None = None
        self._running: dict[str, _Running] = {}
        self._external: dict[str, str] = {}
        self._phase = "starting"

    def run(self, when_ready: Callable[[], None]) -> None:
        """Start the servers, keep them up until told to stop, stop them.

        Raises:
            LockHeld: another supervisor owns the state folder.
            InputError: a wheel or setting is missing.
            ServerUnavailable: a server does not start; the message ends with the tail of its log.
        """
        lock = self._state.lock()
        if lock is None:
            raise LockHeld(f"another stack is being started or runs in {self._state.path}: see `pigeon status`")
        with lock, self._signals():
            try:
                self._save()
                self._start()
                self._phase = "ready"
                self._save()
                when_ready()
                self._watch()
            except StopRequested:
                pass
            finally:
                self._phase = "stopping"
                self._save()
                self._shut_down()
                self._state.drop_record()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def note(number: int) -> None:
            # Asked twice, or by SIGQUIT, means at once: without waiting for a graceful end.
            self._stop += 2 if number == signal.SIGQUIT else 1
            self.stopped_by = number
            if self._raise_at_once:
                raise StopRequested

        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
        self._wake, signalled = os.pipe2(os.O_NONBLOCK)
        try:
            with stop_signals(note, numbers=numbers):
                previous = signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
                try:
                    yield
                finally:
                    signal.set_wakeup_fd(previous)
        finally:
            os.close(self._wake)
            os.close(signalled)

    @contextlib.contextmanager
    def _tools(self) -> Iterator[None]:
        """While other programs do the work (initdb, pip): a signal ends them instead of waiting."""
        if self._stop:
            raise StopRequested
        self._raise_at_once = True
        try:
            yield
        finally:
            self._raise_at_once = False

    def _pause(self, seconds: float) -> None:
        """Sleep, unless asked to stop."""
        deadline = time.monotonic() + seconds
        while True:
            if self._stop:
                raise StopRequested
            left = deadline - time.monotonic()
            if left <= 0:
                return
            watched = [fd for fd in (self._wake, self._tied_to) if fd is not None]
            if self._tied_to in select.select(watched, [], [], left)[0]:  # nothing is ever sent: this is its end
                raise StopRequested

    # Starting

    def _start(self) -> None:
        ports, secrets, fresh = self._identity()
        servers = build_servers(self._state, ports, secrets, self._say)
        ours = _settings(servers.values())
        mended = sum(_kill_strays(server) for server in servers.values())
        if mended:
            self._say(f"repaired: {mended} processes of an earlier stack were left over and are ended")
        if not fresh and not port_choice.all_free(ports):
            ports = port_choice.choose(self._state.path)
            self._say("the ports of the last time are taken by others: new ones are chosen")
            servers = build_servers(self._state, ports, secrets, self._say)
            ours |= _settings(servers.values())
        self._state.save_identity(dict(ports), secrets)
        self._external = {n: w for n, w in external_services(ours).items() if n in self._services}
        for name, where in self._external.items():
            self._say(f"{name:<9} external, by {where}: not started")
        wanted = [name for name in self._services if name not in self._external]
        # The embedded broker keeps its log in the embedded S3, whoever provides the product's own bucket.
        started = [name for name in servers if name in wanted or (name == "s3" and "kafka" in wanted)]
        for name in started:  # all before any, so that a download does not count as another server's start
            servers[name].clean()
            with self._tools():
                sentence = servers[name].prepare()
            if sentence:
                self._say(f"{name:<9} {sentence}")
        for name in started:
            needs = servers[name].needs
            if needs:
                self._await(self._running[needs])
            self._launch(servers[name])
        for name in started:
            self._await(self._running[name])
        settings = {n: v for name in SERVICES if name in wanted for n, v in servers[name].settings().items()}
        write_environment(self._state.env_file, settings)

    def _identity(self) -> tuple[dict[str, int], Secrets, bool]:
        known = self._state.identity()
        if known:
            return *known, False
        return port_choice.choose(self._state.path), Secrets.new(), True

    def _launch(self, server: Server) -> None:
        if self._stop:
            raise StopRequested
        since = time.monotonic()
        self._running[server.name] = _Running(server, self._child(server), since)
        self._save()

    def _child(self, server: Server) -> Child:
        try:
            return Child(server.command())
        except OSError as error:
            raise ServerUnavailable(f"{server.name} cannot be started: {error}") from None

    def _await(self, running: _Running) -> None:
        """Wait until a launched server answers, furnish it and report it, at most once."""
        if running.seconds:
            return
        server = running.server
        self._await_answer(running)
        running.note = server.furnish()
        running.seconds = time.monotonic() - running.since
        words = f"  {running.note}" if running.note else ""
        self._record(f"{server.name:<9} {server.address:<27} {running.seconds:5.1f} s{words}")

    def _await_answer(self, running: _Running) -> None:
        server = running.server
        deadline = time.monotonic() + server.start_seconds
        while not server.answers():
            code = running.child.exit_code()
            if code is not None:
                how = f"ended with exit code {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
                raise ServerUnavailable(f"{server.name} {how} while starting; {server.log} ends:\n{tail(server.log)}")
            if time.monotonic() > deadline:
                raise ServerUnavailable(
                    f"{server.name} did not answer at {server.address} within {server.start_seconds:.0f} s; "
                    f"{server.log} ends:\n{tail(server.log)}"
                )
            self._pause(0.05)

    # Watching

    def _watch(self) -> None:
        stubs: StubWatch | None = None
        next_round = time.monotonic()
        while True:
            self._pause(_TICK_SECONDS)
            for running in self._running.values():
                code = running.child.exit_code()
                if code is not None and not running.given_up:
                    self._restart(running, code)
            triton = self._running.get("triton")
            if triton is None or triton.given_up or time.monotonic() < next_round:
                continue
            if stubs is None and isinstance(triton.server, Triton):
                stubs = StubWatch(triton.server, self._say)
            if stubs:
                stubs.look(triton.child.identity.pid)
            next_round = time.monotonic() + _STUB_ROUND_SECONDS

    def _restart(self, running: _Running, code: int) -> None:
        server = running.server
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        if not running.limit.allows():
            running.given_up = True
            self._record(
                f"{server.name:<9} ended again ({how}): given up after {running.restarts} restarts, see {server.log}"
            )
            return
        since = time.monotonic()
        running.restarts += 1
        try:
            _kill_strays(server)
            server.clean()
            running.child = self._child(server)
            self._await_answer(running)
            server.resume()
        except ServerUnavailable as error:
            # Its process, if any, stays; the next round counts it again when it has ended.
            self._record(f"{server.name:<9} ended ({how}) and does not come back: {error}")
        else:
            self._record(f"{server.name:<9} ended ({how}): restarted in {time.monotonic() - since:.1f} s")

    # Stopping

    def _shut_down(self) -> None:
        """Stop the servers, those that need others first; nothing of theirs is left when this returns."""
        needed = {running.server.needs for running in self._running.values()}
        waves = (
            [r for r in self._running.values() if r.server.name not in needed],
            [r for r in self._running.values() if r.server.name in needed],
        )
        for wave in waves:
            for running in wave:
                running.child.ask_to_stop()
            for running in wave:
                deadline = time.monotonic() + running.server.stop_seconds
                while self._stop < 2 and not running.child.wait(0.1) and time.monotonic() < deadline:
                    pass
                if running.child.exit_code() is None:
                    if self._stop < 2:
                        self._say(f"{running.server.name:<9} did not stop when asked: killed")
                    running.child.kill()
                try:
                    _kill_strays(running.server)
                    running.server.clean()
                except ServerUnavailable as error:
                    self._say(str(error))  # the others still have to be stopped

    def _record(self, line: str) -> None:
        """Save what has changed, then report it.

        Who reads the line may act on the record, and must not find the dead process there.
        """
        self._save()
        self._say(line)

    def _save(self) -> None:
        record: dict[str, Any] = {
            "phase": self._phase,
            "services": list(self._services),
            "external": self._external,
            "servers": {
                name: {
                    "address": running.server.address,
                    "log": str(running.server.log),
                    "process": running.child.identity.to_record(),
                    "seconds": round(running.seconds, 2),
                    "restarts": running.restarts,
                    "given_up": running.given_up,
                }
                for name, running in self._running.items()
            },
        }
        self._state.save_record(record)


def main() -> None:
    """Run `python -m deploy.local.supervisor STATE_DIR SERVICES REPORT_FD TIED`, as Stack.up does."""
    import json
    from pathlib import Path

    from schemas.errors import PigeonError

    state_dir, services, report_fd, tied = sys.argv[1:]
    report = os.fdopen(int(report_fd), "w", buffering=1)

    def tell(**message: object) -> None:
        # The caller may have gone; the log has it all.
        with contextlib.suppress(OSError, ValueError):
            report.write(json.dumps(message) + "\n")

    def note(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        sys.stdout.flush()

    def say(line: str) -> None:
        note(line)
        tell(line=line)

    def ready() -> None:
        tell(ready=True)
        report.close()

    try:
        supervisor = Supervisor(
            StateDir(Path(state_dir)), tuple(services.split(",")), say, sys.stdin.buffer if tied == "tied" else None
        )
        supervisor.run(ready)
    except PigeonError as error:
        note(f"failed: {error}")
        tell(error=str(error), exit_code=error.exit_code)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
