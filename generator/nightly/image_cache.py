"""Bytes of catalogue pictures on disk, by their hash, within a size limit.

Several threads and processes may share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

RESCAN_SHARE = 0.05
"""Share of the limit that one process adds before it looks at the folder again."""

ROOM_SHARE = 0.9
"""Share of the limit that is left filled when the folder is tidied."""

STALE_DRAFT_SECONDS = 3600.0
"""Age at which a half-written file is one of a dead process."""


class ImageCache:
    """A folder of files named by the sha256 of their content; the least recently used go first.

    A cache that cannot be written to is one that remembers nothing: no error comes out of it.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._added = limit_bytes  # so that the first file makes us look at what is there
        self._warned = False

    def get(self, sha256: str) -> bytes | None:
        """The bytes with this hash, or None."""
        path = self._folder / sha256
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, sha256: str, data: bytes) -> None:
        """Keep the bytes of this hash."""
        path = self._folder / sha256
        draft = self._folder / f".{sha256}.{os.getpid()}.{threading.get_ident()}"
        try:
            if path.is_file():
                os.utime(path)
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(data)
            draft.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            if not self._warned:
                self._warned = True
                log.warning("pictures are not kept in %s: %s", self._folder, error)
            return
        with self._lock:
            self._added += len(data)
            full = self._added >= RESCAN_SHARE * self._limit
            if full:
                self._added = 0
        if full:
            self._tidy()

    def _tidy(self) -> None:
        """Delete the least recently used files past the limit, and drafts that nobody finishes."""
        files: list[tuple[float, int, str]] = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    about = entry.stat(follow_symlinks=False)
                    if not entry.name.startswith("."):
                        files.append((about.st_mtime, about.st_size, entry.path))
                    elif about.st_mtime < time.time() - STALE_DRAFT_SECONDS:
                        os.unlink(entry.path)  # noqa: PTH108 - scandir gives text
        total = sum(size for _, size, _ in files)
        if total <= self._limit:
            return
        for _, size, path in sorted(files):
            if total <= ROOM_SHARE * self._limit:
                return
            with contextlib.suppress(OSError):  # another process was first
                os.unlink(path)  # noqa: PTH108
            total -= size
