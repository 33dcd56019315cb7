"""Real servers for the tests: one stack for the whole run.

For each test its own database, bucket and topics on it.

Fixtures: `stack` (the servers), `database_url` (migrated, empty), `bucket`, `topic_prefix` (topics made), `settings` (all three),
`pigeon` (runs the command in a process of its own with these settings).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr
from sqlalchemy import Engine

from consumers.postgres import postgres_connection
from deploy.local.stack import Stack
from generator.storage.postgres import connect
from migrations import database
from schemas.connections import kafka_options, s3_client, s3_options
from schemas.events import all_topics
from schemas.settings import DatabaseSettings, Settings, load_settings
from tests.support import recorded_statements

CHECKOUT = Path(__file__).parents[1]
TEMPLATE = "pigeon_template"
STATEMENTS = "PIGEON_TEST_STATEMENTS"
"""Variable that names a file for Postgres' log, with every statement: tests/support/recorded_statements.py."""
IMAGE_SCHEMES = ("http", "https", "s3", "file")  # the catalogues of the tests are files of this machine
_numbers = itertools.count(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What did not run, and what the tests of faults really did, with its seed."""
    if os.environ.get("PIGEON_CI_WITHOUT_KAFKA") == "1":
        terminalreporter.write_line("not run: whatever needs Apache Kafka (PIGEON_CI_WITHOUT_KAFKA=1)", yellow=True)
    skipped = Counter(
        report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else str(report.longrepr)
        for report in terminalreporter.stats.get("skipped", [])
    )
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"not run: {count} {'test' if count == 1 else 'tests'}: {reason}", yellow=True)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                for name, line in report.user_properties:
                    terminalreporter.write_line(f"{name}: {line}")


@pytest.fixture(scope="session")
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No PIGEON_* setting of the developer's shell reaches the tests.

    Triton's environment is made once per checkout.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PIGEON_") and name != "PIGEON_TRITON_VENV"]:
            patch.delenv(name)
        if "PIGEON_TRITON_VENV" not in os.environ:
            patch.setenv("PIGEON_TRITON_VENV", str(CHECKOUT / ".pigeon" / "triton" / "venv"))
        empty = tmp_path_factory.mktemp("config") / "pigeon.toml"
        empty.touch()
        patch.setenv("PIGEON_CONFIG_FILE", str(empty))
        yield


@pytest.fixture(scope="session")
def stack(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Postgres, S3, Kafka and Triton (no models), in a temporary state folder.

    They end with the test run, also when it is killed.
    """
    servers = Stack(tmp_path_factory.mktemp("stack"))
    servers.up(tied=True)
    try:
        yield servers
    finally:
        if STATEMENTS in os.environ:
            shutil.copy(servers.state.logs / "postgres.log", os.environ[STATEMENTS])
        servers.down(purge=True)


@pytest.fixture(scope="module")
def own_triton(own_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The settings of a Triton of the module's own.

    A model that failed to load keeps a server's readiness red for good.
    """
    servers = Stack(tmp_path_factory.mktemp("triton"))
    servers.up(services=("triton",), tied=True)
    try:
        yield load_settings(state_dir=servers.state.path)
    finally:
        servers.down(purge=True)


@pytest.fixture(scope="session")
def shared_settings(stack: Stack) -> Settings:
    """The stack's own addresses; nothing may be written through these."""
    return load_settings(state_dir=stack.state.path)


def _connect(settings: DatabaseSettings) -> Any:
    connection = postgres_connection(settings, "pigeon-tests")
    connection.autocommit = True
    return connection


@pytest.fixture(scope="session")
def template_database(shared_settings: Settings) -> str:
    """A database at the newest migration that nobody is connected to.

    Returns the server's URL without a database name.
    """
    url = shared_settings.database.url.get_secret_value()
    server = url.rpartition("/")[0]
    connection = _connect(shared_settings.database)  # not as a context manager: that would begin a transaction
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {TEMPLATE}")
        if STATEMENTS in os.environ:
            cursor.execute("ALTER SYSTEM SET log_statement = 'all'")
            cursor.execute("ALTER SYSTEM SET log_line_prefix = %s", (recorded_statements.PREFIX,))
            cursor.execute("SELECT pg_reload_conf()")
    connection.close()
    database.upgrade(DatabaseSettings.model_validate({"url": f"{server}/{TEMPLATE}"}))
    return server


@pytest.fixture
def database_url(shared_settings: Settings, template_database: str) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database without rows, gone after the test."""
    name = f"test_{next(_numbers)}"
    connection = _connect(shared_settings.database)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield f"{template_database}/{name}"
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


@pytest.fixture
def empty(shared_settings: Settings) -> Iterator[DatabaseSettings]:
    """A database without any table, whose statements wait for a lock for 1 s at most."""
    url = shared_settings.database.url.get_secret_value()
    name = f"empty_{next(_numbers)}"
    connection = _connect(shared_settings.database)
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name}")
    yield DatabaseSettings.model_validate({"url": f"{url.rpartition('/')[0]}/{name}", "lock_timeout_seconds": 1})
    with connection.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    connection.close()


@pytest.fixture
def bucket(shared_settings: Settings) -> Iterator[str]:
    """The name of an empty bucket."""
    name = f"test-{next(_numbers)}"
    client = s3_client(**s3_options(shared_settings.s3))
    client.create_bucket(Bucket=name)
    yield name
    with contextlib.suppress(ClientError):  # a test may have deleted it
        client.delete_bucket(Bucket=name)  # with all in it: a bucket takes volumes of the server, which has not many
    client.close()


@pytest.fixture
def topic_prefix(shared_settings: Settings) -> str:
    """A prefix under which every topic exists and is empty."""
    prefix = f"test{next(_numbers)}."
    admin = KafkaAdminClient(**kafka_options(shared_settings.kafka))
    admin.create_topics(
        {name: {"num_partitions": 4, "replication_factor": 1} for name in all_topics(prefix)}, wait_for_metadata=True
    )
    admin.close()
    return prefix


@pytest.fixture
def settings(stack: Stack, database_url: str, bucket: str, topic_prefix: str) -> Settings:
    """Settings that lead to this test's own database, bucket and topics.

    Its consumer group is its own as well.
    """
    return load_settings(
        state_dir=stack.state.path,
        database={"url": database_url},
        s3={"bucket": bucket},
        # Half of a session's time is what joining takes here.
        kafka={"topic_prefix": topic_prefix, "group_id": f"{topic_prefix}pigeon", "session_timeout_ms": 2_000},
        images={"allowed_schemes": IMAGE_SCHEMES},
    )


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """SQLAlchemy's, of this test's own database."""
    made = connect(DatabaseSettings(url=SecretStr(database_url)))
    yield made
    made.dispose()


@pytest.fixture
def pigeon(settings: Settings) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `pigeon ARGUMENTS` in its own process with this test's settings; output is captured as text."""
    own = {
        "PIGEON_STATE_DIR": str(settings.state_dir),
        "PIGEON_DATABASE__URL": settings.database.url.get_secret_value(),
        "PIGEON_S3__BUCKET": settings.s3.bucket,
        "PIGEON_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "PIGEON_KAFKA__GROUP_ID": settings.kafka.group_id,
        "PIGEON_IMAGES__ALLOWED_SCHEMES": json.dumps(IMAGE_SCHEMES),
    }

    def run(*arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "generator.cli", *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **own},
        )

    return run
