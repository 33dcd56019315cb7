"""Whether the stores can be reached and written, for readiness.

A consumer without traffic would not notice.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping

import psycopg2

from consumers.outage import first_line
from consumers.postgres import connect
from schemas.settings import DatabaseSettings
from schemas.settings_kafka import KafkaSettings

TIMEOUT_SECONDS = 5.0
KEPT_SECONDS = 5.0


def postgres(settings: DatabaseSettings) -> str | None:
    """None when Postgres takes writes, else why not."""
    impatient = settings.model_copy(
        update={"connect_timeout_seconds": TIMEOUT_SECONDS, "statement_timeout_seconds": TIMEOUT_SECONDS}
    )
    try:
        connection = connect(impatient, "pigeon-ready")
        try:
            with connection.cursor() as cursor:
                cursor.execute("SHOW transaction_read_only")
                return "read-only" if cursor.fetchone() == ("on",) else None
        finally:
            connection.close()
    except psycopg2.Error as error:
        return first_line(error)


def kafka(settings: KafkaSettings) -> str | None:
    """None when one of the brokers takes connections, else why the last one does not."""
    problem = None
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_SECONDS).close()
        except (OSError, ValueError) as error:
            problem = f"{server.strip()}: {error}"
        else:
            return None
    return problem


class Probes:
    """The stores' problems by name, looked up at most every few seconds."""

    def __init__(self, stores: Mapping[str, Callable[[], str | None]]) -> None:
        self._stores = stores
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._problems: dict[str, str] = {}

    def __call__(self) -> dict[str, str]:
        """Store -> problem, of those that have one."""
        with self._lock:
            if time.monotonic() - self._asked_at > KEPT_SECONDS:
                answers = {name: ask() for name, ask in self._stores.items()}
                self._problems = {name: problem for name, problem in answers.items() if problem}
                self._asked_at = time.monotonic()
            return self._problems
