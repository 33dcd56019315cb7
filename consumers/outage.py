"""Which database errors are outages (wait and try again), which are the data's fault, which are ours."""

from __future__ import annotations

import random

import psycopg2

# SQLSTATE classes (Postgres manual, appendix A).
DATA_CLASSES = ("22", "23", "54")  # bad value, constraint, over a limit of one row or value
OUTAGE_CLASSES = (
    "08",
    "25",
    "40",
    "53",
    "55",
    "57",
    "58",
)  # connection, read-only, rollback, resources, locks, operator, system


class Outage(Exception):
    """A server does not work right now; nothing was written and nothing is wrong with the data."""


def is_data_error(error: psycopg2.Error) -> bool:
    """Whether one of the rows, rather than the server, made the statement fail."""
    return (error.pgcode or "")[:2] in DATA_CLASSES


def is_outage(error: psycopg2.Error) -> bool:
    """Whether the same statement may well work later, unchanged."""
    if error.pgcode is None:  # the server went away before it could say why
        return (
            isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
            or type(error) is psycopg2.DatabaseError
        )
    return error.pgcode[:2] in OUTAGE_CLASSES


def first_line(error: BaseException) -> str:
    """An error as one line for a log or a message; kafka-python's begin with their own name."""
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix(f"{type(error).__name__}: ") if lines else type(error).__name__


class Backoff:
    """Exponential delays with jitter, in seconds, up to a ceiling; `reset` after a success."""

    def __init__(self, ceiling: float, first: float = 0.2) -> None:
        self._ceiling = ceiling
        self._first = min(first, ceiling)
        self.failures = 0

    def next(self) -> float:
        """The delay before the next try."""
        delay = min(self._ceiling, self._first * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return delay * random.uniform(0.8, 1.0)

    def reset(self) -> None:
        """Start over with the first delay."""
        self.failures = 0
