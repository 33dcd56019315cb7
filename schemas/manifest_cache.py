"""A folder of verified files named by their content, shared by all processes of a machine.

A file is complete from the moment it has its name. Processes that use one hold a shared lock on it; what nobody has used for a
while goes. Where files cannot be locked, one that is in use may go as well: its memory map outlives its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

KEEP_SECONDS = 600.0
"""Seconds for which a file that nobody uses stays: somebody may be about to open it."""
PARTIAL_SECONDS = 3600.0
"""Seconds after which an unfinished file is that of a dead process."""
TURN_SECONDS = 120.0
"""Seconds to wait for another process to fetch what we want, too."""


def default_folder() -> Path:
    """The user's cache folder, or one in the temporary folder that nobody else can write to."""
    home = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError, OSError):
        folder = (Path(home) if home else Path.home() / ".cache") / "pigeon" / "manifest"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"pigeon-manifest-{user}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == user and not folder.is_symlink():
            return folder
    return Path(tempfile.mkdtemp(prefix="pigeon-manifest-"))


class FileCache:
    """One folder. Every method may raise OSError (no space, no rights)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str, make: Callable[[Path], None]) -> int:
        """Open file `name`, made by `make(path)` when it is not there; returns a descriptor to close.

        `make` writes the whole file or raises. Of several processes that want the same file one makes it.
        """
        held = self._hold(name)
        if held is not None:
            return held
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._turn(name):
            held = self._hold(name)
            while held is None:
                self._make(name, make)
                held = self._hold(name)
            return held

    def remove(self, name: str) -> None:
        """Remove a file now, of a cache that is nobody else's; who has it mapped keeps it."""
        (self._folder / name).unlink(missing_ok=True)

    def clean(self, keep: set[str]) -> None:
        """Remove files that nobody has used for a while, but those named `keep`."""
        for path in [*self._folder.glob("*.arrow"), *self._folder.glob(".*.part")]:
            with contextlib.suppress(OSError):
                limit = PARTIAL_SECONDS if path.suffix == ".part" else KEEP_SECONDS
                if path.name not in keep and time.time() - path.stat().st_mtime > limit:
                    self._remove(path)

    def _make(self, name: str, make: Callable[[Path], None]) -> None:
        part = self._folder / f".{name}.{os.getpid()}.{secrets.token_hex(4)}.part"
        try:
            make(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(self._folder / name)
        finally:
            part.unlink(missing_ok=True)

    def _hold(self, name: str) -> int | None:
        """A descriptor under a shared lock, or None when there is no such file."""
        path = self._folder / name
        while True:
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                return None
            try:
                if fcntl:
                    with contextlib.suppress(OSError):
                        fcntl.flock(file, fcntl.LOCK_SH)
                if path.stat().st_ino == os.fstat(file).st_ino:
                    with contextlib.suppress(OSError):
                        os.utime(path)
                    return file
            except FileNotFoundError:
                pass
            except OSError:
                os.close(file)
                raise
            os.close(file)  # removed between opening and locking

    def _remove(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY)
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        finally:
            os.close(file)

    @contextlib.contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """One process at a time makes files; one that waits too long, or finds the file made, goes on without."""
        if fcntl is None:
            yield
            return
        file = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            end = time.monotonic() + TURN_SECONDS
            while time.monotonic() < end and not (self._folder / name).exists():
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
                except OSError:
                    break
            yield
        finally:
            os.close(file)
