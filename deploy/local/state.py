"""What one state folder (`.pigeon/`) remembers: ports and secrets for good, the running stack while it runs."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from deploy.local import ports
from schemas.errors import InputError


def write_private(path: Path, text: str) -> None:
    """Replace a file that only its owner may read, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


@dataclass(frozen=True)
class Secrets:
    """Random for each state folder."""

    postgres_password: str
    s3_access_key: str
    s3_secret_key: str
    triton_admin_key: str

    @classmethod
    def new(cls) -> Secrets:
        return cls(*(secrets.token_hex(length) for length in (16, 10, 20, 20)))


class StateDir:
    """The folder and the names in it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.run = self.path / "run"
        self.models = self.path / "models"
        self.env_file = self.path / "env"
        self._identity_file = self.path / "local.json"
        self._record_file = self.run / "stack.json"
        self._lock_file = self.run / "lock"

    @property
    def key(self) -> str:
        """Short and unique on this machine; names what must live outside the folder (shared memory, relocated data)."""
        return hashlib.sha256(str(self.path).encode()).hexdigest()[:12]

    def make(self) -> None:
        """Create the folders.

        Raises:
            InputError: the folder cannot be created or written.
        """
        try:
            for folder in (self.path, self.logs, self.run, self.models):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"state_dir {self.path}: {error.strerror}: choose another by PIGEON_STATE_DIR") from None
        if not os.access(self.run, os.W_OK):
            raise InputError(f"state_dir {self.path}: not writable for this user: choose another by PIGEON_STATE_DIR")

    def lock(self) -> IO[str] | None:
        """The lock of the stack's owner, or None while another process has it. The kernel frees it when its owner dies."""
        file = self._lock_file.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def is_locked(self) -> bool:
        if not self._lock_file.exists():
            return False
        lock = self.lock()
        if lock:
            lock.close()
        return lock is None

    def identity(self) -> tuple[dict[str, int], Secrets] | None:
        """The ports and secrets chosen earlier, or None at first."""
        try:
            stored = json.loads(self._identity_file.read_text())
            return {name: int(stored["ports"][name]) for name in ports.NAMES}, Secrets(**stored["secrets"])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self._identity_file}: not readable as ports and secrets: restore it, or `pigeon down --purge`"
            ) from None

    def save_identity(self, chosen: dict[str, int], keys: Secrets) -> None:
        write_private(self._identity_file, json.dumps({"ports": chosen, "secrets": vars(keys)}, indent=1))

    def record(self) -> dict[str, Any]:
        """What the supervisor last wrote about the stack; empty when none runs or it never got that far."""
        try:
            stored: dict[str, Any] = json.loads(self._record_file.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return stored

    def save_record(self, record: dict[str, Any]) -> None:
        write_private(self._record_file, json.dumps(record, indent=1))

    def drop_record(self) -> None:
        self._record_file.unlink(missing_ok=True)
