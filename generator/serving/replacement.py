"""Replacement of a model repository as a whole, by one process at a time.

A crash in between is mended by the next one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from generator.serving.repository import MANIFEST
from schemas.errors import LockHeld


def replace(repository: Path, staging: Path) -> None:
    """Put the new repository under the old one's name; `finish_replace` mends a crash in between."""
    old = _old(repository)
    if repository.exists():
        repository.rename(old)
    staging.rename(repository)
    shutil.rmtree(old, ignore_errors=True)


def finish_replace(repository: Path) -> None:
    """Bring back or remove the old repository, with its adapters, after a crash inside `replace`."""
    old = _old(repository)
    if old.exists() and not (repository / MANIFEST).is_file():
        shutil.rmtree(repository, ignore_errors=True)
        old.rename(repository)
    shutil.rmtree(old, ignore_errors=True)


def _old(repository: Path) -> Path:
    return repository.with_name(f"{repository.name}.old")


@contextmanager
def locked(repository: Path) -> Iterator[None]:
    """Keep others from replacing the repository.

    Raises:
        LockHeld: another process does.
    """
    path = repository.with_name(f"{repository.name}.lock")
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(f"model repository {repository}: another build or pull is under way ({path})") from None
        file.write(str(os.getpid()))
        file.flush()
        yield
