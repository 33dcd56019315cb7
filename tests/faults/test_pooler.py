"""PgBouncer in front of Postgres: leadership works in session mode, else it is refused in words."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import make_url, text

from consumers.postgres import postgres_connection
from generator.storage.lease import lead
from generator.storage.postgres import connect, plain_errors
from schemas.errors import InputError, LockHeld
from schemas.settings import DatabaseSettings, Settings
from tests.support.schedule_world import free_port, until

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.faults,
    pytest.mark.skipif(PGBOUNCER is None, reason="no pgbouncer on this machine (Debian: apt-get install pgbouncer)"),
]

Pooled = Callable[..., DatabaseSettings]


@pytest.fixture
def pooled(settings: Settings, tmp_path: Path) -> Iterator[Pooled]:
    """Start a PgBouncer in a mode; the settings that lead through it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(mode: str, *, pooler: str = "none", more: str = "") -> DatabaseSettings:
        url, port = make_url(settings.database.url.get_secret_value()), free_port()
        folder = Path(tmp_path / mode)
        folder.mkdir()
        users = folder / "users.txt"
        users.write_text(f'"{url.username}" "{url.password}"\n')
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={url.host} port={url.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\npool_mode = {mode}\n{more}\n"
        )
        assert PGBOUNCER
        command = [PGBOUNCER, "-q", str(config)]
        if os.getuid() == 0:  # it does not run as root
            for path in (tmp_path, folder, users, config):
                path.chmod(0o755)
            account = pwd.getpwnam("nobody")
            command += ["-u", account.pw_name]
            for parent in tmp_path.parents:
                if parent.owner() == "root" and parent != parent.parent and parent.name.startswith("pytest"):
                    parent.chmod(0o755)
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        through = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        made = DatabaseSettings.model_validate(
            {**settings.database.model_dump(), "url": SecretStr(through), "pooler": pooler}
        )

        def answers() -> bool:
            try:
                postgres_connection(made.model_copy(update={"pooler": "session"}), "probe").close()
            except Exception:  # noqa: BLE001 - whatever it is, it does not answer yet
                time.sleep(0.05)
                return False
            return True

        until(answers, [config.read_text()])
        return made

    yield start
    for process in started:
        process.terminate()
        process.wait()


def test_a_pooler_that_was_not_declared_is_refused(pooled: Pooled) -> None:
    """Fault 9: two leaders would share one session (transaction mode), so none leads."""
    plain = pooled("transaction")
    engine = connect(plain)
    with pytest.raises(InputError, match="PIGEON_DATABASE__POOLER=session"), plain_errors(engine), engine.connect():
        pass  # it refuses our start-up options
    engine.dispose()


def test_a_pooler_that_swallows_our_options_is_refused(pooled: Pooled) -> None:
    """Fault 9: the options are ignored, and the session's number gives the pooler away."""
    engine = connect(pooled("transaction", more="ignore_startup_parameters = options"))
    with pytest.raises(InputError, match="transaction or statement mode cannot be used"), lead(engine, "night"):
        pass
    engine.dispose()


def test_transaction_mode_declared_as_session_mode_is_found_out(pooled: Pooled) -> None:
    """Fault 9: a wrong word about the pooler does not make two leaders."""
    engine = connect(pooled("transaction", pooler="session"))
    with pytest.raises(InputError, match="not in session mode"), lead(engine, "night"):
        pass
    engine.dispose()


def test_session_mode_keeps_one_leader_and_the_timeouts(pooled: Pooled) -> None:
    """Fault 9: in session mode a lease is a lease."""
    settings = pooled("session", pooler="session")
    one, other = connect(settings), connect(settings)
    with one.connect() as connection:
        assert connection.execute(text("SHOW statement_timeout")).scalar_one() == "1min"
        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
    with lead(one, "night") as lease:
        with pytest.raises(LockHeld), lead(other, "night"):
            pass
        with one.begin() as connection:
            lease.check(connection)
    with lead(other, "night") as after:
        assert after.token == lease.token + 1
    one.dispose()
    other.dispose()
